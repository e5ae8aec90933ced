"""Findings: all that is known of a model's predictions."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from train_loop.evaluation.bootstrap import (
    interval,
    proportion_interval,
    resamples,
)
from train_loop.evaluation.calibration import (
    errors_if_calibrated,
    expected_calibration_errors,
)
from train_loop.evaluation.measures import (
    MEASURES,
    ClassCounts,
    count_classes,
    measure,
    mistake_sizes,
)
from train_loop.evaluation.predictions import Predictions
from train_loop.evaluation.ranking import Ranking, rank


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """All that is known of a model's predictions.

        findings = Findings.of(predictions)
        findings.estimates["accuracy"], findings.intervals["accuracy"]

    Args:
      predictions: `Predictions`.
      values: {name of a row of MEASURES: [1 + replicates]}.
      counts: the `ClassCounts`.
      ranking: the `Ranking`.
      temperature: that was fitted on other images; None without.
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
        values = measure(predictions, weights, counts, ranking)
        return cls(predictions, values, counts, ranking, temperature, records)

    @property
    def estimates(self):
        """{name: number}, nan where it is not defined."""
        return {name: float(drawn[0]) for name, drawn in self.values.items()}

    @functools.cached_property
    def mistake_sizes(self):
        """{name: how far one more mistake would move the number}."""
        return mistake_sizes(self.values, self.examples)

    @functools.cached_property
    def intervals(self):
        """{name: (low, high)}, 95 % confidence intervals.

        Exact (Clopper-Pearson) for accuracies; for the others, see
        `bootstrap.interval`. That of the calibration error begins at 0 where
        chance alone makes errors as large.
        """
        predictions = self.predictions
        found = {
            name: interval(
                drawn, self.mistake_sizes[name], 0.0, MEASURES[name].largest
            )
            for name, drawn in self.values.items()
        }
        for name, right in (
            ("accuracy", predictions.correct),
            ("top_5_accuracy", predictions.in_top_5),
        ):
            found[name] = proportion_interval(int(right.sum()), len(right))
        name = "expected_calibration_error"
        chance = np.quantile(errors_if_calibrated(predictions), 0.975)
        if self.estimates[name] <= chance:
            found[name] = 0.0, found[name][1]
        return found

    @functools.cached_property
    def examples(self):
        """How many images there are of each class, int [classes]."""
        return self.counts.examples[:, 0].astype(int)

    @functools.cached_property
    def tempered(self):
        """The predictions with their logits divided by the temperature."""
        logits = self.predictions.logits / np.float32(self.temperature)
        return dataclasses.replace(self.predictions, logits=logits)

    @functools.cached_property
    def tempered_error(self):
        """The expected calibration error of `tempered`."""
        themselves = np.ones([len(self.predictions), 1])
        [error] = expected_calibration_errors(self.tempered, themselves)
        return float(error)
