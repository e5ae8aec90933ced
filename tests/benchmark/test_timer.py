"""The timer of steps, and the age and memory of the process."""

import pathlib
import time

import numpy as np
import pytest

from train_loop.benchmark import machine
from train_loop.benchmark.machine import (
    WARM_UP_STEPS,
    Timer,
    peak_memory,
    process_age,
)


def test_numbers_are_consistent():
    timer = Timer()
    timer.first_step = {"process": 2.0, "task": 1.0}
    timer.group_steps, timer.groups = 2, [1.0, 2.0, 4.0]
    timer.waits = [0.5, 0.0, 0.2]
    numbers = timer.numbers(batch_size=8)
    assert (numbers["steps"], numbers["images"]) == (6, 48)
    rates = numbers["images_per_second"]
    assert rates["mean"] * numbers["seconds"] == pytest.approx(48)
    assert rates["median"] == 8
    assert rates["p10"] < rates["median"] < rates["p90"]
    assert numbers["step_seconds"]["median"] == 1
    assert numbers["input_wait"] == pytest.approx(0.1)


def test_first_steps_are_not_timed():
    taken = []
    timer = Timer()
    # All workers use the chief's number.
    timer.run(taken.append, rounds=3, agree=lambda n: min(n, 5))
    assert taken == [1] * (1 + WARM_UP_STEPS) + [5] * 3
    assert len(timer.groups) == 3
    # The steps do not report how long they waited.
    assert timer.numbers(1)["input_wait"] is None


def test_prefetched_batches_are_consumed_before_timing(monkeypatch):
    """Ten batches are prefetched; later ones take half a second each."""
    clock, taken = [0.0], []

    def take(count):
        taken.append(count)
        for number in range(sum(taken) - count, sum(taken)):
            clock[0] += 0.01 if number < 10 else 0.5

    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])
    timer = Timer()
    timer.run(take, rounds=2, warm_up=2.0)
    assert timer.group_steps == 1
    assert timer.groups == pytest.approx([0.5, 0.5])


def test_only_the_first_task_is_timed_from_the_start_of_the_process():
    timer = Timer(is_first=False)
    timer.run(lambda count: time.sleep(0.001), rounds=1)
    assert timer.first_step["process"] is None
    assert timer.first_step["task"] > 0


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/stat").exists(), reason="for Linux"
)
def test_age_and_peak_memory_of_the_process():
    first = process_age()
    time.sleep(0.02)
    assert first < process_age() < first + 60
    before = peak_memory()
    filled = np.ones(2**25, np.uint8)
    assert peak_memory() >= max(before, len(filled))
