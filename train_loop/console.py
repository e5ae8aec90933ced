"""Standard output and standard error, and what becomes of them."""

import contextlib
import os
import signal
import sys


class Lasting:
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
        with self._lasting():
            self.stream.write(text)

    def flush(self):
        with self._lasting():
            self.stream.flush()

    @contextlib.contextmanager
    def _lasting(self):
        try:
            yield
        except OSError:
            to_nowhere(self.stream)


@contextlib.contextmanager
def lasting():
    """Lets work go on that is of use to those who stopped watching it."""
    with (
        contextlib.redirect_stdout(Lasting(sys.stdout)),
        contextlib.redirect_stderr(Lasting(sys.stderr)),
    ):
        yield


@contextlib.contextmanager
def ended_by_keyboard():
    """Has Ctrl-C end the process at once, in a line.

    For work that leaves nothing behind, such as imports: an exception would
    come up in the middle of others' code, which makes others of it.
    """
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


def prepare():
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


def to_nowhere(stream):
    """Writes what a stream still holds, and all to come, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
