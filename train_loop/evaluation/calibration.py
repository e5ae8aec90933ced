"""Whether a model's confidence is to be believed, and how it is mended."""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from train_loop.evaluation.bootstrap import REPLICATES, weighted_sums
from train_loop.evaluation.predictions import BLOCK, blocks_of

EDGES = np.linspace(0, 1, 16)

# What a temperature may be: nets without mistakes want 0.
COLDEST, HOTTEST = 0.01, 100.0


class Reliability(NamedTuple):
    """What became of predictions of like confidence, bin by bin.

    Each is [bins]; mean confidence and accuracy are nan in empty bins.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray


def reliability(predictions):
    """Returns the `Reliability` of `Predictions`."""
    bins = _bins(predictions)
    counts, confident, correct = (
        np.bincount(bins, values, len(EDGES) - 1)
        for values in (None, predictions.confidences, predictions.correct)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(counts, confident / counts, correct / counts)


def expected_calibration_errors(predictions, weights):
    """Returns the mean distance of confidence and accuracy, [replicates].

    In 15 bins of equal width, as Guo et al. (2017) have it.

    Args:
      predictions: `Predictions`.
      weights: of `resamples`.
    """
    gaps = predictions.correct - predictions.confidences
    places = _bins(predictions), np.arange(len(predictions))
    shape = len(EDGES) - 1, len(predictions)
    matrix = scipy.sparse.csr_matrix((gaps, places), shape)
    return np.abs(weighted_sums(matrix, weights)).sum(0) / weights[:, 0].sum()


def errors_if_calibrated(predictions, replicates=REPLICATES):
    """Draws calibration errors of a model whose confidences are all true.

    Chance alone makes them larger than 0 (consistency resampling, Bröcker and
    Smith, 2007).

    Args:
      predictions: `Predictions`; whether each is correct is drawn anew.
      replicates: how often.

    Returns:
      float64 [replicates].
    """
    random = np.random.default_rng(len(predictions))
    bins, confidences = _bins(predictions), predictions.confidences
    errors = np.empty(replicates)
    for number in range(replicates):
        correct = random.random(len(bins)) < confidences
        gaps = np.bincount(bins, correct - confidences)
        errors[number] = np.abs(gaps).sum() / len(bins)
    return errors


def fit_temperature(logits, labels):
    """Returns by which number to divide logits for the smallest loss.

    To be fitted on other images than those that are measured.

    Args:
      logits: float32 [images, classes].
      labels: int [images].

    Returns:
      A float from 0.01 to 100.
    """

    def slope(log_inverse):
        """The loss is convex in the inverse temperature; this is its slope."""
        total = 0.0
        for rows in blocks_of(len(labels), BLOCK):
            block = logits[rows]
            scaled = block * np.float32(np.exp(log_inverse))
            odds = np.exp(scaled - scaled.max(1, keepdims=True))
            expected = (odds * block).sum(1, dtype=float) / odds.sum(1)
            at_label = block[np.arange(len(block)), labels[rows]]
            total += (expected - at_label).sum()
        return total

    low, high = -np.log(HOTTEST), -np.log(COLDEST)
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return float(np.exp(-scipy.optimize.brentq(slope, low, high, xtol=1e-6)))


def _bins(predictions):
    # As the paper has it, a bin holds its upper edge.
    return np.searchsorted(EDGES[1:-1], predictions.confidences)
