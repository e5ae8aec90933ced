"""The numbers that an evaluation comes down to.

Each is computed for all `resamples` at once, so that a number and the numbers
of its interval come from one formula.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from train_loop.evaluation.bootstrap import weighted_sums
from train_loop.evaluation.calibration import expected_calibration_errors


class Measure(NamedTuple):
    """How a number is presented to people.

    `largest` is the most that it can be; the least is always 0. `by_class`
    says that every class counts alike, not every image.
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
        """Returns an interval, its unit named once."""
        low, high = self.format(low, sign), self.format(high, sign)
        return f"{low.removesuffix(' %')} to {high}"


# In the order in which they are shown.
MEASURES = {
    "accuracy": Measure("Accuracy", "the likeliest class is the right one"),
    "top_5_accuracy": Measure(
        "Top-5 accuracy", "the right class is among the five likeliest"
    ),
    "loss": Measure("Loss", "mean cross entropy, in nats", largest=np.inf),
    "mean_class_accuracy": Measure(
        "Mean class accuracy",
        "accuracy, with every class counting alike",
        by_class=True,
    ),
    "macro_f1": Measure("Macro F1", "mean over classes", by_class=True),
    "weighted_f1": Measure("Weighted F1", "mean over classes by their images"),
    "expected_calibration_error": Measure(
        "Expected calibration error",
        "how far confidence is from accuracy, in 15 bins",
    ),
    "mean_average_precision": Measure(
        "Mean average precision",
        "area below precision and recall, by class",
        by_class=True,
    ),
    "mean_roc_auc": Measure(
        "Mean ROC-AUC",
        "each class against the rest; 50 % is chance",
        by_class=True,
    ),
}


class ClassCounts(NamedTuple):
    """How many images there are of each class, [classes, replicates] each."""

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


def measure(predictions, weights, counts, ranking):
    """Measures predictions on all `resamples`.

    Means over classes leave out those for which a number is not defined: for
    accuracy, average precision and ROC-AUC those without examples (and for
    ROC-AUC one that all examples belong to), for F1 those without examples
    that were never predicted. scikit-learn does the same, or, for average
    precision and ROC-AUC, has no answer.

    Args:
      predictions: `Predictions`.
      weights: of `resamples`.
      counts: their `ClassCounts`.
      ranking: their `Ranking`.

    Returns:
      {name of a row of MEASURES: float64 [1 + replicates]}.
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


def mistake_sizes(values, examples):
    """Returns how far one more mistake would move each number.

    For scores from 0 (worst) to 1, that is twice the mean size of the mistakes
    that were made, estimated from the variance. It is at most that of an image
    with the worst score: with such images alone, accuracy's variance is
    `error * (1 - error) / images`. One more mistake adds at least the loss of
    a guess. Mistakes that calibration errors contain cancel each other, and
    tell nothing.

    Args:
      values: of `measure`, for `resamples`.
      examples: int [classes].

    Returns:
      {name of a row of MEASURES: float}.
    """
    present = examples[examples > 0]
    of_image = 1 / present.sum()
    of_class = (1 / present).mean() / len(present)
    sizes = {}
    for name, row in MEASURES.items():
        sizes[name] = whole = of_class if row.by_class else of_image
        error = 1 - values[name][0]
        variance = error * (1 - error)
        if variance > 0:
            drawn = np.nanvar(values[name])
            sizes[name] = min(2 * drawn / variance or whole, whole)
    sizes["expected_calibration_error"] = of_image
    loss = values["loss"]
    sizes["loss"] = max(
        2 * loss.var() / loss[0], np.log(len(examples)) * of_image
    )
    return sizes


def _ratio(numbers, wholes):
    undefined = np.full(numbers.shape, np.nan)
    return np.divide(numbers, wholes, out=undefined, where=wholes > 0)


def _mean(of_classes):
    """Averages over the classes for which there is a number."""
    defined = np.isfinite(of_classes).sum(0)
    return _ratio(np.nansum(of_classes, axis=0), defined)
