"""Charts of the results of an evaluation, as PNG and SVG."""

import math
from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import confusion_matrix

from train_loop.evaluation.chart_style import (
    FAINT,
    FIGURE_WIDTH,
    INK,
    MUTED,
    SERIES,
    SHADES,
    STYLE,
    class_label,
    new_figure,
    save_figure,
    thumbnail,
)
from train_loop.evaluation.curves import (
    draw_learning_curves,
    draw_precision_recall,
    draw_roc,
)
from train_loop.evaluation.metrics import BIN_EDGES, reliability
from train_loop.evaluation.predictions import (
    confused_pairs,
    misclassified,
)

# Up to this many classes, a confusion matrix shows every cell with its count.
MOST_NAMED_CELLS = 60
# Of more, an overview has so many cells on a side at most, and the part of it
# that is shown with names so many classes.
OVERVIEW_CELLS, NAMED_CLASSES = 250, 24
# Inches.
CELL, NAME = 0.24, 1.8

# Of the charts of images; the side of an image is in pixels.
CHART_PAIRS, CHART_IMAGES_OF_A_PAIR = 8, 5
CHART_MISTAKES, MISTAKE_COLUMNS = 12, 3
CHART_IMAGE_SIDE = 160


class Chart(NamedTuple):
    """An entry of the table of charts.

    `draw` maps `Results` to a matplotlib figure, or to None where there is
    nothing to draw; `has_images` tells that it shows images of the split.
    """

    title: str
    note: str
    draw: Callable
    has_images: bool = False


def write_charts(folder, results):
    """Draws all charts for which there is something to draw.

    Args:
      folder: a `pathlib.Path` to write NAME.png and NAME.svg to.
      results: `Results`.

    Returns:
      The names of those that were drawn.
    """
    drawn = []
    for name, chart in CHARTS.items():
        with matplotlib.rc_context(STYLE):
            figure = chart.draw(results)
            if figure is not None:
                save_figure(figure, folder / name)
                drawn.append(name)
    return drawn


def chart_pixels(name, results, dpi=80):
    """Returns a chart as pixels, uint8 [height, width, 3], or None.

    Args:
      name: of an entry of `CHARTS`.
      results: `Results`.
      dpi: pixels per inch.
    """
    with matplotlib.rc_context(STYLE):
        figure = CHARTS[name].draw(results)
        if figure is None:
            return None
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]


def _draw_confusion(results):
    """Draws the matrix: every cell, or an overview and its worst part."""
    classes = range(results.predictions.num_classes)
    if len(classes) > MOST_NAMED_CELLS:
        return _draw_overview(results)
    side = max(CELL * len(classes) + NAME, FIGURE_WIDTH)
    figure = new_figure(side, side)
    _draw_named_cells(figure.subplots(), results, classes)
    return figure


def _draw_overview(results):
    """Draws the structure, and below it the most confused classes by name."""
    pairs = confused_pairs(results.predictions, NAMED_CLASSES)
    # Pair by pair, as long as there is room.
    classes = list(dict.fromkeys(c for pair in pairs for c in pair[:2]))
    classes = sorted(classes[:NAMED_CLASSES])
    named = CELL * len(classes) + NAME
    width = max(named, FIGURE_WIDTH)
    figure = new_figure(width + named, width)
    above, below = figure.subfigures(2, 1, height_ratios=[width, named])
    _draw_structure(above.subplots(), results.predictions)
    if classes:
        axis = below.subplots()
        _draw_named_cells(axis, results, classes)
        axis.set_title("The most confused classes")
    return figure


def _draw_structure(axis, predictions):
    classes = predictions.num_classes
    step = math.ceil(classes / OVERVIEW_CELLS)
    binned = confusion_matrix(
        predictions.labels // step,
        predictions.predicted // step,
        labels=range(math.ceil(classes / step)),
    )
    # A single mistake among thousands of images must be visible beside the
    # diagonal.
    shades = 0.3 + 0.7 * np.log1p(binned) / np.log1p(binned.max())
    axis.imshow(
        np.where(binned, shades, 0),
        cmap=SHADES,
        vmin=0,
        vmax=1,
        extent=(-0.5, classes - 0.5, classes - 0.5, -0.5),
    )
    axis.grid(visible=False)
    axis.set_xlabel("predicted class, by number")
    axis.set_ylabel("true class, by number")
    cell = f"a cell is {step} x {step} classes, " if step > 1 else ""
    axis.set_title(f"All {classes:,} classes: {cell}logarithmic")


def _draw_named_cells(axis, results, classes):
    """Draws the rows and columns of some classes, with counts."""
    predictions = results.predictions
    matrix = confusion_matrix(
        predictions.labels, predictions.predicted, labels=classes
    )
    shares = matrix / np.maximum(results.examples[classes], 1)[:, None]
    axis.imshow(shares, cmap=SHADES, vmin=0, vmax=1, aspect="equal")
    for row, column in np.argwhere(matrix):
        axis.text(
            column,
            row,
            _four_letters(matrix[row, column]),
            # Points that fit a cell.
            size=max(min(10, 150 / len(classes)), 6.5),
            ha="center",
            va="center",
            # Not quite white: it stays so on dark paper.
            **({"color": "#fefefe"} if shares[row, column] > 0.7 else {}),
        )
    names = [class_label(predictions.class_names, n, 20) for n in classes]
    axis.set_xticks(range(len(classes)), names, rotation=90)
    axis.set_yticks(range(len(classes)), names)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")


