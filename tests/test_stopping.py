"""Signals that ask to stop: noted, asked for, and as ever afterwards."""

import os
import signal
import threading

import pytest

from train_loop import stopping


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "the keyboard"), (signal.SIGTERM, "SIGTERM")],
)
def test_signal_waits_until_it_is_asked_for(number, name):
    before = signal.getsignal(number)
    with stopping.noting_signals():
        stopping.check()
        os.kill(os.getpid(), number)
        with pytest.raises(stopping.StoppedError) as error:
            stopping.check()
        assert str(error.value) == f"stopped by {name}"
        assert error.value.status == 128 + number
        # The next one ends the process.
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before
    stopping.check()


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.noting_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            stopping.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_take_no_signals():
    seen = []

    def work():
        with stopping.noting_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
