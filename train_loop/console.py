"""Standard output and standard error: streams, progress bars, tables."""

import argparse
import contextlib
import math
import os
import re
import signal
import sys

import tqdm

# What moves a terminal's cursor, starts a line, turns the order of letters or
# is no letter: the bytes of a file's name that are no UTF-8.
CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    r"\ud800-\udfff]"
)
# What a spreadsheet takes for a formula, in wide letters as well.
FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


class OutlivedStream:
    """A stream that goes on where nobody takes what is written to it.

    As behind `| head`, in a terminal that was closed and on a full disk: what
    is written from then on goes nowhere.

    Args:
      stream: a text stream, such as `sys.stdout`.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        with self._outliving():
            self.stream.write(text)

    def flush(self):
        with self._outliving():
            self.stream.flush()

    @contextlib.contextmanager
    def _outliving(self):
        try:
            yield
        except OSError:
            discard_output(self.stream)


@contextlib.contextmanager
def outliving_streams():
    """Lets work go on that is of use to those who stopped watching it."""
    with (
        contextlib.redirect_stdout(OutlivedStream(sys.stdout)),
        contextlib.redirect_stderr(OutlivedStream(sys.stderr)),
    ):
        yield


@contextlib.contextmanager
def exit_on_interrupt():
    """Has Ctrl-C end the process at once, in a line.

    For work that leaves nothing behind, such as imports: an exception would
    come up in the middle of others' code, which makes others of it. Where
    SIGINT was ignored when the process started, it is ignored still.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    screen = os.dup(sys.__stderr__.fileno())

    def end(*_):
        os.write(screen, b"error: stopped by the keyboard\n")
        os._exit(128 + signal.SIGINT)

    interrupt = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        os.close(screen)


def prepare_streams():
    """Makes both streams fit for files and pipes, where they are no terminal.

    Before anything imports tqdm: others' libraries draw bars with it, which
    belong on a terminal and nowhere else.
    """
    _open_missing_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # Whoever reads the file in the meantime sees every line that is complete.
    # What its encoding lacks, such as names of classes, is written in escapes.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")


def _open_missing_streams():
    """Opens streams that the parent process closed (`>&-`) to nowhere."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # A file of the run would get the number of the stream, and whatever
        # C++ code prints.
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        stream = open(number, "w" if number else "r")  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def printable(text):
    """Returns a text with its control characters as escapes, in one line.

    Names of files and classes may come from strangers.
    """
    return CONTROLS.sub(
        lambda found: found[0].encode("unicode_escape").decode(), text
    )


def csv_cells(values):
    """Returns the cells of a CSV row, none of which is a formula.

    Text that a spreadsheet would evaluate gets an apostrophe in front; numbers
    do not. Control characters become escapes.
    """
    return [_csv_cell(value) for value in values]


def _csv_cell(value):
    if not isinstance(value, str):
        return value
    text = printable(value)
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}" if text.startswith(FORMULAS) else text


def discard_output(stream):
    """Writes what a stream still holds, and all to come, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def progress_bar(
    total, initial=0, unit="step", description="", leave=True, delay=0.0
):
    """Returns a progress bar with rate and time left.

    Args:
      total: number of steps or batches altogether.
      initial: how many of them are done already.
      unit: what is counted.
      description: what stands in front of it.
      leave: whether the bar stays after the last step.
      delay: seconds to wait before the bar is shown at all.

    Returns:
      A `tqdm` progress bar.
    """
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        leave=leave,
        delay=delay,
        dynamic_ncols=True,
        # None: on a terminal only. A log has the reports.
        disable=None,
    )


def transient_bar(total, unit, description=""):
    """Returns a bar for work on the way, shown only where that takes long."""
    return progress_bar(
        total, unit=unit, description=description, leave=False, delay=2.0
    )


def format_metric(name, value):
    """Returns a number as people like to read it."""
    formats = {
        "accuracy": "{:.2%}".format,
        "ema_accuracy": "{:.2%}".format,
        "swa_accuracy": "{:.2%}".format,
        "loss_scale": "{:g}".format,
        "skipped_steps": "{:g}".format,
        "learning_rate": "{:.3g}".format,
        "images_per_second": _with_three_digits,
        "input_wait": "{:.1%}".format,
        "epoch": _with_three_digits,
    }
    return formats.get(name, "{:.4f}".format)(value)


def _with_three_digits(value):
    """Returns a number with three digits that count, and all whole ones."""
    magnitude = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(2 - magnitude, 0)}f}"


def text_table(rows):
    """Returns rows of strings as aligned text; the first row is the header."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def parser_of(program, documentation):
    """Returns a parser whose help is what a module says of itself.

    Args:
      program: what to type.
      documentation: the module's; its first line says what the program does.
    """
    first, *others = documentation.splitlines()
    return argparse.ArgumentParser(
        prog=program,
        description=first,
        epilog="\n".join(others),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def print_warnings(lines):
    """Prints each line as a warning, without control characters."""
    for line in lines:
        print(printable(f"warning: {line}"))
