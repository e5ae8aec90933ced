"""Intervals, against resampling by hand and by how often they are right."""

import numpy as np
import pytest
from drawn_predictions import draw_predictions
from sklearn import metrics

from train_loop.evaluation.bootstrap import (
    interval,
    resamples,
    weighted_sums,
)
from train_loop.evaluation.findings import Findings


@pytest.mark.parametrize("count", [1, 7, 255, 256, 3000])
def test_as_many_images_are_drawn_as_there_are(count):
    weights = resamples(count, 30)
    assert weights.shape == (count, 31)
    assert (weights[:, 0] == 1).all()
    assert (weights.sum(0) == count).all()
    assert weights.dtype == np.min_scalar_type(count)


def test_every_image_is_drawn_alike():
    weights = resamples(400, 2000)[:, 1:]
    # A binomial distribution's mean and variance.
    assert weights.mean(1) == pytest.approx(np.ones(400), abs=0.1)
    assert weights.var() == pytest.approx(1 - 1 / 400, rel=0.02)


def test_two_models_are_measured_on_the_same_draws():
    np.testing.assert_array_equal(resamples(50, 9), resamples(50, 9))


def test_sums_are_those_of_the_whole_product():
    weights = resamples(40, 150)
    values = np.random.default_rng(0).normal(size=(3, 40))
    np.testing.assert_allclose(
        weighted_sums(values, weights), values @ weights.astype(float)
    )


def test_interval_is_that_of_naive_resampling():
    predictions = draw_predictions(300, 5)
    findings, random = Findings.of(predictions), np.random.default_rng(1)
    scores = predictions.log_probabilities(slice(None)).T
    drawn = {"accuracy": [], "mean_average_precision": []}
    for _ in range(300):
        images = random.integers(300, size=300)
        labels = predictions.labels[images]
        predicted = predictions.predicted[images]
        drawn["accuracy"].append((labels == predicted).mean())
        drawn["mean_average_precision"].append(
            np.mean(
                [
                    metrics.average_precision_score(
                        labels == number, scores[images, number]
                    )
                    for number in range(5)
                ]
            )
        )
    for name, values in drawn.items():
        centre = findings.estimates[name] - np.mean(values)
        expected = np.percentile(values, [2.5, 97.5]) + centre
        width = expected[1] - expected[0]
        found = findings.intervals[name]
        assert found == pytest.approx(expected, abs=0.14 * width), name


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of a net that is right 80 % of the time, on 100 images each."""
    random, weights = np.random.default_rng(0), resamples(100, 300)
    held = 0
    for _ in range(400):
        correct = random.random(100) < 0.8
        [values] = weighted_sums(correct[None], weights) / 100
        low, high = interval(values)
        held += low <= 0.8 <= high
    # The bootstrap's own, for 100 images: a little too narrow.
    assert 0.90 < held / 400 < 0.97


@pytest.mark.parametrize("seed", range(5))
def test_intervals_hold_their_numbers(seed):
    """Also where resampling alone makes everything look worse."""
    random = np.random.default_rng(seed)
    predictions = draw_predictions(60 + seed, 8)
    # Well calibrated: every label is drawn by its probability.
    odds = np.exp(predictions.log_probabilities(slice(None))).T
    predictions.labels[:] = (
        odds.cumsum(1) < random.random((60 + seed, 1))
    ).sum(1)
    findings = Findings.of(predictions)
    for name, (low, high) in findings.intervals.items():
        assert low <= findings.estimates[name] <= high, name
        assert low < high, name
        assert low >= 0, name
        assert high <= 1 or name == "loss"


def test_what_is_not_defined_has_no_interval():
    assert np.isnan(interval(np.array([np.nan, 0.5, 0.6]))).all()
    low, high = interval(np.array([0.5, np.nan, 0.5, 0.5]))
    assert low == high == 0.5
