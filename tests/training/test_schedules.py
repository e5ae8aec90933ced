"""Learning rates, step by step, against plain formulas."""

import math

import numpy as np
import pytest
import tensorflow as tf

from train_loop.errors import UserError
from train_loop.training.schedules import (
    SCHEDULES,
    Schedule,
    TwoPhases,
    schedule_usage,
)

RATE, WARMUP, STEPS, PER_EPOCH = 0.4, 10, 50, 5.5


def rates(text, warmup=WARMUP, steps=STEPS):
    return Schedule.parse(text).rates(RATE, warmup, steps, PER_EPOCH)


def falling(step):
    """Returns the finished fraction of the steps after the warm-up."""
    return min((step - WARMUP) / (STEPS - WARMUP), 1)


def cycle(step, rise, start):
    rises = rise * (STEPS - WARMUP)
    done = step - WARMUP
    if done < rises:
        return start + (1 - start) * done / rises
    rest = min((done - rises) / (STEPS - WARMUP - rises), 1)
    return (1 + math.cos(math.pi * rest)) / 2


# Text -> step after the warm-up -> fraction of the peak learning rate.
FORMULAS = {
    "constant": lambda step: 1,
    "cosine": lambda step: (1 + math.cos(math.pi * falling(step))) / 2,
    "cosine:0.2": lambda step: (
        0.2 + 0.8 * (1 + math.cos(math.pi * falling(step))) / 2
    ),
    "step": lambda step: 1,  # It is over before the 30th epoch.
    "step:0.1:2:4:8": lambda step: (
        0.1 ** ((step >= 11) + (step >= 22) + (step >= 44))
    ),
    # In any order; the third of them is the 16.5th step, the first is over.
    "step:0.5:3:1": lambda step: 0.5 ** (1 + (step >= 17)),
    "polynomial": lambda step: (1 - falling(step)) ** 2,
    "polynomial:1:0.1": lambda step: 0.1 + 0.9 * (1 - falling(step)),
    "exponential": lambda step: 0.97 ** ((step - WARMUP) / PER_EPOCH / 2.4),
    "exponential:0.5:1": lambda step: 0.5 ** ((step - WARMUP) / PER_EPOCH),
    "one_cycle": lambda step: cycle(step, 0.3, 0.04),
    "one_cycle:0.5:0": lambda step: cycle(step, 0.5, 0.0),
    "one_cycle:0": lambda step: cycle(step, 0, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", FORMULAS)
def test_learning_rates_follow_the_formula(text):
    schedule = rates(text)
    steps = range(WARMUP, STEPS + 3)
    expected = [RATE * FORMULAS[text](step) for step in steps]
    values = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


def test_every_schedule_has_a_formula():
    assert {text.partition(":")[0] for text in FORMULAS} == {*SCHEDULES}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_warm_up_linearly(name):
    schedule = rates(name)
    first = float(schedule(WARMUP))
    assert first > 0
    values = [float(schedule(step)) for step in range(WARMUP + 1)]
    np.testing.assert_allclose(values, np.linspace(0, first, 11), atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_work_without_warm_up(name):
    later = rates(name, warmup=0, steps=STEPS - WARMUP)
    # Epochs of some schedules count from the start of the run.
    if name != "step":
        assert float(later(0)) == pytest.approx(float(rates(name)(WARMUP)))
    assert float(later(0)) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_run_may_end_during_warm_up(name):
    schedule = rates(name, warmup=10, steps=5)
    first = float(schedule(10))
    values = [float(schedule(step)) for step in range(6)]
    np.testing.assert_allclose(values, np.linspace(0, first / 2, 6), atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_round_trip_through_their_config(name):
    schedule = rates(name)
    schedules = tf.keras.optimizers.schedules
    clone = schedules.deserialize(schedules.serialize(schedule))
    for step in (0, 5, 10, 40):
        assert float(clone(step)) == float(schedule(step))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("cosine", "cosine"),
        ("cosine:0", "cosine:0.0"),
        (" step:0.2:60:120", "step:0.2:60.0:120.0"),
    ],
)
def test_schedules_round_trip_through_text(text, canonical):
    schedule = Schedule.parse(text)
    assert str(schedule) == canonical
    assert Schedule.parse(canonical) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "Did you mean cosine"),
        ("step:30:60:80", "factor=30.0: must be between 0 and 1"),
        ("step:0.1:30:x", "epoch=x must be a number"),
        ("step:0.1:-1", "epoch=-1.0: must be at least 0"),
        ("cosine:0:1", "too many numbers .2.. Use cosine:END"),
        ("constant:1", "Use constant; trailing"),
    ],
)
def test_invalid_schedules_are_one_clear_line(text, message):
    with pytest.raises(UserError, match=message):
        Schedule.parse(text)


def test_usage_lists_the_numbers():
    assert schedule_usage("step") == "step:FACTOR:EPOCH:EPOCH... (0.1)"
    assert schedule_usage("polynomial") == "polynomial:POWER:END (2:0)"


def test_step_epochs_before_a_second_phase_do_not_lower_its_learning_rate():
    def second(text):
        schedule = Schedule.parse(text).rates(RATE, 2, 22, PER_EPOCH, begun=33)
        return [float(schedule(step)) for step in range(2, 22)]

    # The eighth epoch begins at step 44 of the run, the 11th of the phase.
    expected = [RATE] * 9 + [0.1 * RATE] * 11
    np.testing.assert_allclose(second("step:0.1:6:8:4"), expected, rtol=1e-6)
    np.testing.assert_allclose(second("step:0.1:6:4"), RATE, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_second_phase_restarts_the_schedule(name):
    first = rates(name, warmup=2, steps=6)
    second = rates(name, warmup=3, steps=8)
    schedule = TwoPhases(first, second, 6)
    schedules = tf.keras.optimizers.schedules
    schedule = schedules.deserialize(schedules.serialize(schedule))
    values = [float(schedule(step)) for step in range(14)]
    assert values[:6] == [float(first(step)) for step in range(6)]
    assert values[6:] == [float(second(step)) for step in range(8)]