def _four_letters(count):
    if count < 1000:
        return str(count)
    return f"{count / 1000:.{1 if count < 10_000 else 0}f}k"


def _draw_reliability(results):
    """Draws accuracy against confidence, over how often each occurs."""
    measured = reliability(results.predictions)
    figure = new_figure(5.6)
    axis, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    middles = (BIN_EDGES[1:] + BIN_EDGES[:-1]) / 2
    width = np.diff(BIN_EDGES) * 0.9
    error = results.estimates["expected_calibration_error"]
    axis.bar(
        middles,
        measured.accuracies,
        width,
        color=SERIES[0],
        alpha=0.75,
        label=f"accuracy; calibration error {error:.2%}",
    )
    if results.temperature is not None:
        calibrated = reliability(results.calibrated)
        axis.plot(
            calibrated.confidences,
            calibrated.accuracies,
            color=SERIES[1],
            marker="o",
            ms=4,
            clip_on=False,
            zorder=3,
            label=f"with temperature {results.temperature:.3g}; calibration "
            f"error {results.calibrated_error:.2%}",
        )
    axis.plot([0, 1], [0, 1], color=INK, lw=1, ls=":")
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    shares = measured.counts / measured.counts.sum()
    below.bar(middles, 100 * shares, width, color=MUTED)
    below.set(xlabel="confidence", ylabel="% of images")
    figure.legend(loc="outside lower left")
    return figure


def _draw_pairs(results):
    """Draws the most confused pairs, a row each; None without mistakes."""
    predictions = results.predictions
    pairs = confused_pairs(predictions, CHART_PAIRS)
    if not pairs:
        return None
    figure = new_figure(1.3 * len(pairs))
    rows = figure.subfigures(len(pairs), 1, squeeze=False)[:, 0]
    for row, pair in zip(rows, pairs, strict=True):
        names = " → ".join(
            class_label(predictions.class_names, number) for number in pair[:2]
        )
        row.suptitle(
            f"{len(pair.images)} ({pair.share:.0%}): {names}",
            size=10,
            x=0.01,
            ha="left",
        )
        axes = row.subplots(1, CHART_IMAGES_OF_A_PAIR)
        for axis in axes:
            axis.set_axis_off()
        for axis, number in zip(axes, pair.images, strict=False):
            _show_image(axis, predictions.load_image(number))
    return figure


def _draw_mistakes(results):
    """Draws the most confident mistakes; None where there is none."""
    predictions = results.predictions
    names = predictions.class_names
    wrong = misclassified(predictions)[:CHART_MISTAKES]
    if not len(wrong):
        return None
    rows = math.ceil(len(wrong) / MISTAKE_COLUMNS)
    figure = new_figure(rows * (FIGURE_WIDTH / MISTAKE_COLUMNS + 0.4))
    axes = figure.subplots(rows, MISTAKE_COLUMNS, squeeze=False).ravel()
    for axis in axes[len(wrong) :]:
        axis.set_axis_off()
    for axis, number in zip(axes, wrong, strict=False):
        _show_image(axis, predictions.load_image(number))
        truth = class_label(names, predictions.labels[number], 20)
        predicted = class_label(names, predictions.predicted[number], 16)
        axis.set_title(truth, size=9)
        confidence = f"{predictions.confidences[number]:.0%}"
        axis.set_xlabel(
            f"{confidence} {predicted}", size=9, color=SERIES[1], loc="left"
        )
    return figure


def _show_image(axis, image):
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[], facecolor=FAINT, box_aspect=1)
    if image is not None:
        axis.imshow(thumbnail(image, CHART_IMAGE_SIDE))


# Name of the files -> chart, in the order in which they are shown.
CHARTS = {
    "confusion_matrix": Chart(
        "Confusion matrix",
        "Rows are the true classes, columns the predicted ones. The darker a "
        "cell, the larger its part of its row.",
        _draw_confusion,
    ),
    "precision_recall_curves": Chart(
        "Precision and recall",
        "Each class against the rest. AP is the area below a curve.",
        draw_precision_recall,
    ),
    "roc_curves": Chart(
        "ROC curves",
        "Each class against the rest. AUC is the area below a curve, and the "
        "diagonal is chance.",
        draw_roc,
    ),
    "reliability_diagram": Chart(
        "Reliability",
        "Of the predictions made with 80 % confidence, 80 % should be right: "
        "then the bars reach the diagonal.",
        _draw_reliability,
    ),
    "learning_curves": Chart(
        "Learning curves",
        "The training loss is the one that is minimised, label smoothing and "
        "varied images included; so it may lie above that of the evaluation.",
        draw_learning_curves,
    ),
    "confused_pairs": Chart(
        "Most confused pairs",
        "Images of one class that are taken for another, the most confident "
        "mistakes first.",
        _draw_pairs,
        has_images=True,
    ),
    "confident_mistakes": Chart(
        "Most confident mistakes",
        "The true class, and below it what the model takes it for.",
        _draw_mistakes,
        has_images=True,
    ),
}
