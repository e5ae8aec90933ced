"""The best evaluation, and how long ago it was."""

import pytest

from train_loop.training.selection import best_step, evaluations_since_best


def records(metric, values):
    """Returns the records of a run, evaluated every ten steps."""
    found = []
    for number, value in enumerate(values, start=1):
        # Training's numbers are none of an evaluation's.
        found.append({"step": 10 * number, "split": "train", "loss": -1.0})
        found.append({"step": 10 * number, "split": "eval", metric: value})
    return found


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
    found = records(metric, values)
    assert best_step(found, metric) == step
    assert evaluations_since_best(found, metric) == later


def test_run_without_evaluations_has_no_best():
    found = [{"step": 5, "split": "train", "loss": 1.0}]
    assert best_step(found, "loss") is None
    assert evaluations_since_best(found, "loss") == 0
