"""Metrics of an evaluation, and the calibration of confidences.

Each metric is computed for all `resamples` at once, so that its value and its
confidence interval come from one formula.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from train_loop.evaluation.predictions import IMAGES_AT_ONCE, blocks_of

REPLICATES = 500
# Replicates per block, which limits the memory of float64 weights.
REPLICATES_AT_ONCE = 64

# The confidence bins of Guo et al. (2017).
BIN_EDGES = np.linspace(0, 1, 16)
# The range of a temperature; without mistakes the optimum is 0.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 100.0


class Metric(NamedTuple):
    """Title, meaning and format of a metric.

    `largest` is its largest possible value; the smallest is always 0.
    `by_class` is true if classes have equal weights, rather than images.
    """

    title: str
    meaning: str
    largest: float = 1.0
    by_class: bool = False

    def format(self, value, sign=""):
        """Returns a value, or a difference (sign="+"), as text."""
        if np.isnan(value):
            return "–"
        if self.largest > 1:
            return f"{value:{sign}.4f}"
        return f"{100 * value:{sign}.2f} %"

    def format_interval(self, low, high, sign=""):
        """Returns an interval as text, with a single unit."""
        low, high = self.format(low, sign), self.format(high, sign)
        return f"{low.removesuffix(' %')} to {high}"


# In the order of tables and pages.
METRICS = {
    "accuracy": Metric("Accuracy", "the most probable class is correct"),
    "top_5_accuracy": Metric(
        "Top-5 accuracy",
        "the correct class is among the five most probable",
    ),
    "loss": Metric("Loss", "mean cross-entropy in nats", largest=np.inf),
    "mean_class_accuracy": Metric(
        "Mean class accuracy",
        "unweighted mean of the per-class accuracies",
        by_class=True,
    ),
    "macro_f1": Metric(
        "Macro F1", "unweighted mean of the per-class F1 scores", by_class=True
    ),
    "weighted_f1": Metric(
        "Weighted F1", "mean of the per-class F1 scores, weighted by images"
    ),
    "expected_calibration_error": Metric(
        "Expected calibration error",
        "mean absolute difference of confidence and accuracy, in 15 bins",
    ),
    "mean_average_precision": Metric(
        "Mean average precision",
        "mean of the areas under the one-vs-rest precision-recall curves",
        by_class=True,
    ),
    "mean_roc_auc": Metric(
        "Mean ROC-AUC",
        "mean of the areas under the one-vs-rest ROC curves; 50 % is chance",
        by_class=True,
    ),
}


def compute_metrics(predictions, weights, counts, ranking):
    """Computes all metrics of predictions on all `resamples`.

    Means over classes exclude the classes for which a metric is undefined. For
    accuracy, average precision and ROC-AUC, these are classes without examples
    (for ROC-AUC also a class of all examples). For F1, these are classes
    without examples that were never predicted. scikit-learn does the same,
    except that its average precision and ROC-AUC are undefined then.

    Args:
      predictions: `Predictions`.
      weights: the weights of `resamples`.
      counts: the `ClassCounts` for these weights.
      ranking: the `Ranking` for these weights.

    Returns:
      {key of METRICS: float64 [1 + replicates]}.
    """
    images = weights[:, 0].sum()
    by_image = np.stack(
        [predictions.correct, predictions.in_top_5, predictions.losses]
    )
    accuracy, top_5, loss = weighted_sums(by_image, weights) / images
    weighted_f1 = np.nansum(counts.f1 * counts.examples, 0) / images
    return {
        "accuracy": accuracy,
        "top_5_accuracy": top_5,
        "loss": loss,
        "mean_class_accuracy": _mean(counts.accuracies),
        "macro_f1": _mean(counts.f1),
        "weighted_f1": weighted_f1,
        "expected_calibration_error": expected_calibration_errors(
            predictions, weights
        ),
        "mean_average_precision": _mean(ranking.average_precisions),
        "mean_roc_auc": _mean(ranking.roc_aucs),
    }


class ClassCounts(NamedTuple):
    """Numbers of images of each class, [classes, replicates] each."""

    examples: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    @property
    def accuracies(self):
        """Recall of each class; nan without examples."""
        return _ratio(self.correct, self.examples)

    @property
    def precisions(self):
        """Precision of each class; nan if it was never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def f1(self):
        """F1 of each class; nan without examples and predictions."""
        return _ratio(2 * self.correct, self.examples + self.predicted)


