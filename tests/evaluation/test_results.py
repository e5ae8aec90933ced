"""Confidence intervals and their coverage."""

import numpy as np
import pytest
import scipy.stats
from drawn_predictions import draw_predictions

from train_loop.evaluation.curves import rank
from train_loop.evaluation.metrics import (
    METRICS,
    compute_metrics,
    count_classes,
)
from train_loop.evaluation.predictions import Predictions
from train_loop.evaluation.results import (
    Results,
    bootstrap_interval,
    proportion_interval,
)


@pytest.mark.parametrize("probability", [0.5, 0.8, 0.994, 0.999, 1.0])
def test_exact_intervals_have_the_stated_coverage(probability):
    """Sums the probabilities of all outcomes for 360 images."""
    coverage = 0.0
    for right in range(361):
        chance = scipy.stats.binom.pmf(right, 360, probability)
        # Skips improbable outcomes.
        if chance > 1e-6:
            low, high = proportion_interval(right, 360)
            coverage += chance * (low <= probability <= high)
    assert coverage > 0.9499


def test_intervals_without_observed_mistakes_include_some():
    low, high = proportion_interval(360, 360)
    assert (low, high) == pytest.approx((0.025 ** (1 / 360), 1))
    found = Results.of(draw_predictions(360, 10, skill=50))
    for name in set(METRICS) - {"loss", "expected_calibration_error"}:
        assert found.estimates[name] == 1
        # Equal weights of unequal classes widen the interval a little.
        assert found.intervals[name] == pytest.approx((low, 1), abs=2e-3), name
    assert found.intervals["expected_calibration_error"][0] == 0
    assert found.intervals["expected_calibration_error"][1] > 0.01
    assert found.intervals["loss"][1] > 0.02


def calibrated(random, count, classes, skill):
    """Returns perfectly calibrated predictions."""
    labels = random.integers(classes, size=count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += skill
    numbers = range(max(count, classes))
    return Predictions(
        (logits * skill).astype("float32"), labels, numbers[:classes], numbers
    )


@pytest.mark.slow
@pytest.mark.parametrize(("skill", "classes"), [(1.5, 4), (3.0, 12), (4.5, 4)])
def test_intervals_have_the_stated_coverage(skill, classes):
    """For models that are often, mostly and nearly always correct."""
    random, trials = np.random.default_rng(0), 50
    count = 15 * classes
    population = calibrated(random, 20_000, classes, skill)
    once = np.ones([len(population), 1], np.uint16)
    counts = count_classes(population, once)
    truth = compute_metrics(population, once, counts, rank(population, once))
    truth["expected_calibration_error"] = [0.0]
    covered = dict.fromkeys(METRICS, 0)
    for _ in range(trials):
        results = Results.of(calibrated(random, count, classes, skill))
        for name, (low, high) in results.intervals.items():
            covered[name] += low <= truth[name][0] <= high
    for name in METRICS:
        assert covered[name] / trials > 0.88, name


def test_intervals_of_many_small_classes_are_wide_enough():
    """Most of the 300 classes have one to four images."""
    found = Results.of(draw_predictions(600, 300, skill=50))
    present = found.examples[found.examples > 0]
    assert 1 == present.min() < present.max()
    low, _ = found.intervals["mean_class_accuracy"]
    # Images of small classes weigh more, as if there were fewer images.
    effective = len(present) ** 2 / (1 / present).sum()
    assert effective < 500
    assert low == pytest.approx(1 + np.log(0.025) / effective)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_include_the_metric(seed):
    """Also if resampling alone makes the metric worse."""
    random = np.random.default_rng(seed)
    predictions = draw_predictions(60 + seed, 8)
    # Perfectly calibrated: labels are drawn from the probabilities.
    odds = np.exp(predictions.log_probabilities(slice(None))).T
    predictions.labels[:] = (
        odds.cumsum(1) < random.random((60 + seed, 1))
    ).sum(1)
    results = Results.of(predictions)
    for name, (low, high) in results.intervals.items():
        assert low <= results.estimates[name] <= high, name
        assert low < high, name
        assert low >= 0, name
        assert high <= 1 or name == "loss"


def test_interval_is_corrected_for_bias_and_widened():
    drawn = np.linspace(0.3, 0.7, 401)
    # The mean of the replicates is 0.05 too high, and so is the metric.
    low, high = bootstrap_interval(np.append(0.45, drawn))
    assert (low, high) == pytest.approx((0.31 - 0.1, 0.69 - 0.1))
    mistake = 0.1 / -np.log(0.025)
    found = bootstrap_interval(np.append(0.45, drawn), mistake)
    expected = 0.45 - np.hypot(0.24, 0.1), 0.45 + np.hypot(0.14, 0.1)
    assert found == pytest.approx(expected)
    found = bootstrap_interval(np.append(0.45, drawn), mistake, 0.3, 0.5)
    assert found == (0.3, 0.5)
    # The interval includes the metric, however large the bias.
    assert bootstrap_interval(np.append(0.1, drawn))[1] == 0.1


def test_undefined_metrics_have_no_interval():
    assert np.isnan(bootstrap_interval(np.array([np.nan, 0.5, 0.6]))).all()
    low, high = bootstrap_interval(np.array([0.5, np.nan, 0.5, 0.5]))
    assert low == high == 0.5
