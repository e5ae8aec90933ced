"""Results of an evaluation: metrics and their confidence intervals."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from train_loop.evaluation.curves import Ranking, rank
from train_loop.evaluation.metrics import (
    METRICS,
    ClassCounts,
    compute_metrics,
    count_classes,
    errors_if_calibrated,
    expected_calibration_errors,
    resamples,
)
from train_loop.evaluation.predictions import Predictions

LEVEL = 0.95
# Upper end of the exact interval for the expected number of mistakes if none
# was observed. The bootstrap cannot see mistakes that no image shows.
UNSEEN = -math.log((1 - LEVEL) / 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """Metrics of a model's predictions, with their confidence intervals.

        results = Results.of(predictions)
        results.estimates["accuracy"], results.intervals["accuracy"]

    Args:
      predictions: `Predictions`.
      values: {key of METRICS: [1 + replicates]}.
      counts: the `ClassCounts` of the predictions.
      ranking: the `Ranking` of the predictions.
      temperature: a temperature that was fitted on other images, or None.
      records: the records of the run's `metrics.jsonl`; empty without a run.
    """

    predictions: Predictions
    values: Mapping[str, np.ndarray]
    counts: ClassCounts
    ranking: Ranking
    temperature: float | None = None
    records: Sequence[Mapping] = ()

    @classmethod
    def of(cls, predictions, temperature=None, records=()):
        """Evaluates `Predictions` of at least one image."""
        weights = resamples(len(predictions))
        counts = count_classes(predictions, weights)
        ranking = rank(predictions, weights)
        values = compute_metrics(predictions, weights, counts, ranking)
        return cls(predictions, values, counts, ranking, temperature, records)

    @property
    def estimates(self):
        """{name: value of the metric, nan if undefined}."""
        return {name: float(drawn[0]) for name, drawn in self.values.items()}

    @functools.cached_property
    def examples(self):
        """Number of images of each class, int [classes]."""
        return self.counts.examples[:, 0].astype(int)

    @functools.cached_property
    def mistake_sizes(self):
        """{name: how much one more mistake would change the metric}.

        For scores from 0 (worst) to 1, it is twice the mean size of the
        observed mistakes, estimated from the variance, and at most the size of
        a mistake with the worst score. (If all mistakes have it, the variance
        of the accuracy is `error * (1 - error) / images`.) For the loss, it is
        at least the loss of a guess. Mistakes cancel out in the calibration
        error, so its variance says nothing about their size.
        """
        present = self.examples[self.examples > 0]
        of_image = 1 / present.sum()
        of_class = (1 / present).mean() / len(present)
        sizes = {}
        for name, metric in METRICS.items():
            sizes[name] = whole = of_class if metric.by_class else of_image
            error = 1 - self.values[name][0]
            variance = error * (1 - error)
            if variance > 0:
                drawn = np.nanvar(self.values[name])
                sizes[name] = min(2 * drawn / variance or whole, whole)
        sizes["expected_calibration_error"] = of_image
        loss = self.values["loss"]
        sizes["loss"] = max(
            2 * loss.var() / loss[0], np.log(len(self.examples)) * of_image
        )
        return sizes

    @functools.cached_property
    def intervals(self):
        """{name: (low, high)}, 95 % confidence intervals.

        They are exact (Clopper-Pearson) for accuracies; for other metrics, see
        `bootstrap_interval`. The interval of the calibration error starts at 0
        if chance alone explains an error of this size.
        """
        predictions = self.predictions
        intervals = {
            name: bootstrap_interval(
                drawn, self.mistake_sizes[name], 0.0, METRICS[name].largest
            )
            for name, drawn in self.values.items()
        }
        for name, right in (
            ("accuracy", predictions.correct),
            ("top_5_accuracy", predictions.in_top_5),
        ):
            intervals[name] = proportion_interval(int(right.sum()), len(right))
        name = "expected_calibration_error"
        chance = np.quantile(errors_if_calibrated(predictions), 0.975)
        if self.estimates[name] <= chance:
            intervals[name] = 0.0, intervals[name][1]
        return intervals

    @functools.cached_property
    def calibrated(self):
        """The predictions, with logits divided by the temperature."""
        logits = self.predictions.logits / np.float32(self.temperature)
        return dataclasses.replace(self.predictions, logits=logits)

    @functools.cached_property
    def calibrated_error(self):
        """The expected calibration error of `calibrated`."""
        once = np.ones([len(self.predictions), 1])
        [error] = expected_calibration_errors(self.calibrated, once)
        return float(error)


def results_summary(results):
    """Returns metrics, intervals and counts as values for JSON.

    Undefined values are None, such as the ROC-AUC of a single class.
    """
    summary = {
        "examples": len(results.predictions),
        "classes": results.predictions.num_classes,
        # Means over classes exclude them, see `compute_metrics`.
        "classes_without_examples": int((results.examples == 0).sum()),
        **{name: json_number(n) for name, n in results.estimates.items()},
        "intervals": {
            name: [json_number(end) for end in ends]
            for name, ends in results.intervals.items()
        },
    }
    if results.temperature is not None:
        summary["with_temperature"] = {
            "temperature": results.temperature,
            "loss": float(results.calibrated.losses.mean()),
            "expected_calibration_error": results.calibrated_error,
        }
    return summary


def evaluation_table(results):
    """Returns a table of the metrics as rows of text, the header first."""
    rows = [["", "value", "95 % interval"]]
    for name, metric in METRICS.items():
        value = metric.format(results.estimates[name])
        ends = metric.format_interval(*results.intervals[name])
        rows.append([metric.title, value, ends])
    rows.append(["Images", f"{len(results.predictions):,}", ""])
    if results.temperature is not None:
        error = f"calibration error with it: {results.calibrated_error:.2%}"
        rows.append(["Temperature", f"{results.temperature:.3f}", error])
    return rows


def json_number(value):
    """Returns a number for JSON, with None in place of nan."""
    return float(value) if np.isfinite(value) else None


def proportion_interval(successes, count):
    """Returns the exact (Clopper-Pearson) interval of a proportion."""
    test = scipy.stats.binomtest(successes, count)
    return tuple(map(float, test.proportion_ci(LEVEL, "exact")))


def bootstrap_interval(values, mistake=0.0, smallest=-np.inf, largest=np.inf):
    """Returns the confidence interval of a metric from its `resamples`.

    It is the percentile interval with two corrections. The bias is subtracted
    twice, because the mean of the replicates differs from the metric as the
    metric differs from the truth. (Repeated images make calibration look worse
    and rankings look better.) Each side is widened for mistakes that are
    too rare to occur among the images.

    Args:
      values: [1 + replicates], the metric itself first. Undefined replicates
        (nan) are excluded.
      mistake: how much one more mistake would change the metric.
      smallest: smallest possible value.
      largest: largest possible value.

    Returns:
      (low, high), which includes the metric; nan if the metric is nan.
    """
    estimate, drawn = values[0], values[1:]
    drawn = drawn[np.isfinite(drawn)]
    if np.isnan(estimate) or not len(drawn):
        return np.nan, np.nan
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    shift = 2 * (drawn.mean() - estimate)
    below = np.hypot(max(estimate - low + shift, 0), UNSEEN * mistake)
    above = np.hypot(max(high - shift - estimate, 0), UNSEEN * mistake)
    return (
        float(max(estimate - below, smallest)),
        float(min(estimate + above, largest)),
    )
