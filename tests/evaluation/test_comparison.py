"""Comparisons of two models, checked against counts by hand."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from drawn_predictions import draw_predictions
from test_page import Outline

from train_loop.errors import UserError
from train_loop.evaluation.comparison import (
    Comparison,
    _swapped_differences,
    comparison_table,
    permutation_test,
    swaps,
    verdict,
)
from train_loop.evaluation.metrics import METRICS
from train_loop.evaluation.page import comparison_page
from train_loop.evaluation.report import write_comparison
from train_loop.evaluation.results import Results

FACTS = {
    "parameters": (2000, 1000),
    "batches": (100, 50),
    "images per second": (None, 50.5),
}
RANGES = {"batches": (1.8, 2.25)}


@pytest.fixture(scope="module")
def comparison():
    first = draw_predictions(200, 5, skill=2.5)
    # The same model with a little noise.
    noise = np.random.default_rng(9).normal(size=first.logits.shape) / 2
    second = dataclasses.replace(
        first, logits=(first.logits + noise).astype("float32")
    )
    both = {"<b>mine": Results.of(first), "theirs": Results.of(second)}
    return Comparison.of(both, FACTS, RANGES)


def test_mcnemar_test_equals_a_count_by_hand(comparison):
    first, second = (f.predictions.correct for f in comparison.results)
    test = comparison.mcnemar
    pairs = list(zip(first, second, strict=True))
    assert test.both == pairs.count((True, True))
    assert test.only_first == pairs.count((True, False))
    assert test.only_second == pairs.count((False, True))
    assert test.neither == pairs.count((False, False))
    # Two-sided binomial test: a fair coin that is at least as uneven.
    tosses = test.only_first + test.only_second
    fewer = min(test.only_first, test.only_second)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1)) / 2**tosses
    assert test.p_value == pytest.approx(min(1, 2 * tail))
    assert f"p = {test.p_value:.3g}" in verdict(comparison)


def test_differences_are_paired(comparison):
    first, second = comparison.results
    for name in METRICS:
        difference, low, high = comparison.differences[name]
        expected = first.estimates[name] - second.estimates[name]
        assert difference == pytest.approx(expected)
        assert low <= difference <= high
        # Similar mistakes make the interval narrower than on separate images.
        # (With five classes, the top-5 accuracy is always 1.)
        widths = [np.diff(each.intervals[name]) for each in (first, second)]
        unpaired = np.hypot(*widths)
        assert high - low < 0.9 * unpaired or name == "top_5_accuracy"


def test_model_does_not_differ_from_itself(comparison):
    own = Comparison.of(dict.fromkeys("ab", comparison.results[0]))
    again = Comparison(("a", "b"), (comparison.results[0],) * 2, {})
    assert own.names == again.names
    assert set(own.differences.values()) == {(0.0, 0.0, 0.0)}
    assert own.mcnemar.p_value == 1


def one_apart(count, discordant):
    """Returns a comparison; only the first model is correct on some images."""
    labels = np.arange(count) % 10
    logits = np.full((count, 10), -5, "float32")
    logits[np.arange(count), labels] = 5
    first = draw_predictions(count, 10, labels=labels)
    others = logits.copy()
    others[:discordant] = np.roll(others[:discordant], 1, axis=1)
    both = {
        name: Results.of(dataclasses.replace(first, logits=each))
        for name, each in (("first", logits), ("second", others))
    }
    return Comparison.of(both)


@pytest.mark.parametrize("discordant", [0, 1, 3, 5, 6, 20])
@pytest.mark.parametrize("count", [100, 362])
def test_significant_differences_are_bold(count, discordant):
    """From six discordant images on, all in favor of one model."""
    compared = one_apart(count, discordant)
    expected = min(1, 2 * 0.5**discordant)
    assert compared.mcnemar.p_value == pytest.approx(expected)
    is_significant = discordant >= 6
    for name, (difference, low, high) in compared.differences.items():
        if name in ("top_5_accuracy", "expected_calibration_error"):
            continue
        p_value = compared.p_values[name]
        assert (p_value <= 0.05) == is_significant, name
        # Estimated from 200 swaps.
        assert p_value == pytest.approx(expected, abs=0.1), name
        assert low <= difference <= high
        assert (low > 0 or high < 0) <= is_significant, name
    source = comparison_page(compared)
    for name, p_value in compared.p_values.items():
        cells = source.split(f"<td>{METRICS[name].title}</td>")[1]
        assert ("<b>" in cells.partition("</tr>")[0]) == (p_value <= 0.05)


def test_interval_of_few_discordant_images_includes_both_signs():
    """As Newcombe's interval, from exact (Clopper-Pearson) intervals."""
    for discordant in (1, 2, 3):
        test = scipy.stats.binomtest(discordant, 362)
        high = test.proportion_ci(method="exact").high
        none = scipy.stats.binomtest(0, 362).proportion_ci(method="exact").high
        difference, *found = one_apart(362, discordant).differences["accuracy"]
        expected = difference - none, high
        assert found == pytest.approx(expected, abs=0.35 * none)


