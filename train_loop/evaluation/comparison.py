"""Two models on the same images: which one is better, and where."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats

from train_loop.errors import UserError
from train_loop.evaluation import page
from train_loop.evaluation.bootstrap import (
    interval,
    permutation_test,
    swaps,
)
from train_loop.evaluation.findings import Findings
from train_loop.evaluation.folders import number, replacing, write_json
from train_loop.evaluation.measures import MEASURES, count_classes, measure
from train_loop.evaluation.ranking import rank

# How many disagreements of a kind the page shows.
SHOWN = 24

# A difference is marked where its p-value is not larger.
SIGNIFICANT = 0.05

INTERVALS = (
    "The difference is the first model minus the second, with its 95 % "
    "confidence interval. A p-value is the probability of a difference at "
    "least as large between two equally good models: McNemar's exact test for "
    "accuracies, a paired permutation test for the other metrics. Bold: p is "
    f"at most {SIGNIFICANT}."
)


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
    """What two models make of the same images.

        comparison = Comparison.of({"run": findings, "imagenet": others})

    Args:
      names: of the two.
      findings: the `Findings` of each.
      facts: {what: (number, number)}, such as "parameters"; None where one is
        not known.
      ranges: {what: (low, high)}, of the ratio of a fact that was measured
        several times: what it was in each.
    """

    names: tuple[str, str]
    findings: tuple[Findings, Findings]
    facts: Mapping[str, tuple]
    ranges: Mapping[str, tuple] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, findings, facts=None, ranges=None):
        """Compares two models.

        Args:
          findings: {name: `Findings`} of the two.
          facts: see the class.
          ranges: see the class.

        Raises:
          UserError: they are of other images, labels or classes.
        """
        comparison = cls(
            tuple(findings), tuple(findings.values()), facts or {}, ranges or {}
        )
        first, second = (each.predictions for each in comparison.findings)
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
        """{name of a measure: (difference, low, high)}, first less second.

        The interval holds 0 wherever the test of `p_values` rejects nothing.
        """
        first, second = self.findings
        found = {}
        for name, p_value in self.p_values.items():
            # Both were measured on the same resamples.
            drawn = first.values[name] - second.values[name]
            sizes = (each.mistake_sizes[name] for each in self.findings)
            if self._is_of_one_model:
                sizes = (0.0,)
            largest = MEASURES[name].largest
            low, high = interval(drawn, max(sizes), -largest, largest)
            if p_value > SIGNIFICANT:
                low, high = min(low, 0.0), max(high, 0.0)
            found[name] = float(drawn[0]), low, high
        return found

    @functools.cached_property
    def p_values(self):
        """{name of a measure: two-sided p-value of a paired test}.

        McNemar's exact test for accuracies; for the others the permutation
        test that swaps the models' predictions of images.
        """
        first, second = (each.predictions for each in self.findings)
        found = {
            name: permutation_test(drawn)
            for name, drawn in _swapped_differences(first, second).items()
        }
        found["accuracy"] = self.mcnemar.p_value
        found["top_5_accuracy"] = _mcnemar(first.in_top_5, second.in_top_5)[-1]
        return found

    @functools.cached_property
    def mcnemar(self):
        """The `McNemar` test of the two."""
        return _mcnemar(*(each.predictions.correct for each in self.findings))

    @property
    def _is_of_one_model(self):
        """Whether no image tells the two apart."""
        first, second = (each.predictions.logits for each in self.findings)
        return np.array_equal(first, second)

    def only_right(self, which):
        """Returns the images that only one model gets right.

        Args:
          which: 0 or 1.

        Returns:
          Their numbers; first those whose labels it finds so much more
          probable than the other model does.
        """
        right, wrong = (
            self.findings[i].predictions for i in (which, 1 - which)
        )
        images = np.flatnonzero(right.correct & ~wrong.correct)
        gaps = np.exp(-right.losses[images]) - np.exp(-wrong.losses[images])
        return images[np.argsort(-gaps, kind="stable")]


def _swapped_differences(first, second):
    """Returns {name of a measure: differences, measured on `swaps`}."""
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
    values = measure(pooled, roles, counts, rank(pooled, roles))
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


def comparison_table(comparison):
    """Returns the rows of a table, as strings; the header first."""
    rows = [["", *comparison.names, "difference", "95 % interval", "p-value"]]
    for name, p_value in comparison.p_values.items():
        row = MEASURES[name]
        values = [each.estimates[name] for each in comparison.findings]
        difference, *ends = comparison.differences[name]
        rows.append(
            [
                row.title,
                *map(row.format, values),
                row.format(difference, "+"),
                row.format_interval(*ends, "+"),
                "–" if np.isnan(p_value) else f"{p_value:.3g}",
            ]
        )
    for what, values in comparison.facts.items():
        ratio = ""
        if what in comparison.ranges:
            low, high = comparison.ranges[what]
            ratio = f"x {low:.2f} to {high:.2f}"
        elif None not in values and values[1]:
            ratio = f"x {values[0] / values[1]:.2f}"
        known = ["–" if n is None else f"{n:,.10g}" for n in values]
        rows.append([what, *known, ratio, "", ""])
    return rows


def verdict(comparison):
    """Tells in a sentence whether the two are right equally often."""
    test, names = comparison.mcnemar, comparison.names
    return (
        f"Only {names[0]} is right on {test.only_first:,} images, only "
        f"{names[1]} on {test.only_second:,}, both on {test.both:,}, neither "
        f"on {test.neither:,}; McNemar's exact test: p = {test.p_value:.3g}."
    )


def write_comparison(folder, comparison, subject=None):
    """Writes a comparison as JSON and as a page, in place of an earlier one.

    Args:
      folder: to write `comparison.json` and `comparison.html` to; it may not
        exist yet.
      comparison: a `Comparison`.
      subject: see `write_report`.

    Returns:
      What `comparison.json` holds.

    Raises:
      UserError: the folder cannot be written, or holds no comparison.
    """
    summary = {**summarize(comparison), "subject": subject or {}}
    with replacing(folder, "comparison.json") as unfinished:
        write_json(unfinished / "comparison.json", summary)
        text = _page(comparison)
        (unfinished / "comparison.html").write_text(text, encoding="utf-8")
    return summary


def summarize(comparison):
    """Returns a comparison as values for JSON; None is not defined."""
    measures = {}
    for name, found in comparison.differences.items():
        difference, low, high = map(number, found)
        measures[name] = {
            "values": [
                number(each.estimates[name]) for each in comparison.findings
            ],
            "difference": difference,
            "interval": [low, high],
            "p_value": number(comparison.p_values[name]),
        }
    return {
        "models": list(comparison.names),
        "examples": len(comparison.findings[0].predictions),
        "measures": measures,
        "mcnemar": comparison.mcnemar._asdict(),
        "facts": {name: list(two) for name, two in comparison.facts.items()},
        "ranges": {name: list(two) for name, two in comparison.ranges.items()},
    }


def _page(comparison):
    rows = [
        [page.text(cell) for cell in row]
        for row in comparison_table(comparison)
    ]
    for row, p_value in zip(
        rows[1:], comparison.p_values.values(), strict=False
    ):
        if p_value <= SIGNIFICANT:
            row[3] = f"<b>{row[3]}</b>"
    sections = [
        page.section(
            "Numbers",
            verdict(comparison),
            page.plain_table(rows) + f"<p>{INTERVALS}</p>",
            "wide",
        )
    ]
    for which, name in enumerate(comparison.names):
        images = comparison.only_right(which)
        sections.append(
            page.section(
                f"Only {name} is right",
                f"{len(images):,} images; first those that it is so much surer "
                "of. Below the true class: what the other takes it for.",
                _disagreements(comparison, which, images[:SHOWN]),
                "wide",
            )
        )
    counts = {"images": f"{len(comparison.findings[0].predictions):,}"}
    return page.render(" against ".join(comparison.names), counts, sections)


def _disagreements(comparison, which, images):
    right, wrong = (
        comparison.findings[i].predictions for i in (which, 1 - which)
    )
    names = right.class_names
    return page.gallery(
        [
            (
                right.picture(index),
                f"{right.confidences[index]:.0%} "
                f"{page.name(names[right.labels[index]])}"
                f'<div class="wrong">{wrong.confidences[index]:.0%} '
                f"{page.name(names[wrong.predicted[index]])}</div>",
                right.images[index],
            )
            for index in images
        ]
    )
