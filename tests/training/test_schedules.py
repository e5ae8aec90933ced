"""Learning rates, step by step, against plain formulas."""

import math

import numpy as np
import pytest

from train_loop.training.schedules import SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_warm_up_linearly(name):
    schedule = SCHEDULES[name](0.4, warmup_steps=10, steps=50)
    rates = [float(schedule(step)) for step in range(11)]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, 11), atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_can_do_without_warm_up(name):
    schedule = SCHEDULES[name](0.4, warmup_steps=0, steps=50)
    assert float(schedule(0)) == pytest.approx(0.4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_run_may_end_while_it_warms_up(name):
    schedule = SCHEDULES[name](0.4, warmup_steps=10, steps=5)
    rates = [float(schedule(step)) for step in range(6)]
    np.testing.assert_allclose(rates, np.linspace(0, 0.2, 6), atol=1e-7)


def test_cosine_ends_at_zero():
    schedule = SCHEDULES["cosine"](0.4, warmup_steps=10, steps=50)
    for step in (10, 20, 30, 50):
        expected = 0.2 * (1 + math.cos(math.pi * (step - 10) / 40))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


def test_constant_stays():
    schedule = SCHEDULES["constant"](0.4, warmup_steps=10, steps=50)
    assert float(schedule(49)) == pytest.approx(0.4)