@pytest.mark.slow
@pytest.mark.parametrize("skill", [1.0, 4.5])
def test_equal_models_rarely_differ_significantly(skill):
    """In about 1 of 20 comparisons at most."""
    random, found, trials = np.random.default_rng(0), [], 24
    for _ in range(trials):
        labels = random.integers(3, size=100)
        first = draw_predictions(100, 3, skill, labels)
        both = []
        for _ in range(2):
            noise = random.normal(size=first.logits.shape).astype("float32")
            both.append(
                Results.of(
                    dataclasses.replace(first, logits=first.logits + noise)
                )
            )
        compared = Comparison.of(dict(zip("ab", both, strict=True)))
        found.append(list(compared.p_values.values()))
        for (_, low, high), p_value in zip(
            compared.differences.values(), found[-1], strict=True
        ):
            assert low <= 0 <= high or p_value <= 0.05
    rejected = (np.array(found) <= 0.05).sum(0)
    assert (rejected <= scipy.stats.binom.ppf(0.999, trials, 0.05)).all()


def test_swapped_differences_equal_those_of_swapped_predictions(comparison):
    first, second = (f.predictions for f in comparison.results)
    drawn = _swapped_differences(first, second)
    chosen = swaps(len(first))
    for column in (0, 1, 7):
        roles = chosen[:, column : column + 1] == 1
        swapped = [
            Results.of(
                dataclasses.replace(
                    first, logits=np.where(mine, first.logits, second.logits)
                )
            )
            for mine in (roles, ~roles)
        ]
        for name in METRICS:
            expected = np.subtract(*(f.estimates[name] for f in swapped))
            assert drawn[name][column] == pytest.approx(expected, abs=1e-12)


def test_disagreements_are_images_that_one_model_predicts_correctly(comparison):
    first, second = (f.predictions for f in comparison.results)
    only_first, only_second = map(comparison.only_right, (0, 1))
    assert len(only_first) == comparison.mcnemar.only_first > 1
    assert first.correct[only_first].all()
    assert not second.correct[only_first].any()
    assert second.correct[only_second].all()
    gaps = np.exp(-first.losses) - np.exp(-second.losses)
    assert (np.diff(gaps[only_first]) <= 0).all()
    assert (np.diff(gaps[only_second]) >= 0).all()


def test_table_has_a_row_for_every_metric_and_fact(comparison):
    header, *rows = comparison_table(comparison)
    assert header[1:3] == ["<b>mine", "theirs"]
    assert [row[0] for row in rows] == [
        *(metric.title for metric in METRICS.values()),
        *FACTS,
    ]
    assert {len(row) for row in rows} == {len(header)} == {6}
    assert rows[-3][1:4] == ["2,000", "1,000", "x 2.00"]
    assert rows[-2][1:4] == ["100", "50", "x 1.80 to 2.25"]
    assert rows[-1][1:4] == ["–", "50.5", ""]
    assert rows[0][3][0] in "+-"
    assert rows[0][5] == f"{comparison.mcnemar.p_value:.3g}"


def test_comparison_is_written(comparison, tmp_path):
    summary = write_comparison(tmp_path / "comparison", comparison)
    folder = tmp_path / "comparison"
    assert json.loads((folder / "comparison.json").read_text()) == summary
    assert summary["models"] == ["<b>mine", "theirs"]
    assert summary["facts"]["images per second"] == [None, 50.5]
    assert summary["ranges"] == {"batches": [1.8, 2.25]}
    found = summary["measures"]["accuracy"]
    assert found["difference"] == pytest.approx(np.subtract(*found["values"]))
    source = (folder / "comparison.html").read_text(encoding="utf-8")
    outline = Outline(source)
    assert outline.count("figure") == (
        comparison.mcnemar.only_first + comparison.mcnemar.only_second
    )
    assert verdict(comparison) in outline.text


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("images", {"images": [f"{n}.png" for n in range(200)]}),
        ("labels", {"labels": np.zeros(200, int)}),
        ("classes", {"class_names": list("abcde")}),
    ],
)
def test_only_the_same_images_are_compared(comparison, what, field):
    first = comparison.results[0]
    predictions = dataclasses.replace(first.predictions, **field)
    other = dataclasses.replace(first, predictions=predictions)
    with pytest.raises(UserError, match=f"a and b: must have the same {what}"):
        Comparison.of({"a": first, "b": other})


def test_permutation_test_approximates_all_swaps():
    """All 1,024 ways to swap two models on ten images."""
    gaps = np.random.default_rng(4).normal(0.5, size=10)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    sums = signs @ gaps
    expected = (np.abs(sums) >= abs(gaps.sum()) - 1e-12).mean()
    drawn = gaps @ (2.0 * swaps(10, 20_000) - 1)
    assert permutation_test(drawn) == pytest.approx(expected, abs=0.01)
    assert np.isnan(permutation_test(np.array([np.nan, 1.0])))
