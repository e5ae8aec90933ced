"""Requests to stop from outside: signals, answered between two steps.

What a cluster, a closed terminal or Ctrl-C sends is noted, and asked for where
nothing is half done. A second one ends the process at once, as ever.
"""

import contextlib
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NAMES = {signal.SIGINT: "the keyboard"}

# Signals belong to the process, and so does what was noted of them.
_noted = []


class StoppedError(Exception):
    """A signal asked to stop.

    Args:
      signal: which one, a `signal.Signals`.
      *hints: how to go on.
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
def noting_signals():
    """Lets `noted` find out about signals, in place of dying of them.

    One that was ignored before, as by nohup, is ignored still. Outside the main
    thread, where signals cannot be taken, nothing changes.
    """
    taken = {}
    if threading.current_thread() is threading.main_thread():
        taken = {
            number: handler
            for number in SIGNALS
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }

    def note(number, frame):
        del frame
        _noted.append(signal.Signals(number))
        for number, handler in taken.items():
            signal.signal(number, handler)

    for number in taken:
        signal.signal(number, note)
    try:
        yield
    finally:
        _noted.clear()
        for number, handler in taken.items():
            signal.signal(number, handler)


def noted():
    """Returns the signal that has asked to stop, None without one."""
    return _noted[0] if _noted else None


def check():
    """Raises StoppedError where a signal has asked to stop."""
    if _noted:
        raise StoppedError(_noted[0])
