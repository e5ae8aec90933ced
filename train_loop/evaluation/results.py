"""The results of an evaluation: metrics with their confidence intervals."""

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
# Upper end of the exact interval for the number of expected mistakes where
# none was seen. The bootstrap does not know of what no image shows.
UNSEEN = -math.log((1 - LEVEL) / 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """Metrics of a model's predictions, their intervals, and all behind them.

        results = Results.of(predictions)
        results.estimates["accuracy"], results.intervals["accuracy"]

    Args:
      predictions: `Predictions`.
      values: {name of an entry of METRICS: [1 + replicates]}.
      counts: the `ClassCounts`.
      ranking: the `Ranking`.
      temperature: fitted on other images; None without.
      records: of the run's `metrics.jsonl`; none without a run.
    """

    predictions: Predictions
    values: Mapping[str, np.ndarray]
    counts: ClassCounts
    ranking: Ranking
    temperature: float | None = None
    records: Sequence[Mapping] = ()

    @classmethod
    def of(cls, predictions, temperature=None, records=()):
        """Measures `Predictions` of at least one image."""
        weights = resamples(len(predictions))
        counts = count_classes(predictions, weights)
        ranking = rank(predictions, weights)
        values = compute_metrics(predictions, weights, counts, ranking)
        return cls(predictions, values, counts, ranking, temperature, records)

    @property
    def estimates(self):
        """{name: metric}, nan where it is not defined."""
        return {name: float(drawn[0]) for name, drawn in self.values.items()}

    @functools.cached_property
    def examples(self):
        """Number of images of each class, int [classes]."""
        return self.counts.examples[:, 0].astype(int)

    @functools.cached_property
    def mistake_sizes(self):
        """{name: how far one more mistake would move the metric}.

        For scores from 0 (worst) to 1, that is twice the mean size of the
        mistakes that were made, estimated from the variance. It is at most
        that of an image with the worst score: with such images alone,
        accuracy's variance is `error * (1 - error) / images`. One more mistake
        adds at least the loss of a guess. Mistakes that calibration errors
        contain cancel each other, and tell nothing.
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

        Exact (Clopper-Pearson) for accuracies; for the others, see
        `bootstrap_interval`. That of the calibration error begins at 0 where
        chance alone makes errors as large.
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
        """The predictions with their logits divided by the temperature."""
        logits = self.predictions.logits / np.float32(self.temperature)
        return dataclasses.replace(self.predictions, logits=logits)

    @functools.cached_property
    def calibrated_error(self):
        """The expected calibration error of `calibrated`."""
        themselves = np.ones([len(self.predictions), 1])
        [error] = expected_calibration_errors(self.calibrated, themselves)
        return float(error)


def results_summary(results):
    """Returns metrics, intervals and counts as values for JSON.

    What is not defined is None: areas below curves where all examples are of
    one class.
    """
    summary = {
        "examples": len(results.predictions),
        "classes": results.predictions.num_classes,
        # Means over classes skip them; see `compute_metrics`.
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
    """Returns the rows of a table as strings, the header first."""
    rows = [["", "value", "95 % interval"]]
    for name, metric in METRICS.items():
        value = metric.format(results.estimates[name])
        ends = metric.format_interval(*results.intervals[name])
        rows.append([metric.title, value, ends])
    rows.append(["Images", f"{len(results.predictions):,}", ""])
    if results.temperature is not None:
        error = f"calibration error {results.calibrated_error:.2%} with it"
        rows.append(["Temperature", f"{results.temperature:.3f}", error])
    return rows


def json_number(value):
    """Returns a number for JSON, which has no nan."""
    return float(value) if np.isfinite(value) else None


def proportion_interval(successes, count):
    """Returns the exact (Clopper-Pearson) interval of a proportion."""
    test = scipy.stats.binomtest(successes, count)
    return tuple(map(float, test.proportion_ci(LEVEL, "exact")))


def bootstrap_interval(values, mistake=0.0, smallest=-np.inf, largest=np.inf):
    """Returns the confidence interval of a metric measured on `resamples`.

    That of the percentiles, corrected twice for bias: the mean of the
    replicates differs from the metric as the metric differs from the truth.
    (Drawing images twice makes models look worse calibrated and scores better
    ranked than they are.) Each side is widened by what the images do not show:
    mistakes rarer than one in a third of them.

    Args:
      values: [1 + replicates], the metric itself first. Replicates in which it
        is not defined (nan) are skipped.
      mistake: how far one more mistake would move the metric.
      smallest: possible value.
      largest: possible value.

    Returns:
      (low, high), floats; nan where the metric is. The metric lies between.
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
