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
        assert stopping.noted() is None
        os.kill(os.getpid(), number)
        assert stopping.noted() == number
        error = stopping.StoppedError(stopping.noted(), "go on")
        assert str(error) == f"stopped by {name}; go on"
        assert error.status == 128 + number
        # The next one ends the process.
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before
    assert stopping.noted() is None


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.noting_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping.noted() is None
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
