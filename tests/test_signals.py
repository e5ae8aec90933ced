"""Signals to stop: recorded, checked, and restored afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from train_loop import process
from train_loop.training.reports import JsonLinesReport
from train_loop.workdir import Workdir

pytestmark = pytest.mark.usefixtures("default_signals")

# A process stuck in C: it acquires its own lock twice.
STUCK = """
import ctypes
from train_loop import process
with process.recording_signals():
    lock, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(lock)
    print("stuck", flush=True)
    library.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")],
)
def test_signal_waits_until_it_is_checked(number, name, monkeypatch):
    monkeypatch.setattr(process, "SECONDS_OF_ONE", 600.0)
    before = signal.getsignal(number)
    with process.recording_signals():
        assert process.received() is None
        os.kill(os.getpid(), number)
        assert process.received() == number
        error = process.StoppedError(process.received(), "go on")
        assert str(error) == f"stopped by {name}; go on"
        assert error.status == 128 + number
        # A second signal right after it is the same request.
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert process.received() is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_stuck_process(number):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "stuck\n"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(number)
        time.sleep(0.05)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == f"error: ended at once by a second signal, {number.name}\n"


def test_second_ctrl_c_in_a_session_is_handled_by_python(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with process.recording_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert process.received() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_forked_process_ends_at_a_signal(monkeypatch):
    """It has a copy of the pipe on which signals arrive."""
    pipe, copies = os.pipe, []

    def copied():
        ends = pipe()
        copies.append(os.dup(ends[1]))
        return ends

    monkeypatch.setattr(os, "pipe", copied)
    with process.exit_on_second_signal():
        pass
    os.close(*copies)


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.recording_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert process.received() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_do_not_handle_signals():
    seen = []

    def work():
        with process.recording_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
def test_stopped_run_prints_how_to_resume(
    run, tmp_path, small_net, monkeypatch
):
    write_down = JsonLinesReport.__call__

    def write_down_and_signal(self, step, *others):
        write_down(self, step, *others)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(JsonLinesReport, "__call__", write_down_and_signal)
    flags = ("--dataset=digits", "--strategy=one_device", "--report_every=2")
    status, _, errors = run(*flags, "--steps=9", f"--workdir={tmp_path}")
    assert status == 128 + signal.SIGTERM
    assert errors == (
        f"error: stopped by SIGTERM; --workdir={tmp_path} resumes from the "
        "last checkpoint\n"
    )
    # After the current step; no step is lost.
    assert Workdir(tmp_path).steps == [3]
