"""The time of steps, and what the process tells of itself."""

import pathlib
import time

import numpy as np
import pytest

from train_loop.benchmark import tasks as timer_module
from train_loop.benchmark.machine import peak_memory, process_age
from train_loop.benchmark.tasks import WARM_UP_STEPS, Timer


def test_numbers_belong_together():
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


def test_first_steps_are_not_among_the_timed_ones():
    taken = []
    timer = Timer()
    # Of workers, the chief's number counts.
    timer.run(taken.append, rounds=3, agree=lambda n: min(n, 5))
    assert taken == [1] * (1 + WARM_UP_STEPS) + [5] * 3
    assert len(timer.groups) == 3
    # A step that tells nothing of its input.
    assert timer.numbers(1)["input_wait"] is None


def test_what_was_read_ahead_is_used_up_before_anything_is_timed(monkeypatch):
    """Ten batches wait; those behind them take half a second."""
    clock, taken = [0.0], []

    def take(count):
        taken.append(count)
        for number in range(sum(taken) - count, sum(taken)):
            clock[0] += 0.01 if number < 10 else 0.5

    monkeypatch.setattr(timer_module.time, "perf_counter", lambda: clock[0])
    timer = Timer()
    timer.run(take, rounds=2, warm_up=2.0)
    assert timer.group_steps == 1
    assert timer.groups == pytest.approx([0.5, 0.5])


def test_only_what_begins_with_the_process_is_timed_from_its_start():
    timer = Timer(is_first=False)
    timer.run(lambda count: time.sleep(0.001), rounds=1)
    assert timer.first_step["process"] is None
    assert timer.first_step["task"] > 0


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/stat").exists(), reason="for Linux"
)
def test_process_knows_its_age_and_its_memory():
    first = process_age()
    time.sleep(0.02)
    assert first < process_age() < first + 60
    before = peak_memory()
    filled = np.ones(2**25, np.uint8)
    assert peak_memory() >= max(before, len(filled))
