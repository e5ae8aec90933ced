"""Charts of few and many classes, with unusual names."""

import contextlib
import dataclasses
import re
import warnings

import matplotlib
import numpy as np
import PIL.Image
import pytest
from drawn_predictions import draw_predictions
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from train_loop.evaluation.chart_style import (
    STYLE,
    class_label,
    write_image_grid,
)
from train_loop.evaluation.charts import CHARTS, write_charts
from train_loop.evaluation.curves import trailing_means
from train_loop.evaluation.results import Results

ODD_NAMES = (
    "cat",
    "<script>alert(1)</script>",
    "$x^2$ & $\\frac$",
    "Длинное название породы, которому нет конца, " * 3,
    "قطة منزلية",
    "\udcff\x00",
)
RECORDS = (
    {"step": 50, "split": "train", "loss": 2.0, "accuracy": 0.2},
    {"step": 100, "split": "train", "loss": 1.0, "accuracy": 0.6},
    {"step": 100, "split": "eval", "loss": 1.2, "accuracy": 0.5},
)


@pytest.fixture
def strictly():
    """Turns warnings into errors: missing letters, means of empty arrays."""
    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("error", category)
        yield


def draw_results(images, classes, names=None, **fields):
    names = names or [f"class number {number}" for number in range(classes)]
    predictions = draw_predictions(images, classes, class_names=names, **fields)
    return Results.of(predictions, 1.5, RECORDS)


@contextlib.contextmanager
def drawn(name, results):
    """Yields a chart after its layout, or None."""
    with matplotlib.rc_context(STYLE):
        figure = CHARTS[name].draw(results)
        if figure is not None:
            FigureCanvasAgg(figure).draw()
        yield figure


def names_in(figure):
    """Returns all texts except numbers, some of which are not drawn."""
    texts = figure.findobj(Text)
    return [text for text in texts if re.search(r"[^\d.]", text.get_text())]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_unusual_names_stay_inside_the_figure(name, strictly):
    results = draw_results(120, 6, ODD_NAMES)
    with drawn(name, results) as figure:
        page = figure.bbox
        assert len(names_in(figure)) > 1
        for text in names_in(figure):
            box = text.get_window_extent()
            assert box.x0 >= page.x0 - 1, text
            assert box.x1 <= page.x1 + 1, text
            assert box.y0 >= page.y0 - 1, text
            assert box.y1 <= page.y1 + 1, text


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 37, 300])
def test_class_names_of_the_matrix_do_not_overlap(classes, strictly):
    results = draw_results(3 * classes, classes)
    with drawn("confusion_matrix", results) as figure:
        named = figure.axes[-1]
        if classes == 300:
            assert len(figure.axes) == 2
            [overview] = figure.axes[0].images
            # Two classes share a cell.
            assert overview.get_array().shape == (150, 150)
            assert len(named.get_yticklabels()) == 24
        else:
            assert len(named.get_yticklabels()) == classes
        boxes = [t.get_window_extent() for t in named.get_yticklabels()]
        for upper, lower in zip(boxes[:-1], boxes[1:], strict=True):
            assert lower.y1 <= upper.y0 + 1


def test_confusion_matrix_contains_all_counts():
    results = draw_results(200, 3)
    with drawn("confusion_matrix", results) as figure:
        [axis] = figure.axes
        counts = [int(text.get_text()) for text in axis.texts]
        assert sum(counts) == 200


@pytest.mark.parametrize(
    ("classes", "lines", "bands"), [(5, 6, 0), (20, 20 + 1 + 4 + 1, 0)]
)
def test_each_of_few_classes_has_a_curve(classes, lines, bands):
    results = draw_results(200, classes)
    with drawn("precision_recall_curves", results) as figure:
        [axis] = figure.axes
        assert len(axis.lines) == lines
        assert len(axis.collections) == bands


def test_many_classes_have_bands_and_the_worst_have_names():
    results = draw_results(500, 80)
    with drawn("precision_recall_curves", results) as figure:
        [axis] = figure.axes
        assert len(axis.collections) == 2
        *worst, mean = (line.get_label() for line in axis.lines)
        areas = np.sort(results.ranking.average_precisions[:, 0])
        assert [float(text.split()[0]) for text in worst] == pytest.approx(
            areas[:4], abs=5e-4
        )
        expected = results.estimates["mean_average_precision"]
        assert float(mean.split()[0]) == pytest.approx(expected, abs=5e-4)


