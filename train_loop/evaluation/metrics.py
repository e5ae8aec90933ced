"""The metrics of an evaluation, and how well confidences are calibrated.

All are computed for all `resamples` at once, so that a metric and its
confidence interval come from one formula.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from train_loop.evaluation.predictions import IMAGES_AT_ONCE, blocks_of

REPLICATES = 500
# Replicates that are converted to float64 at once.
REPLICATES_AT_ONCE = 64

# The bins of confidence, as Guo et al. (2017) have them.
BIN_EDGES = np.linspace(0, 1, 16)
# The range of a temperature: a model without mistakes wants 0.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 100.0


class Metric(NamedTuple):
    """How a metric is presented to people.

    `largest` is its largest possible value; the smallest is always 0.
    `by_class` means that every class counts alike, not every image.
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
        """Returns an interval as text, with its unit once."""
        low, high = self.format(low, sign), self.format(high, sign)
        return f"{low.removesuffix(' %')} to {high}"


# In the order in which they are shown.
METRICS = {
    "accuracy": Metric("Accuracy", "the likeliest class is the right one"),
    "top_5_accuracy": Metric(
        "Top-5 accuracy", "the right class is among the five likeliest"
    ),
    "loss": Metric("Loss", "mean cross entropy, in nats", largest=np.inf),
    "mean_class_accuracy": Metric(
        "Mean class accuracy",
        "accuracy, with every class counting alike",
        by_class=True,
    ),
    "macro_f1": Metric("Macro F1", "mean over classes", by_class=True),
    "weighted_f1": Metric("Weighted F1", "mean over classes by their images"),
    "expected_calibration_error": Metric(
        "Expected calibration error",
        "how far confidence is from accuracy, in 15 bins",
    ),
    "mean_average_precision": Metric(
        "Mean average precision",
        "area below precision and recall, by class",
        by_class=True,
    ),
    "mean_roc_auc": Metric(
        "Mean ROC-AUC",
        "each class against the rest; 50 % is chance",
        by_class=True,
    ),
}


def compute_metrics(predictions, weights, counts, ranking):
    """Computes all metrics of predictions on all `resamples`.

    Means over classes skip those for which a metric is not defined: for
    accuracy, average precision and ROC-AUC those without examples (and for
    ROC-AUC one that all examples belong to), for F1 those without examples
    that were never predicted. scikit-learn does the same, or, for average
    precision and ROC-AUC, returns nothing.

    Args:
      predictions: `Predictions`.
      weights: of `resamples`.
      counts: their `ClassCounts`.
      ranking: their `Ranking`.

    Returns:
      {name of an entry of METRICS: float64 [1 + replicates]}.
    """
    images = weights[:, 0].sum()
    of_images = np.stack(
        [predictions.correct, predictions.in_top_5, predictions.losses]
    )
    accuracy, top_5, loss = weighted_sums(of_images, weights) / images
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
        """Recalls; nan for classes without examples."""
        return _ratio(self.correct, self.examples)

    @property
    def precisions(self):
        """nan for classes that were never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def f1(self):
        """nan for classes without examples that were never predicted."""
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
    """Draws bootstrap samples: as many images as there are, with replacement.

    They depend on `count` alone, so that two models are measured on the same
    samples of the same images, and their difference is paired.

    Args:
      count: of the images.
      replicates: number of samples.

    Returns:
      How often each image was drawn, [count, 1 + replicates]; the first column
      is all ones, the images themselves. Every column sums to `count`, and the
      dtype is the smallest one that holds that.
    """
    random = np.random.default_rng(count)
    dtype = np.min_scalar_type(count)
    weights = np.ones([1 + replicates, count], dtype)
    for row in weights[1:]:
        drawn = random.integers(count, size=count)
        row[:] = np.bincount(drawn, minlength=count)
    return np.ascontiguousarray(weights.T)


def weighted_sums(matrix, weights):
    """Multiplies a matrix [rows, images], sparse or not, by `resamples`."""
    return np.concatenate(
        [
            matrix @ weights[:, columns].astype(float)
            for columns in blocks_of(weights.shape[1], REPLICATES_AT_ONCE)
        ],
        axis=1,
    )


class Reliability(NamedTuple):
    """Counts, confidence and accuracy of predictions by bins of confidence.

    Each is [bins]; mean confidence and accuracy are nan in empty bins.
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
    """Returns the mean distance of confidence and accuracy, [replicates].

    In 15 bins of equal width, as Guo et al. (2017) have it.

    Args:
      predictions: `Predictions`.
      weights: of `resamples`.
    """
    gaps = predictions.correct - predictions.confidences
    places = _bins(predictions), np.arange(len(predictions))
    shape = len(BIN_EDGES) - 1, len(predictions)
    matrix = scipy.sparse.csr_matrix((gaps, places), shape)
    return np.abs(weighted_sums(matrix, weights)).sum(0) / weights[:, 0].sum()


def errors_if_calibrated(predictions, replicates=REPLICATES):
    """Draws calibration errors of a model whose confidences are all true.

    Chance alone makes them larger than 0 (consistency resampling, Bröcker and
    Smith, 2007).

    Args:
      predictions: `Predictions`; whether each is correct is drawn anew.
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
    """Returns the temperature that minimizes the loss of logits divided by it.

    To be fitted on other images than those that are measured.

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
    # As in the paper, a bin holds its upper edge.
    return np.searchsorted(BIN_EDGES[1:-1], predictions.confidences)


def _ratio(numbers, wholes):
    undefined = np.full(numbers.shape, np.nan)
    return np.divide(numbers, wholes, out=undefined, where=wholes > 0)


def _mean(of_classes):
    """Averages over the classes for which a metric is defined."""
    defined = np.isfinite(of_classes).sum(0)
    return _ratio(np.nansum(of_classes, axis=0), defined)