def count_classes(predictions, weights):
    """Returns `ClassCounts` of predictions, for all `resamples`."""
    labels, every = predictions.labels, np.arange(len(predictions))
    shape = predictions.num_classes, len(predictions)

    def count(classes, images):
        ones = np.ones(len(images))
        matrix = scipy.sparse.csr_matrix((ones, (classes, images)), shape)
        return weighted_sums(matrix, weights)

    correct = np.flatnonzero(predictions.correct)
    return ClassCounts(
        count(labels, every),
        count(predictions.predicted, every),
        count(labels[correct], correct),
    )


def resamples(count, replicates=REPLICATES):
    """Draws bootstrap samples: `count` images each, with replacement.

    The samples depend on `count` alone, so that the difference of two models
    on the same images is paired.

    Args:
      count: number of images.
      replicates: number of samples.

    Returns:
      How often each image was drawn, [count, 1 + replicates]. The first column
      is all ones, for the images themselves. Each column sums to `count`; the
      dtype is the smallest one that holds this sum.
    """
    random = np.random.default_rng(count)
    dtype = np.min_scalar_type(count)
    weights = np.ones([1 + replicates, count], dtype)
    for row in weights[1:]:
        drawn = random.integers(count, size=count)
        row[:] = np.bincount(drawn, minlength=count)
    return np.ascontiguousarray(weights.T)


def weighted_sums(matrix, weights):
    """Multiplies a dense or sparse matrix [rows, images] by `resamples`."""
    return np.concatenate(
        [
            matrix @ weights[:, columns].astype(float)
            for columns in blocks_of(weights.shape[1], REPLICATES_AT_ONCE)
        ],
        axis=1,
    )


class Reliability(NamedTuple):
    """Count, mean confidence and accuracy of each confidence bin.

    Each is [bins]; confidence and accuracy are nan in empty bins.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray


def reliability(predictions):
    """Returns the `Reliability` of `Predictions`."""
    bins = _bins(predictions)
    counts, confident, correct = (
        np.bincount(bins, values, len(BIN_EDGES) - 1)
        for values in (None, predictions.confidences, predictions.correct)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(counts, confident / counts, correct / counts)


def expected_calibration_errors(predictions, weights):
    """Returns the expected calibration errors, [replicates].

    As in Guo et al. (2017), with 15 bins of equal width.

    Args:
      predictions: `Predictions`.
      weights: the weights of `resamples`.
    """
    gaps = predictions.correct - predictions.confidences
    places = _bins(predictions), np.arange(len(predictions))
    shape = len(BIN_EDGES) - 1, len(predictions)
    matrix = scipy.sparse.csr_matrix((gaps, places), shape)
    return np.abs(weighted_sums(matrix, weights)).sum(0) / weights[:, 0].sum()


def errors_if_calibrated(predictions, replicates=REPLICATES):
    """Draws calibration errors of a perfectly calibrated model.

    Chance alone makes them larger than 0 (consistency resampling, Bröcker and
    Smith, 2007).

    Args:
      predictions: `Predictions`, whose correctness is drawn at random.
      replicates: number of errors.

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
    """Returns the temperature that minimizes the loss of the scaled logits.

    The images must not be those of the evaluation.

    Args:
      logits: float32 [images, classes].
      labels: int [images].

    Returns:
      A float from 0.01 to 100.
    """

    def slope(log_inverse):
        """Derivative of the loss, which is convex in 1 / temperature."""
        total = 0.0
        for rows in blocks_of(len(labels), IMAGES_AT_ONCE):
            block = logits[rows]
            scaled = block * np.float32(np.exp(log_inverse))
            odds = np.exp(scaled - scaled.max(1, keepdims=True))
            expected = (odds * block).sum(1, dtype=float) / odds.sum(1)
            at_label = block[np.arange(len(block)), labels[rows]]
            total += (expected - at_label).sum()
        return total

    low, high = -np.log(LARGEST_TEMPERATURE), -np.log(LEAST_TEMPERATURE)
    if slope(low) >= 0:
        return LARGEST_TEMPERATURE
    if slope(high) <= 0:
        return LEAST_TEMPERATURE
    return float(np.exp(-scipy.optimize.brentq(slope, low, high, xtol=1e-6)))


def _bins(predictions):
    # As in the paper, a bin includes its upper edge.
    return np.searchsorted(BIN_EDGES[1:-1], predictions.confidences)


def _ratio(numbers, wholes):
    undefined = np.full(numbers.shape, np.nan)
    return np.divide(numbers, wholes, out=undefined, where=wholes > 0)


def _mean(by_class):
    """Returns the mean over the classes for which a metric is defined."""
    defined = np.isfinite(by_class).sum(0)
    return _ratio(np.nansum(by_class, axis=0), defined)