def test_learning_curves_show_the_records():
    with drawn("learning_curves", draw_results(20, 3)) as figure:
        loss, accuracy = figure.axes
        np.testing.assert_array_equal(
            loss.lines[0].get_xydata(), [[50, 2.0], [100, 1.0]]
        )
        np.testing.assert_array_equal(
            accuracy.lines[1].get_xydata(), [[100, 0.5]]
        )
        ends = [
            [text.get_text() for text in axis.texts] for axis in figure.axes
        ]
        assert ends == [["eval 1.2", "train 1"], ["train 0.6", "eval 0.5"]]


def test_learning_curves_average_short_reports():
    """Reports of a few steps are averaged with earlier ones."""
    steps = (50, 67, 100, 150, 151)
    losses = (2.0, 1.0, 1.2, 0.8, 3.0)
    records = [
        {"step": step, "split": "train", "loss": loss}
        for step, loss in zip(steps, losses, strict=True)
    ]
    results = dataclasses.replace(draw_results(20, 3), records=records)
    with drawn("learning_curves", results) as figure:
        [axis] = figure.axes
        expected = [
            2.0,
            (50 * 2 + 17) / 67,
            (17 + 33 * 1.2) / 50,
            0.8,
            (50 * 0.8 + 3) / 51,
        ]
        points = axis.lines[0].get_xydata()
        np.testing.assert_allclose(points.T, [steps, expected])
        assert [text.get_text() for text in axis.texts] == ["train 0.843"]


def test_trailing_means_cover_a_span():
    steps, values = [2, 4, 5], [[1.0, 0.0], [2.0, 3.0], [9.0, 6.0]]
    means, covered = trailing_means(steps, values, 3)
    np.testing.assert_array_equal(covered, [2, 4, 3])
    np.testing.assert_allclose(means, [[1, 0], [1.5, 1.5], [13 / 3, 4]])
    means, covered = trailing_means(steps, values, 100)
    np.testing.assert_array_equal(covered, steps)
    assert means[-1] == pytest.approx([3, 2.4])


def test_empty_charts_are_not_written(tmp_path, strictly):
    """No mistakes, images of a single class, no run and no image files."""
    labels = np.zeros(9, int)
    perfect = draw_predictions(9, 4, skill=50, labels=labels)
    names = write_charts(tmp_path, Results.of(perfect))
    assert names == [
        "confusion_matrix",
        "precision_recall_curves",
        "reliability_diagram",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    for name in names:
        with PIL.Image.open(tmp_path / f"{name}.png") as image:
            assert image.width >= 800


def test_images_are_those_of_the_mistakes():
    loaded = []

    def load_image(index):
        loaded.append(int(index))
        return np.full((8, 6, 3), 77, "uint8")

    results = draw_results(60, 4, load_image=load_image)
    with drawn("confident_mistakes", results) as figure:
        shown = [axis for axis in figure.axes if axis.images]
        assert len(shown) == len(loaded) == 12
        assert (shown[0].images[0].get_array() == 77).all()
    assert not results.predictions.correct[loaded].any()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("a\n b", "a b"),
        ("Cavalier King Charles", "Cavali…harles"),
        ("\udcff", "#0"),
        ("", "#0"),
        # No font has this letter.
        ("\U0010fffd", "#0"),
        ("قطة", "\u200eقطة\u200e"),
    ],
)
def test_class_labels_use_only_letters_of_the_fonts(name, shown):
    assert class_label([name], 0, 13) == shown


def test_wide_letters_count_double(monkeypatch):
    letters = frozenset(map(ord, "猫の名前…"))
    letters_of_fonts = "train_loop.evaluation.chart_style._letters"
    monkeypatch.setattr(letters_of_fonts, lambda: letters)
    assert class_label(["猫の名前"], 0, 8) == "猫の名前"
    assert class_label(["猫の名前"], 0, 7) == "猫…前"


def test_images_of_all_groups_are_drawn(tmp_path):
    path = tmp_path / "figure.png"
    red, blue = np.zeros((2, 4, 4, 3))
    red[..., 0] = 1.0
    blue[..., 2] = 1.0
    write_image_grid(
        path,
        {
            # More than one row, and labels that look like formulas.
            "red": (np.stack([red] * 9), ["$cat", "dog_$", *["bird"] * 7]),
            "blue": (np.stack([blue] * 2), ["fish"] * 2),
        },
    )
    pixels = np.asarray(PIL.Image.open(path).convert("RGB"))
    places = {
        name: np.argwhere((pixels == color).all(-1))
        for name, color in {"red": [255, 0, 0], "blue": [0, 0, 255]}.items()
    }
    # The groups are in order from the top.
    assert places["red"][:, 0].max() < places["blue"][:, 0].min()
    # All have the same size.
    area = {name: len(found) for name, found in places.items()}
    assert area["red"] / area["blue"] == pytest.approx(9 / 2, rel=0.1)
