"""The best evaluation, and how long ago it was."""

import pytest

from train_loop.training.selection import best_step, evaluations_since_best


def evaluations(metric, values):
    """Returns the records of evaluations, one every ten steps."""
    return [
        {"step": 10 * number, metric: value}
        for number, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("metric", "values", "step", "later"),
    [
        ("accuracy", [0.5, 0.7, 0.6], 20, 1),
        ("loss", [2.0, 1.0, 1.5, 3.0], 20, 2),
        ("ema_accuracy", [0.1, 0.2, 0.3], 30, 0),
        # Equal is not better.
        ("accuracy", [0.5, 0.5, 0.5], 10, 2),
    ],
)
def test_best_evaluation_is_found(metric, values, step, later):
    found = evaluations(metric, values)
    assert best_step(found, metric) == step
    assert evaluations_since_best(found, metric) == later


def test_run_without_evaluations_has_no_best():
    assert best_step([], "loss") is None
    assert evaluations_since_best([], "loss") == 0


@pytest.mark.parametrize(("begin", "later"), [(0, 3), (20, 2), (40, 0)])
def test_evaluations_count_from_a_step_on(begin, later):
    found = evaluations("loss", [1.0, 2.0, 3.0, 1.5])
    assert evaluations_since_best(found, "loss", begin) == later
