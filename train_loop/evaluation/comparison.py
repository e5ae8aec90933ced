"""Comparison of two models on the same images: differences and tests."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats

from train_loop.errors import UserError
from train_loop.evaluation.curves import rank
from train_loop.evaluation.metrics import (
    METRICS,
    compute_metrics,
    count_classes,
)
from train_loop.evaluation.results import (
    Results,
    bootstrap_interval,
    json_number,
)

# Largest p-value of a significant difference.
SIGNIFICANT = 0.05
# Random swaps of the permutation test. With the models themselves these are
# 200, so that p-values are multiples of 0.005 and the test at 0.05 is exact.
SWAPS = 199


class McNemar(NamedTuple):
    """Numbers of images by which model is correct, and McNemar's exact test.

    `p_value` is the probability of a difference between `only_first` and
    `only_second` that is at least as large, if both models are equally good.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The results of two models on the same images.

        comparison = Comparison.of({"run": results, "imagenet": others})

    Args:
      names: names of the two models.
      results: the `Results` of each model.
      facts: {name: (number, number)}, such as "parameters"; None if unknown.
      ranges: {name: (low, high)}, the range of the ratio of a fact that was
        measured several times.
    """

    names: tuple[str, str]
    results: tuple[Results, Results]
    facts: Mapping[str, tuple]
    ranges: Mapping[str, tuple] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, results, facts=None, ranges=None):
        """Compares two models.

        Args:
          results: {name: `Results`} of the two models.
          facts: see the class.
          ranges: see the class.

        Raises:
          UserError: their images, labels or classes differ.
        """
        comparison = cls(
            tuple(results), tuple(results.values()), facts or {}, ranges or {}
        )
        first, second = (each.predictions for each in comparison.results)
        for what, is_same in (
            ("images", list(first.images) == list(second.images)),
            ("labels", np.array_equal(first.labels, second.labels)),
            ("classes", list(first.class_names) == list(second.class_names)),
        ):
            if not is_same:
                raise UserError(
                    f"{' and '.join(comparison.names)}: must have the same "
                    f"{what}. Evaluate both on the same split."
                )
        return comparison

    @functools.cached_property
    def differences(self):
        """{name of a metric: (difference, low, high)}, first minus second.

        The interval includes 0 if the difference is not significant.
        """
        first, second = self.results
        differences = {}
        for name, p_value in self.p_values.items():
            # Paired: both models were evaluated on the same resamples.
            drawn = first.values[name] - second.values[name]
            mistake = 0.0
            if not self._is_of_one_model:
                mistake = max(each.mistake_sizes[name] for each in self.results)
            largest = METRICS[name].largest
            low, high = bootstrap_interval(drawn, mistake, -largest, largest)
            if p_value > SIGNIFICANT:
                low, high = min(low, 0.0), max(high, 0.0)
            differences[name] = float(drawn[0]), low, high
        return differences

    @functools.cached_property
    def p_values(self):
        """{name of a metric: two-sided p-value of a paired test}.

        McNemar's exact test for accuracies; for other metrics, the permutation
        test that swaps the two models' predictions for an image.
        """
        first, second = (each.predictions for each in self.results)
        differences = _swapped_differences(first, second)
        p_values = {n: permutation_test(d) for n, d in differences.items()}
        p_values["accuracy"] = self.mcnemar.p_value
        top_5 = _mcnemar(first.in_top_5, second.in_top_5)
        return p_values | {"top_5_accuracy": top_5.p_value}

    @functools.cached_property
    def mcnemar(self):
        """The `McNemar` test of the two models."""
        return _mcnemar(*(each.predictions.correct for each in self.results))

    @property
    def _is_of_one_model(self):
        """Whether both have the same logits."""
        first, second = (each.predictions.logits for each in self.results)
        return np.array_equal(first, second)

    def only_right(self, which):
        """Returns the images that only one model predicts correctly.

        Args:
          which: index of the model, 0 or 1.

        Returns:
          Indices of the images, by descending difference of the two models'
          probabilities of the label.
        """
        right = self.results[which].predictions
        wrong = self.results[1 - which].predictions
        images = np.flatnonzero(right.correct & ~wrong.correct)
        gaps = np.exp(-right.losses[images]) - np.exp(-wrong.losses[images])
        return images[np.argsort(-gaps, kind="stable")]


def comparison_table(comparison):
    """Returns a table of the comparison as rows of text, the header first."""
    rows = [["", *comparison.names, "difference", "95 % interval", "p-value"]]
    for name, p_value in comparison.p_values.items():
        metric = METRICS[name]
        values = [each.estimates[name] for each in comparison.results]
        difference, *ends = comparison.differences[name]
        rows.append(
            [
                metric.title,
                *map(metric.format, values),
                metric.format(difference, "+"),
                metric.format_interval(*ends, "+"),
                "–" if np.isnan(p_value) else f"{p_value:.3g}",
            ]
        )
    for name, values in comparison.facts.items():
        ratio = ""
        if name in comparison.ranges:
            low, high = comparison.ranges[name]
            ratio = f"x {low:.2f} to {high:.2f}"
        elif None not in values and values[1]:
            ratio = f"x {values[0] / values[1]:.2f}"
        known = ["–" if n is None else f"{n:,.10g}" for n in values]
        rows.append([name, *known, ratio, "", ""])
    return rows


def verdict(comparison):
    """Returns the counts of correct predictions and their test as text."""
    test, names = comparison.mcnemar, comparison.names
    return (
        f"Images with a correct prediction: {test.only_first:,} by "
        f"{names[0]} only, {test.only_second:,} by {names[1]} only, "
        f"{test.both:,} by both, {test.neither:,} by neither. McNemar's exact "
        f"test: p = {test.p_value:.3g}."
    )


def comparison_summary(comparison):
    """Returns a comparison as values for JSON; undefined values are None."""
    results = comparison.results
    measures = {}
    for name, difference in comparison.differences.items():
        difference, *ends = map(json_number, difference)
        measures[name] = {
            "values": [json_number(each.estimates[name]) for each in results],
            "difference": difference,
            "interval": ends,
            "p_value": json_number(comparison.p_values[name]),
        }
    return {
        "models": list(comparison.names),
        "examples": len(results[0].predictions),
        "measures": measures,
        "mcnemar": comparison.mcnemar._asdict(),
        "facts": {name: list(two) for name, two in comparison.facts.items()},
        "ranges": {name: list(two) for name, two in comparison.ranges.items()},
    }


def swaps(count, replicates=SWAPS):
    """Draws random swaps of two models' predictions, image by image.

    If the models are equally good, a swap does not change the distribution of
    their difference: the paired permutation test.

    Args:
      count: number of images.
      replicates: number of random swaps.

    Returns:
      0 (swapped) or 1, [count, 1 + replicates], in the dtype of `resamples`.
      The first column is all ones, for the models themselves.
    """
    random = np.random.default_rng(count)
    chosen = random.integers(2, size=[count, 1 + replicates], dtype=np.uint8)
    chosen[:, 0] = 1
    return chosen.astype(np.min_scalar_type(count), copy=False)


def permutation_test(differences):
    """Returns the two-sided p-value of a difference measured on `swaps`.

    Args:
      differences: [1 + replicates], the difference itself first. Undefined
        replicates (nan) are excluded.
    """
    if np.isnan(differences[0]):
        return np.nan
    sizes = np.abs(differences[np.isfinite(differences)])
    # Tolerates rounding errors of equal sums in another order.
    return float((sizes >= sizes[0] - 1e-12).mean())


def _swapped_differences(first, second):
    """Returns {name of a metric: differences for all `swaps`}."""
    # The pooled predictions contain each image twice; for either role, one of
    # the two counts.
    pooled = dataclasses.replace(
        first,
        logits=np.concatenate([first.logits, second.logits]),
        labels=np.tile(first.labels, 2),
        images=[*first.images, *second.images],
    )
    chosen = swaps(len(first))
    roles = np.block([[chosen, 1 - chosen], [1 - chosen, chosen]])
    counts = count_classes(pooled, roles)
    values = compute_metrics(pooled, roles, counts, rank(pooled, roles))
    return {
        name: np.subtract(*np.split(drawn, 2)) for name, drawn in values.items()
    }


def _mcnemar(first, second):
    """Returns the `McNemar` test of bool [images] of each model."""
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = 1.0
    if sum(alone):
        p_value = float(scipy.stats.binomtest(alone[0], sum(alone)).pvalue)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    return McNemar(both, *alone, neither, p_value)
