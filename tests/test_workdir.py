"""A run's folder: atomic files, and one process at a time."""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import pytest

from train_loop import UserError
from train_loop.workdir import (
    Workdir,
    append_json_line,
    atomic_write,
    is_made_from,
    made_from,
    read_json_lines,
    read_lines,
    write_text,
)

INTERRUPTIONS = [RuntimeError, KeyboardInterrupt, SystemExit]


def write_file(path, text, interruption=None):
    with atomic_write(path) as unfinished:
        unfinished.write_text(text)
        if interruption:
            raise interruption


def write_folder(path, files, interruption=None, context=atomic_write):
    with context(path) as unfinished:
        unfinished.mkdir(exist_ok=True)
        for name, text in files.items():
            write_text(unfinished / name, text)
        if interruption:
            raise interruption


def contents(folder):
    """Returns {relative path: text} of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workdir.of("~/runs/1").path == tmp_path / "runs/1"
    # A literal folder name if the user is unknown.
    assert Workdir.of("~nobody-here/1").path == pathlib.Path("~nobody-here/1")


def test_folder_is_a_run_once_it_has_its_flags(tmp_path):
    workdir = Workdir(tmp_path / "run")
    assert not workdir.is_run
    assert not workdir.has_checkpoint
    write_text(workdir.flags, "--model=resnet18\n")
    assert workdir.is_run
    assert not workdir.has_checkpoint
    write_text(workdir.checkpoints / "ckpt-5.index", "")
    assert workdir.has_checkpoint


def test_all_names_are_different():
    workdir = Workdir(pathlib.Path("run"))
    names = [
        getattr(workdir, name)
        for name, value in vars(Workdir).items()
        if isinstance(value, property)
    ]
    paths = [name for name in names if isinstance(name, pathlib.Path)]
    assert len(set(paths)) == len(paths) > 5
    assert all(path.parent == workdir.path for path in paths)


@pytest.mark.parametrize("missing", ["", "run", "a/b/run"])
def test_check_writable_leaves_no_file(tmp_path, missing):
    Workdir(tmp_path / missing).check_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/run"])
def test_folder_below_a_file_is_rejected(tmp_path, name):
    file = tmp_path / "file"
    file.write_text("mine")
    workdir = Workdir(tmp_path / name)
    with pytest.raises(UserError) as error:
        workdir.check_writable()
    message = str(error.value)
    assert message.startswith(f"--workdir={workdir}: cannot be written")
    assert str(file) in message
    assert message.endswith("Use another folder.")
    assert file.read_text() == "mine"


def test_too_long_name_is_rejected(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        Workdir(tmp_path / ("a" * 300)).check_writable()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root may write anywhere",
)
def test_folder_of_another_user_is_rejected(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=str(tmp_path)):
            Workdir(tmp_path / "run").check_writable()
    finally:
        tmp_path.chmod(0o700)


def test_second_process_is_rejected_until_the_first_ends(tmp_path):
    workdir = Workdir(tmp_path / "run")
    refused = rf"--workdir={workdir}: another process is training here"
    with workdir.locked():
        with pytest.raises(UserError, match=refused), workdir.locked():
            pytest.fail("locked twice")
        with pytest.raises(UserError, match=refused):
            workdir.check_free()
    workdir.check_free()
    with pytest.raises(KeyboardInterrupt), workdir.locked():
        raise KeyboardInterrupt
    with workdir.locked():
        pass


def test_killed_process_leaves_no_lock(tmp_path):
    program = (
        "import filelock, sys;"
        "lock = filelock.FileLock(sys.argv[1]);"
        "lock.acquire();"
        "print('locked', flush=True);"
        "sys.stdin.read()"
    )
    workdir = Workdir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "in_use.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process"):
            workdir.check_free()
        process.kill()
        process.wait()
        workdir.check_free()


def test_missing_folder_is_free(tmp_path):
    Workdir(tmp_path / "run").check_free()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("old", [None, "old"])
def test_file_is_written_atomically(tmp_path, old, interruption):
    path = tmp_path / "below/data.json"
    if old:
        write_text(path, old)
    with pytest.raises(interruption):
        write_file(path, "half", interruption)
    assert contents(tmp_path) == ({"below/data.json": old} if old else {})
    write_text(path, "new")
    assert contents(tmp_path) == {"below/data.json": "new"}


def test_kill_before_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "data.json"
    write_text(path, "old")

    def kill(source, target):
        assert pathlib.Path(source).read_text() == "new"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new")
    assert contents(tmp_path) == {"data.json": "old"}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("old", [{}, {"a": "old", "c/d": "old"}])
def test_folder_is_written_atomically(tmp_path, old, interruption):
    folder = tmp_path / "cache"
    for name, text in old.items():
        write_text(folder / name, text)
    with pytest.raises(interruption):
        write_folder(folder, {"a": "half"}, interruption)
    assert contents(tmp_path) == {f"cache/{name}": old[name] for name in old}
    write_folder(folder, {"b": "new"})
    # Old and new files are not mixed.
    assert contents(tmp_path) == {"cache/b": "new"}


def test_partly_removed_folder_is_never_visible(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    write_text(folder / "a", "old")

    def kill(path, **_):
        # Nothing is removed before the new folder is in place.
        assert contents(folder) == {"a": "new"}
        raise KeyboardInterrupt

    context = atomic_write(folder)
    write_text(context.__enter__() / "a", "new")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            context.__exit__(None, None, None)
    assert contents(folder) == {"a": "new"}


def test_two_writers_of_one_name_do_not_interfere(tmp_path):
    """The second ends while the first still writes."""
    path, folder = tmp_path / "data.json", tmp_path / "cache"
    with atomic_write(path) as unfinished, unfinished.open("w") as file:
        file.write("fir")
        file.flush()
        write_text(path, "second")
        assert path.read_text() == "second"
        file.write("st")
    with made_from(folder, 1) as unfinished:
        (unfinished / "images.bin").write_text("first")
        write_folder(folder, {"images.bin": "second"})
        assert contents(folder) == {"images.bin": "second"}
    found = contents(tmp_path)
    assert found.pop("cache/origin.json")
    assert found == {"data.json": "first", "cache/images.bin": "first"}


def test_second_equal_copy_keeps_the_first(tmp_path):
    folder = tmp_path / "cache"
    with made_from(folder, "images") as unfinished:
        (unfinished / "images.bin").write_text("second")
        with made_from(folder, "images") as faster:
            (faster / "images.bin").write_text("first")
    assert (folder / "images.bin").read_text() == "first"


@pytest.mark.parametrize("machine", ["other-machine", f"{platform.node()}-2"])
def test_unfinished_folders_of_other_machines_are_removed_after_a_day(
    machine, tmp_path
):
    """Locks of other machines are not visible on every disk."""
    rest = tmp_path / f".unfinished-{machine}-x"
    write_text(rest / "file", "half")
    write_text(tmp_path / "file", "new")
    assert rest.exists()
    before = time.time() - 25 * 60 * 60
    os.utime(rest, (before, before))
    write_text(tmp_path / "file", "new")
    assert not rest.exists()


def test_folder_that_appears_during_the_swap_is_replaced(tmp_path, monkeypatch):
    folder, replace = tmp_path / "cache", os.replace
    of_others = ["other's"]

    def late(source, target):
        # Another process was faster.
        if target == folder and of_others:
            write_text(folder / "a", of_others.pop())
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    write_folder(folder, {"b": "new"})
    assert contents(tmp_path) == {"cache/b": "new"}


def test_nothing_is_written_through_a_planted_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in ("file.tmp", "file"):
        (tmp_path / name).symlink_to("mine")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_unfinished_folders_of_a_killed_process_are_removed(tmp_path):
    program = (
        "import pathlib, sys;"
        "from train_loop.workdir import atomic_write;"
        "context = atomic_write(pathlib.Path(sys.argv[1]));"
        "context.__enter__().write_text('half');"
        "print('half', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "half\n"
        write_text(tmp_path / "other", "new")
        # Its process is alive.
        assert "half" in contents(tmp_path).values()
        process.kill()
        process.wait()
    write_text(tmp_path / "other", "new")
    assert contents(tmp_path) == {"other": "new"}


@pytest.fixture
def synced(monkeypatch):
    """Returns the names of flushed and of renamed files, in order."""
    events, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(descriptor):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("sync", path.name))
        fsync(descriptor)

    def noted_replace(source, target):
        replace(source, target)
        events.append(("rename", pathlib.Path(target).name))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return events


needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="tells what is synced"
)


@needs_proc
def test_file_is_flushed_before_its_rename(tmp_path, synced):
    write_text(tmp_path / "new/run/data.json", "{}")
    assert synced == [
        # New folders, flushed in their parents.
        ("sync", "new"),
        ("sync", tmp_path.name),
        ("sync", "data.json"),
        ("rename", "data.json"),
        ("sync", "run"),
    ]


@needs_proc
def test_folder_is_flushed_before_its_rename(tmp_path, synced):
    with made_from(tmp_path / "cache", "origin") as unfinished:
        (unfinished / "below").mkdir()
        (unfinished / "below/images.bin").touch()
    before, after = synced[:-2], synced[-2:]
    names = ("origin.json", "images.bin", "below", "cache")
    assert sorted(before) == sorted(("sync", name) for name in names)
    assert before[-1] == ("sync", "cache")
    assert after == [("rename", "cache"), ("sync", tmp_path.name)]


@needs_proc
def test_every_json_line_is_flushed(tmp_path, synced):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_json_line(path, {"step": step})
    # A name is flushed once.
    names = ["metrics.jsonl", tmp_path.name, "metrics.jsonl"]
    assert synced == [("sync", name) for name in names]


def test_line_after_an_incomplete_line_is_kept(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"st')
    append_json_line(path, {"step": 2})
    append_json_line(path, {"step": 3})
    assert [record["step"] for record in read_json_lines(path)] == [1, 2, 3]


def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "flags.txt"
    path.write_bytes("a\u2028\x85\x0b\x0c\x1cb\r\nc\n\nd".encode())
    assert read_lines(path) == ["a\u2028\x85\x0b\x0c\x1cb", "c", "", "d"]


def test_copy_records_its_origin(tmp_path):
    folder, origin = tmp_path / "cache", {"identity": "a", "changed": 1}
    files = {"images.bin": "all"}

    def make(origin, interruption=None):
        write_folder(
            folder,
            files,
            interruption,
            context=lambda path: made_from(path, origin),
        )

    assert not is_made_from(folder, origin)
    with pytest.raises(KeyboardInterrupt):
        make(origin, KeyboardInterrupt)
    assert not is_made_from(folder, origin)
    make(origin)
    assert is_made_from(folder, origin)
    for torn in ("", "al", "all, and more"):
        (folder / "images.bin").write_text(torn)
        assert not is_made_from(folder, origin)
    make(origin)
    assert is_made_from(folder, origin)
    assert contents(folder).keys() == {"images.bin", "origin.json"}
    assert not is_made_from(folder, {**origin, "changed": 2})
    # An outdated copy stays until the next one is complete.
    with pytest.raises(KeyboardInterrupt):
        make("other", KeyboardInterrupt)
    assert is_made_from(folder, origin)
    make("other")
    assert is_made_from(folder, "other")


def test_incomplete_lines_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    records = [{"step": 1}, {"step": 2}]
    lines = [json.dumps(record) + "\n" for record in records]
    path.write_bytes("".join(lines).encode() + b'\x80\n{"step": 3, "spl')
    assert read_json_lines(path) == records


@pytest.mark.parametrize("text", ["", '{"class_na', "[]", "{}", "3"])
def test_damaged_json_is_one_clear_line(tmp_path, text):
    workdir = Workdir(tmp_path)
    workdir.data.write_text(text)
    with pytest.raises(UserError, match="cannot be read .*--weights=") as error:
        workdir.read_data()
    assert "\n" not in str(error.value)
