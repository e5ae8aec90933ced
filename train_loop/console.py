"""Standard output and standard error: streams, progress bars, tables."""

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import warnings

with warnings.catch_warnings():
    # In a notebook without ipywidgets, bars are text.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

# Control characters, line separators, marks of text direction, and bytes of a
# file name that are not UTF-8.
CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    r"\ud800-\udfff]"
)
# A spreadsheet reads these as the start of a formula; the last are full-width.
FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


class OutlivedStream:
    """A stream that ignores write errors.

    After `| head`, in a closed terminal or on a full disk, further output is
    discarded.

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
    """Lets work continue when standard output or error is closed."""
    with (
        contextlib.redirect_stdout(OutlivedStream(sys.stdout)),
        contextlib.redirect_stderr(OutlivedStream(sys.stderr)),
    ):
        yield


@contextlib.contextmanager
def exit_on_interrupt():
    """Makes Ctrl-C end the process at once, with one line.

    For work without files to save, such as imports, where third-party code
    would turn a KeyboardInterrupt into another exception. If SIGINT was ignored
    when the process started, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    screen = os.dup(sys.__stderr__.fileno())

    def end(*_):
        os.write(screen, b"error: interrupted by Ctrl-C\n")
        os._exit(128 + signal.SIGINT)

    interrupt = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        os.close(screen)


def prepare_streams():
    """Prepares both streams for files and pipes.

    Call it before tqdm is imported: third-party libraries draw progress bars
    with it, which belong on a terminal only.
    """
    _open_missing_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # Complete lines appear in a file at once. Characters that its encoding
    # lacks, such as in names of classes, are written as escapes.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")


def _open_missing_streams():
    """Opens streams that the parent process closed (`>&-`) to /dev/null."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # Otherwise a file of the run would get the stream's descriptor, and
        # the output of C++ code.
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        stream = open(number, "w" if number else "r")  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def printable(text):
    """Returns a text in one line, with control characters as escapes.

    Names of files and classes may be untrusted.
    """
    return CONTROLS.sub(
        lambda found: found[0].encode("unicode_escape").decode(), text
    )


def csv_cells(values):
    """Returns the cells of a CSV row, without formulas.

    Text that a spreadsheet would evaluate starts with an apostrophe; numbers
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
    """Redirects a stream, with what it has buffered, to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def progress_bar(
    total, initial=0, unit="step", description="", leave=True, delay=0.0
):
    """Returns a progress bar with rate and remaining time.

    Args:
      total: number of steps or batches.
      initial: number of those that are done.
      unit: what is counted.
      description: text in front of the bar.
      leave: whether the bar stays after the last step.
      delay: seconds before the bar appears.

    Returns:
      A `tqdm` progress bar.
    """
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        leave=leave,
        delay=delay,
        dynamic_ncols=True,
        # None: on a terminal only. A log has the reports.
        disable=False if in_notebook() else None,
    )


def in_notebook():
    """Returns whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def transient_bar(total, unit, description=""):
    """Returns a progress bar that appears after two seconds, and disappears."""
    return progress_bar(
        total, unit=unit, description=description, leave=False, delay=2.0
    )


def format_metric(name, value):
    """Returns a metric as text, with digits and unit by its name."""
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
    """Returns a number with three significant digits, or all integer ones."""
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
    """Returns an argument parser with a module's docstring as its help.

    Args:
      program: command, such as "python -m train_loop.launch".
      documentation: docstring of the module.
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
