"""Comparison of two models on the same images: tests and differences."""

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

# A difference is marked where its p-value is not larger.
SIGNIFICANT = 0.05
# With the models as they are, 200: p-values are multiples of 0.005, and the
# test at 0.05 is exact.
SWAPS = 199


class McNemar(NamedTuple):
    """How many images each model is right on, and McNemar's exact test.

    `p_value` is the probability of a difference as large between
    `only_first` and `only_second`, if both models were right equally often.
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
      names: of the two models.
      results: the `Results` of each.
      facts: {name: (number, number)}, such as "parameters"; None where one is
        not known.
      ranges: {name: (low, high)}, of the ratio of a fact that was measured
        several times.
    """

    names: tuple[str, str]
    results: tuple[Results, Results]
    facts: Mapping[str, tuple]
    ranges: Mapping[str, tuple] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, results, facts=None, ranges=None):
        """Compares two models.

        Args:
          results: {name: `Results`} of the two.
          facts: see the class.
          ranges: see the class.

        Raises:
          UserError: their images, labels or classes differ.
        """
        comparison = cls(
            tuple(results), tuple(results.values()), facts or {}, ranges or {}
        )
        first, second = (each.predictions for each in comparison.results)
        for what, same in (
            ("images", list(first.images) == list(second.images)),
            ("labels", np.array_equal(first.labels, second.labels)),
            ("classes", list(first.class_names) == list(second.class_names)),
        ):
            if not same:
                raise UserError(
                    f"{' and '.join(comparison.names)} were measured on "
                    f"different {what}; measure both on the same split"
                )
        return comparison

    @functools.cached_property
    def differences(self):
        """{name of a metric: (difference, low, high)}, first minus second.

        The interval holds 0 wherever the test of `p_values` rejects nothing.
        """
        first, second = self.results
        differences = {}
        for name, p_value in self.p_values.items():
            # Both were measured on the same resamples.
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

        McNemar's exact test for accuracies; for the others the permutation
        test that swaps the models' predictions of images.
        """
        first, second = (each.predictions for each in self.results)
        differences = _swapped_differences(first, second)
        p_values = {n: permutation_test(d) for n, d in differences.items()}
        p_values["accuracy"] = self.mcnemar.p_value
        top_5 = _mcnemar(first.in_top_5, second.in_top_5)
        return p_values | {"top_5_accuracy": top_5.p_value}

    @functools.cached_property
    def mcnemar(self):
        """The `McNemar` test of the two."""
        return _mcnemar(*(each.predictions.correct for each in self.results))

    @property
    def _is_of_one_model(self):
        """Whether the two have the same logits."""
        first, second = (each.predictions.logits for each in self.results)
        return np.array_equal(first, second)

    def only_right(self, which):
        """Returns the images that only one model gets right.

        Args:
          which: 0 or 1.

        Returns:
          Their numbers; first those whose labels it finds so much more
          probable than the other model does.
        """
        right = self.results[which].predictions
        wrong = self.results[1 - which].predictions
        images = np.flatnonzero(right.correct & ~wrong.correct)
        gaps = np.exp(-right.losses[images]) - np.exp(-wrong.losses[images])
        return images[np.argsort(-gaps, kind="stable")]


def comparison_table(comparison):
    """Returns the rows of a table as strings, the header first."""
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
    """Tells in a sentence whether the two are right equally often."""
    test, names = comparison.mcnemar, comparison.names
    return (
        f"Only {names[0]} is right on {test.only_first:,} images, only "
        f"{names[1]} on {test.only_second:,}, both on {test.both:,}, neither "
        f"on {test.neither:,}; McNemar's exact test: p = {test.p_value:.3g}."
    )


def comparison_summary(comparison):
    """Returns a comparison as values for JSON; None is not defined."""
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
    """Draws for each image which of two models predicts it in which role.

    If the models are equally good, swapping their predictions of an image
    changes nothing but chance: the paired permutation test.

    Args:
      count: of the images.
      replicates: number of draws.

    Returns:
      0 or 1, [count, 1 + replicates], in the dtype of `resamples`; the first
      column is all ones, the models in their own roles.
    """
    random = np.random.default_rng(count)
    chosen = random.integers(2, size=[count, 1 + replicates], dtype=np.uint8)
    chosen[:, 0] = 1
    return chosen.astype(np.min_scalar_type(count), copy=False)


def permutation_test(differences):
    """Returns the two-sided p-value of a difference measured on `swaps`.

    Args:
      differences: [1 + replicates], the difference itself first. Replicates in
        which it is not defined (nan) are skipped.
    """
    if np.isnan(differences[0]):
        return np.nan
    sizes = np.abs(differences[np.isfinite(differences)])
    # Equal sums, added up in another order.
    return float((sizes >= sizes[0] - 1e-12).mean())


def _swapped_differences(first, second):
    """Returns {name of a metric: differences, measured on `swaps`}."""
    # Each image stands there twice, and counts once for either role.
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
    """Returns the `McNemar` test of two models; bool [images] each."""
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = 1.0
    if sum(alone):
        p_value = float(scipy.stats.binomtest(alone[0], sum(alone)).pvalue)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    return McNemar(both, *alone, neither, p_value)
