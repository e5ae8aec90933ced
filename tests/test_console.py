"""Closed streams, terminals, and text for both."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from train_loop import console
from train_loop.console import progress_bar


def unread():
    """Returns a text stream whose reader has closed it, as `| head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


def full():
    """Returns a text stream on a full disk."""
    return open("/dev/full", "w", buffering=1)


@pytest.mark.parametrize("make", [unread, full])
def test_work_continues_when_output_is_closed(make, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, make())
    with pytest.raises(OSError, match="Broken pipe|No space left"):
        print("a line")
    done = []
    with console.outliving_streams():
        for number in range(3):
            print("a line")
            print("an error", file=sys.stderr)
            sys.stdout.flush()
            done.append(number)
    assert done == [0, 1, 2]
    # Nothing remains that would fail at the end of the process.
    sys.stdout.close()
    sys.stderr.close()


def test_outlived_streams_pass_text_on(capsys):
    with console.outliving_streams():
        print("a line")
        assert sys.stdout.encoding
    assert capsys.readouterr().out == "a line\n"


def bar_on(stream):
    with contextlib.redirect_stderr(stream), progress_bar(2) as bar:
        bar.set_postfix(loss="1.5", refresh=False)
        bar.update(2)


def all_on(screen):
    """Returns the complete output on a terminal, which arrives in parts."""
    seen = b""
    # Reading fails at the end, when no writer is left.
    with open(screen, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while piece := file.read(1000):
            seen += piece
    return seen


def test_bars_are_drawn_on_terminals_only():
    file = io.StringIO()
    bar_on(file)
    assert file.getvalue() == ""
    screen, terminal = pty.openpty()
    size = struct.pack("4H", 24, 80, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    with open(terminal, "w") as stream:
        bar_on(stream)
    assert b"2/2" in all_on(screen)


def test_third_party_bars_are_not_drawn_into_files(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(os, "environ", {})
    console.prepare_streams()
    assert os.environ == {"TQDM_DISABLE": "1"}
    # Lines appear in the file at once.
    print("a line")
    assert sys.stdout.buffer.getvalue() == b"a line\n"


def started(script, redirection="", **variables):
    """Returns the result of a Python script that a shell starts."""
    return subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


def test_closed_streams_discard_output():
    script = """
import os, sys
from train_loop import console
console.prepare_streams()
print("a line")
print("an error", file=sys.stderr)
with console.exit_on_interrupt(), console.outliving_streams():
    print("a line")
# Files that are opened later must not become standard output.
sys.exit(40 + (os.open(os.devnull, os.O_RDONLY) > 2))
"""
    result = started(script, "<&- >&- 2>&-")
    assert result.returncode == 41


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"\\u732b \\xe9\n"),
        ("latin-1", b"\\u732b \xe9\n"),
        ("utf-8", "猫 é\n".encode()),
    ],
)
def test_characters_outside_the_encoding_become_escapes(
    encoding, expected, monkeypatch
):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    console.prepare_streams()
    print("猫 é")
    assert stream.buffer.getvalue() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chat_é 猫 🐈\u200d⬛", "chat_é 猫 🐈\u200d⬛"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\r\nb\tc\u2028d", r"a\r\nb\tc\u2028d"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff.jpg", r"\udcff.jpg"),
    ],
)
def test_control_characters_are_printed_as_escapes(text, expected):
    assert console.printable(text) == expected
    _, row = console.text_table([["image"], [text]]).splitlines()
    assert row == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("\uff1dA1", "'\uff1dA1"),
        ("\t=A1", r"\t=A1"),
        ("a=b", "a=b"),
        ("-1.5e3", "-1.5e3"),
        (-2, -2),
    ],
)
def test_cells_of_csv_files_are_no_formulas(value, expected):
    assert console.csv_cells(["cat", value]) == ["cat", expected]
