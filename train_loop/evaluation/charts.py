"""Charts of evaluation results, as PNG and SVG files."""

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

# Maximum number of classes for a confusion matrix with a count in every cell.
MOST_NAMED_CELLS = 60
# For more classes: maximum side of the overview in cells, and number of classes
# in the detailed part.
OVERVIEW_CELLS, NAMED_CLASSES = 250, 24
# Side of a cell and space for a name, in inches.
CELL, NAME = 0.24, 1.8

# Limits of the charts with images; the side of an image is in pixels.
CHART_PAIRS, CHART_IMAGES_OF_A_PAIR = 8, 5
CHART_MISTAKES, MISTAKE_COLUMNS = 12, 3
CHART_IMAGE_SIDE = 160


class Chart(NamedTuple):
    """A chart: its title, its explanation and its function.

    `draw` maps `Results` to a matplotlib figure, or to None if there is nothing
    to draw. `has_images` is true if the chart shows images of the split.
    """

    title: str
    note: str
    draw: Callable
    has_images: bool = False


def write_charts(folder, results):
    """Writes all charts of the results.

    Args:
      folder: a `pathlib.Path` for NAME.png and NAME.svg of each chart.
      results: `Results`.

    Returns:
      The names of the charts, without those that have nothing to show.
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
      name: a key of `CHARTS`.
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
    """Draws the confusion matrix, or an overview and its worst part."""
    classes = range(results.predictions.num_classes)
    if len(classes) > MOST_NAMED_CELLS:
        return _draw_overview(results)
    side = max(CELL * len(classes) + NAME, FIGURE_WIDTH)
    figure = new_figure(side, side)
    _draw_named_cells(figure.subplots(), results, classes)
    return figure


def _draw_overview(results):
    """Draws all classes as an overview, and the most confused ones below."""
    pairs = confused_pairs(results.predictions, NAMED_CLASSES)
    # The classes of the most frequent pairs, up to the limit.
    classes = list(dict.fromkeys(c for pair in pairs for c in pair[:2]))
    classes = sorted(classes[:NAMED_CLASSES])
    detail = CELL * len(classes) + NAME
    width = max(detail, FIGURE_WIDTH)
    figure = new_figure(width + detail, width)
    above, below = figure.subfigures(2, 1, height_ratios=[width, detail])
    _draw_all_classes(above.subplots(), results.predictions)
    if classes:
        axis = below.subplots()
        _draw_named_cells(axis, results, classes)
        axis.set_title("Most confused classes")
    return figure


def _draw_all_classes(axis, predictions):
    classes = predictions.num_classes
    step = math.ceil(classes / OVERVIEW_CELLS)
    binned = confusion_matrix(
        predictions.labels // step,
        predictions.predicted // step,
        labels=range(math.ceil(classes / step)),
    )
    # Logarithmic with an offset, so that a single mistake remains visible.
    shades = 0.3 + 0.7 * np.log1p(binned) / np.log1p(binned.max())
    axis.imshow(
        np.where(binned, shades, 0),
        cmap=SHADES,
        vmin=0,
        vmax=1,
        extent=(-0.5, classes - 0.5, classes - 0.5, -0.5),
    )
    axis.grid(visible=False)
    axis.set_xlabel("predicted class (index)")
    axis.set_ylabel("true class (index)")
    cell = f", {step} x {step} classes per cell" if step > 1 else ""
    axis.set_title(f"All {classes:,} classes (log scale{cell})")


def _draw_named_cells(axis, results, classes):
    """Draws the cells of some classes, with names and counts."""
    predictions = results.predictions
    matrix = confusion_matrix(
        predictions.labels, predictions.predicted, labels=classes
    )
    fractions = matrix / np.maximum(results.examples[classes], 1)[:, None]
    axis.imshow(fractions, cmap=SHADES, vmin=0, vmax=1, aspect="equal")
    for row, column in np.argwhere(matrix):
        axis.text(
            column,
            row,
            _short_count(matrix[row, column]),
            # Fits a cell.
            size=max(min(10, 150 / len(classes)), 6.5),
            ha="center",
            va="center",
            # Not pure white, which the page would replace in dark mode.
            **({"color": "#fefefe"} if fractions[row, column] > 0.7 else {}),
        )
    names = [class_label(predictions.class_names, n, 20) for n in classes]
    axis.set_xticks(range(len(classes)), names, rotation=90)
    axis.set_yticks(range(len(classes)), names)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")


def _short_count(count):
    if count < 1000:
        return str(count)
    return f"{count / 1000:.{1 if count < 10_000 else 0}f}k"


def _draw_reliability(results):
    """Draws accuracy against confidence, above the histogram of confidences."""
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
        label=f"accuracy (calibration error {error:.2%})",
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
            label=f"with temperature {results.temperature:.3g} (calibration "
            f"error {results.calibrated_error:.2%})",
        )
    axis.plot([0, 1], [0, 1], color=INK, lw=1, ls=":")
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    fractions = measured.counts / measured.counts.sum()
    below.bar(middles, 100 * fractions, width, color=MUTED)
    below.set(xlabel="confidence", ylabel="% of images")
    figure.legend(loc="outside lower left")
    return figure


def _draw_pairs(results):
    """Draws a row of images for each confused pair; None without mistakes."""
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
            f"{len(pair.images)} ({pair.fraction:.0%}): {names}",
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
    """Draws the most confident mistakes; None without mistakes."""
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


# Name of the files -> chart, in the order of the page.
CHARTS = {
    "confusion_matrix": Chart(
        "Confusion matrix",
        "Rows are true classes, columns are predicted classes. The color shows "
        "the fraction of the row.",
        _draw_confusion,
    ),
    "precision_recall_curves": Chart(
        "Precision-recall curves",
        "One-vs-rest for each class. AP is the area under a curve.",
        draw_precision_recall,
    ),
    "roc_curves": Chart(
        "ROC curves",
        "One-vs-rest for each class. AUC is the area under a curve; the "
        "diagonal is chance level.",
        draw_roc,
    ),
    "reliability_diagram": Chart(
        "Reliability diagram",
        "Accuracy of predictions by their confidence. The bars of a perfectly "
        "calibrated model reach the diagonal.",
        _draw_reliability,
    ),
    "learning_curves": Chart(
        "Learning curves",
        "The training loss includes label smoothing and augmentation, so it "
        "can exceed the evaluation loss.",
        lambda results: draw_learning_curves(results.records),
    ),
    "confused_pairs": Chart(
        "Most confused pairs",
        "Images of one class that are predicted as another, the most confident "
        "mistakes first.",
        _draw_pairs,
        has_images=True,
    ),
    "confident_mistakes": Chart(
        "Most confident mistakes",
        "The true class, and below it the predicted class with its confidence.",
        _draw_mistakes,
        has_images=True,
    ),
}
