"""The time of steps, and what the process tells of itself."""

import pathlib
import time

import numpy as np
import pytest

from train_loop.benchmark import timing as stopwatches
from train_loop.benchmark.machine import age, peak_memory
from train_loop.benchmark.timing import WARM_UP_STEPS, Stopwatch


def test_numbers_belong_together():
    stopwatch = Stopwatch()
    stopwatch.first_step = {"process": 2.0, "task": 1.0}
    stopwatch.group_steps, stopwatch.groups = 2, [1.0, 2.0, 4.0]
    stopwatch.waits = [0.5, 0.0, 0.2]
    numbers = stopwatch.numbers(batch_size=8)
    assert (numbers["steps"], numbers["images"]) == (6, 48)
    rates = numbers["images_per_second"]
    assert rates["mean"] * numbers["seconds"] == pytest.approx(48)
    assert rates["median"] == 8
    assert rates["p10"] < rates["median"] < rates["p90"]
    assert numbers["step_seconds"]["median"] == 1
    assert numbers["input_wait"] == pytest.approx(0.1)


def test_first_steps_are_not_among_the_timed_ones():
    taken = []
    stopwatch = Stopwatch()
    # Of workers, the chief's number counts.
    stopwatch.time(taken.append, rounds=3, agree=lambda n: min(n, 5))
    assert taken == [1] * (1 + WARM_UP_STEPS) + [5] * 3
    assert len(stopwatch.groups) == 3
    # A step that tells nothing of its input.
    assert stopwatch.numbers(1)["input_wait"] is None


def test_what_was_read_ahead_is_used_up_before_anything_is_timed(monkeypatch):
    """Ten batches wait; those behind them take half a second."""
    clock, taken = [0.0], []

    def take(count):
        taken.append(count)
        for number in range(sum(taken) - count, sum(taken)):
            clock[0] += 0.01 if number < 10 else 0.5

    monkeypatch.setattr(stopwatches.time, "perf_counter", lambda: clock[0])
    stopwatch = Stopwatch()
    stopwatch.time(take, rounds=2, warm_up=2.0)
    assert stopwatch.group_steps == 1
    assert stopwatch.groups == pytest.approx([0.5, 0.5])


def test_only_what_begins_with_the_process_is_timed_from_its_start():
    stopwatch = Stopwatch(is_first=False)
    stopwatch.time(lambda count: time.sleep(0.001), rounds=1)
    assert stopwatch.first_step["process"] is None
    assert stopwatch.first_step["task"] > 0


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/stat").exists(), reason="for Linux"
)
def test_process_knows_its_age_and_its_memory():
    first = age()
    time.sleep(0.02)
    assert first < age() < first + 60
    before = peak_memory()
    filled = np.ones(2**25, np.uint8)
    assert peak_memory() >= max(before, len(filled))
