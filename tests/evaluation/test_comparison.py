"""Two models on the same images, counted by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from drawn_predictions import draw_predictions
from test_page import Outline

from train_loop.errors import UserError
from train_loop.evaluation.comparison import (
    Comparison,
    table,
    verdict,
    write_comparison,
)
from train_loop.evaluation.findings import Findings
from train_loop.evaluation.measures import MEASURES

FACTS = {"parameters": (2000, 1000), "images per second": (None, 50.5)}


def findings_of(predictions):
    return Findings.of(predictions)


@pytest.fixture(scope="module")
def comparison():
    first = draw_predictions(200, 5, skill=2.5)
    # The same model, and a little noise.
    noise = np.random.default_rng(9).normal(size=first.logits.shape) / 2
    second = dataclasses.replace(
        first, logits=(first.logits + noise).astype("float32")
    )
    both = {"<b>mine": Findings.of(first), "theirs": Findings.of(second)}
    return Comparison.of(both, FACTS)


def test_mcnemar_is_counted_by_hand(comparison):
    first, second = (f.predictions.correct for f in comparison.findings)
    test = comparison.mcnemar
    pairs = list(zip(first, second, strict=True))
    assert test.both == pairs.count((True, True))
    assert test.only_first == pairs.count((True, False))
    assert test.only_second == pairs.count((False, True))
    assert test.neither == pairs.count((False, False))
    # Tosses of a fair coin that come out as unevenly, on either side.
    tosses = test.only_first + test.only_second
    fewer = min(test.only_first, test.only_second)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1)) / 2**tosses
    assert test.p_value == pytest.approx(min(1, 2 * tail))
    assert f"p = {test.p_value:.3g}" in verdict(comparison)


def test_differences_are_paired(comparison):
    first, second = comparison.findings
    for name in MEASURES:
        difference, low, high = comparison.differences[name]
        expected = first.estimates[name] - second.estimates[name]
        assert difference == pytest.approx(expected)
        assert low <= difference <= high
        # They err alike: less than if they had been measured on images of
        # their own. (Of five classes, all are among the top five.)
        widths = [np.diff(each.intervals[name]) for each in (first, second)]
        unpaired = np.hypot(*widths)
        assert high - low < 0.9 * unpaired or name == "top_5_accuracy"


def test_a_model_does_not_differ_from_itself(comparison):
    own = Comparison.of(dict.fromkeys("ab", comparison.findings[0]))
    again = Comparison(("a", "b"), (comparison.findings[0],) * 2, {})
    assert own.names == again.names
    assert set(own.differences.values()) == {(0.0, 0.0, 0.0)}
    assert own.mcnemar.p_value == 1


def test_disagreements_are_the_images_that_one_gets_right(comparison):
    first, second = (f.predictions for f in comparison.findings)
    only_first, only_second = map(comparison.only_right, (0, 1))
    assert len(only_first) == comparison.mcnemar.only_first > 1
    assert first.correct[only_first].all()
    assert not second.correct[only_first].any()
    assert second.correct[only_second].all()
    gaps = np.exp(-first.losses) - np.exp(-second.losses)
    assert (np.diff(gaps[only_first]) <= 0).all()
    assert (np.diff(gaps[only_second]) >= 0).all()


def test_table_has_a_row_for_every_measure_and_fact(comparison):
    header, *rows = table(comparison)
    assert header[1:3] == ["<b>mine", "theirs"]
    assert [row[0] for row in rows] == [
        *(measure.title for measure in MEASURES.values()),
        *FACTS,
    ]
    assert {len(row) for row in rows} == {5}
    assert rows[-2][1:4] == ["2,000", "1,000", "x 2.00"]
    assert rows[-1][1:4] == ["–", "50.5", ""]
    assert rows[0][3][0] in "+-"


def test_comparison_is_written(comparison, tmp_path):
    summary = write_comparison(tmp_path / "comparison", comparison)
    folder = tmp_path / "comparison"
    assert json.loads((folder / "comparison.json").read_text()) == summary
    assert summary["models"] == ["<b>mine", "theirs"]
    assert summary["facts"]["images per second"] == [None, 50.5]
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
    first = comparison.findings[0]
    predictions = dataclasses.replace(first.predictions, **field)
    other = dataclasses.replace(first, predictions=predictions)
    with pytest.raises(UserError, match=f"a and b were .* different {what}"):
        Comparison.of({"a": first, "b": other})
