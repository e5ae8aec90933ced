"""Calibration errors by hand, and temperatures that are known."""

import numpy as np
import pytest
import scipy.special
from drawn_predictions import draw_predictions
from sklearn.metrics import log_loss

from train_loop.evaluation.metrics import (
    expected_calibration_errors,
    fit_temperature,
    reliability,
    resamples,
)
from train_loop.evaluation.results import Results


def error_by_hand(confidences, correct):
    """Guo et al., 2017, equation 3, word by word."""
    error = 0
    for m in range(1, 16):
        of_bin = (confidences > (m - 1) / 15) & (confidences <= m / 15)
        if of_bin.any():
            gap = correct[of_bin].mean() - confidences[of_bin].mean()
            error += of_bin.sum() / len(correct) * abs(gap)
    return error


def test_errors_are_those_by_hand():
    predictions = draw_predictions(200, 4)
    weights = resamples(200, 3)
    found = expected_calibration_errors(predictions, weights)
    for column, drawn in enumerate(weights.T):
        images = np.repeat(np.arange(200), drawn)
        assert found[column] == pytest.approx(
            error_by_hand(
                predictions.confidences[images], predictions.correct[images]
            )
        )


def test_bins_hold_their_upper_edges():
    predictions = draw_predictions(3, 2, labels=np.zeros(3, int))
    # Confidences of 0.6, which is an edge, of 1 and a little above 0.6.
    predictions.__dict__["confidences"] = np.array([0.6, 1.0, 0.6001])
    counts = reliability(predictions).counts
    np.testing.assert_array_equal(np.flatnonzero(counts), [8, 9, 14])


def test_reliability_is_measured_bin_by_bin():
    predictions = draw_predictions(500, 3)
    measured = reliability(predictions)
    confidences, correct = predictions.confidences, predictions.correct
    chosen = (confidences > 9 / 15) & (confidences <= 10 / 15)
    assert measured.counts[9] == chosen.sum()
    assert measured.accuracies[9] == pytest.approx(correct[chosen].mean())
    assert measured.confidences[9] == pytest.approx(confidences[chosen].mean())
    # Of three classes, the likeliest has more than a fifth.
    assert measured.counts[0] == 0
    assert np.isnan(measured.accuracies[0])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found(temperature):
    random = np.random.default_rng(0)
    logits = random.normal(size=(5000, 6)) * 2
    odds = scipy.special.softmax(logits, axis=1)
    labels = (odds.cumsum(1) < random.random((5000, 1))).sum(1)
    scaled = (logits * temperature).astype("float32")
    found = fit_temperature(scaled, labels)
    assert found == pytest.approx(temperature, rel=0.06)

    def loss(temperature):
        return log_loss(labels, scipy.special.softmax(scaled / temperature, 1))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_temperatures_have_bounds():
    logits = np.eye(4, dtype="float32")
    assert fit_temperature(logits, np.arange(4)) == 0.01
    assert fit_temperature(logits, np.arange(4)[::-1]) == 100


def test_temperature_mends_calibration():
    logits = draw_predictions(4000, 5).logits * 4
    labels = draw_predictions(4000, 5).labels
    temperature = fit_temperature(logits[:2000], labels[:2000])
    rest = draw_predictions(2000, 5, labels=labels[2000:])
    rest.logits[:] = logits[2000:]
    findings = Results.of(rest, temperature)
    before = findings.estimates["expected_calibration_error"]
    assert findings.tempered_error < before / 3
    np.testing.assert_array_equal(findings.tempered.top_5, rest.top_5)
