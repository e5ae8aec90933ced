"""Signals: requests to stop, answered between two steps.

The signal of a cluster, a closed terminal or Ctrl-C is recorded, and checked
where nothing is half done. A second one ends the process at once, whatever it
does. A signal that was ignored when the process started, such as SIGHUP under
nohup and SIGINT in the background of a script, stays ignored.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NAMES = {signal.SIGINT: "the keyboard"}

# Signals that arrive within this time are one request: some senders signal a
# process and its group.
SECONDS_OF_ONE = 1.0
# What ends the thread that waits for signals.
NO_SIGNAL = 0

# Signals belong to the process, and so does this record of them.
_received = []


class StoppedError(Exception):
    """A signal asked to stop.

    Args:
      signal: which one, a `signal.Signals`.
      *hints: how to resume.
    """

    def __init__(self, signal, *hints):
        name = NAMES.get(signal, signal.name)
        super().__init__("; ".join([f"stopped by {name}", *hints]))
        self.signal = signal

    @property
    def status(self):
        """The exit status that shells give such a process."""
        return 128 + self.signal


@contextlib.contextmanager
def recording_signals():
    """Records signals for `received`, instead of ending the process.

    A second one ends the process, see `ended_by_second`. Outside the main
    thread, where Python handles no signals, nothing changes.
    """
    handled = {}
    if threading.current_thread() is threading.main_thread():
        handled = {
            number: handler
            for number in SIGNALS
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }

    def record(number, frame):
        if _received and _is_interactive(number):
            handled[number](number, frame)
        _received.append(signal.Signals(number))

    with ended_by_second():
        for number in handled:
            signal.signal(number, record)
        try:
            yield
        finally:
            _received.clear()
            for number, handler in handled.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def ended_by_second():
    """Lets a second signal end the process at once.

    Python runs handlers when a call of C++ returns, and a training step may
    take minutes; a thread reads of every signal at once. In an interactive
    session, Ctrl-C is left to Python: it ends the work, not the session.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    thread = threading.Thread(target=_watch, args=(arrived,), daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        # A forked process may hold the pipe open.
        os.write(wakeup, bytes([NO_SIGNAL]))
        os.close(wakeup)
        thread.join()
        os.close(arrived)


def _watch(arrived):
    """Reads the numbers of signals; ends the process at the second request."""
    first = None
    while (number := os.read(arrived, 1)[0]) != NO_SIGNAL:
        if number not in SIGNALS or _is_interactive(number):
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first >= SECONDS_OF_ONE:
            _end(signal.Signals(number))


def _end(number):
    """Ends the process in a line, which must not take any time."""
    line = f"error: ended at once by a second signal, {number.name}\n"
    with contextlib.suppress(OSError):
        _, writable, _ = select.select([], [2], [], 0)
        for stream in writable:
            os.write(stream, line.encode())
    os._exit(128 + number)


def _is_interactive(number):
    return number == signal.SIGINT and hasattr(sys, "ps1")


def received():
    """Returns the signal that has asked to stop, None without one."""
    return _received[0] if _received else None


def check():
    """Raises StoppedError where a signal has asked to stop."""
    if _received:
        raise StoppedError(_received[0])
