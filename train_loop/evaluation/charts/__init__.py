"""Charts of findings, as PNG and SVG."""

from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from train_loop.evaluation.charts.calibration import draw_reliability
from train_loop.evaluation.charts.confusion import draw_confusion
from train_loop.evaluation.charts.curves import (
    draw_precision_recall,
    draw_roc,
)
from train_loop.evaluation.charts.learning import draw_learning
from train_loop.evaluation.charts.look import STYLE, save
from train_loop.evaluation.charts.pictures import draw_mistakes, draw_pairs


class Chart(NamedTuple):
    """A row of the table of charts.

    `draw` maps `Findings` to a matplotlib figure, or to None where there is
    nothing to draw; `is_pictures` tells that it shows images of the split.
    """

    title: str
    note: str
    draw_chart: Callable
    is_pictures: bool = False


# Name of the files -> chart, in the order in which they are shown.
CHARTS = {
    "confusion_matrix": Chart(
        "Confusion matrix",
        "Rows are the true classes, columns the predicted ones. The darker a "
        "cell, the larger its part of its row.",
        draw_confusion,
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
        draw_reliability,
    ),
    "learning_curves": Chart(
        "Learning curves",
        "The training loss is the one that is minimised, label smoothing and "
        "varied images included; so it may lie above that of the evaluation.",
        draw_learning,
    ),
    "confused_pairs": Chart(
        "Most confused pairs",
        "Images of one class that are taken for another, the most confident "
        "mistakes first.",
        draw_pairs,
        is_pictures=True,
    ),
    "confident_mistakes": Chart(
        "Most confident mistakes",
        "The true class, and below it what the model takes it for.",
        draw_mistakes,
        is_pictures=True,
    ),
}


def write_charts(folder, findings):
    """Draws all charts for which there is something to draw.

    Args:
      folder: a `pathlib.Path` to write NAME.png and NAME.svg to.
      findings: `Findings`.

    Returns:
      The names of those that were drawn.
    """
    drawn = []
    for name, chart in CHARTS.items():
        with matplotlib.rc_context(STYLE):
            figure = chart.draw(findings)
            if figure is not None:
                save(figure, folder / name)
                drawn.append(name)
    return drawn


def draw_chart(name, findings, dpi=80):
    """Returns a chart as pixels, uint8 [height, width, 3], or None.

    Args:
      name: a row of `CHARTS`.
      findings: `Findings`.
      dpi: pixels per inch.
    """
    with matplotlib.rc_context(STYLE):
        figure = CHARTS[name].draw(findings)
        if figure is None:
            return None
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]
