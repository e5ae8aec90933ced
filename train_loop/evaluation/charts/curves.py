"""Curves of precision against recall, and of hits against false alarms."""

from typing import NamedTuple

import numpy as np

from train_loop.evaluation.charts.look import (
    FAINT,
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDTH,
    label,
    new_figure,
)
from train_loop.evaluation.ranking import FALSE_RATES, RECALLS

# Up to this many classes each is drawn, behind those that have a colour; of
# more, the bands that most lie in.
MOST_LINES = 60

# How many of the worst classes have a colour, where not all can.
WORST = 4

# The corner that good models' ROC curves lie in, and where it is shown.
CORNER = {"xlim": (0, 0.2), "ylim": (0.8, 1.002)}
CORNER_PLACE = 0.46, 0.1, 0.5, 0.5


class Curves(NamedTuple):
    """A curve [classes, points] over `across` each, and the areas below.

    Classes for which there is none are nan.
    """

    across: np.ndarray
    upward: np.ndarray
    areas: np.ndarray
    mean_area: float

    @property
    def defined(self):
        """The numbers of the classes that have one, those worst first."""
        worst_first = np.argsort(self.areas, kind="stable")
        return worst_first[: np.isfinite(self.areas).sum()]


def draw_precision_recall(findings):
    """Draws precision against recall."""
    curves = Curves(
        RECALLS,
        findings.ranking.precisions,
        findings.ranking.average_precisions[:, 0],
        findings.estimates["mean_average_precision"],
    )
    return _draw(findings, curves, "recall", "precision", "AP")


def draw_roc(findings):
    """Draws the curves and their corner; None where all are of one class."""
    curves = Curves(
        FALSE_RATES,
        findings.ranking.sensitivities,
        findings.ranking.roc_aucs[:, 0],
        findings.estimates["mean_roc_auc"],
    )
    if not len(curves.defined):
        return None
    rates = "false-positive rate", "true-positive rate"
    figure = _draw(findings, curves, *rates, "AUC")
    [axis] = figure.axes
    axis.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":")
    corner = axis.inset_axes(CORNER_PLACE, **CORNER)
    corner.set_facecolor(PAPER)
    corner.spines[:].set_visible(True)
    corner.tick_params(labelsize=8)
    corner.set_title("upper left corner", size=8, backgroundcolor=PAPER, pad=9)
    _plot(corner, findings, curves)
    return figure


def _draw(findings, curves, across, upward, area):
    figure = new_figure(WIDTH)
    axis = figure.subplots()
    axis.set(xlim=(0, 1.005), ylim=(0, 1.01), xlabel=across, ylabel=upward)
    _plot(axis, findings, curves)
    left_out = len(curves.areas) - len(curves.defined)
    without = f" ({left_out} left out, without examples)" if left_out else ""
    lines = len(axis.get_legend_handles_labels()[0])
    figure.set_figheight(WIDTH + 0.4 + 0.24 * lines)
    figure.legend(
        loc="outside lower left",
        title=f"{area} by class{without}",
        alignment="left",
    )
    return figure


def _plot(axis, findings, curves):
    defined, across = curves.defined, curves.across
    shown = curves.upward[defined]
    colored = defined
    if len(defined) > len(SERIES):
        colored = defined[:WORST]
        _plot_crowd(axis, across, shown)
    for number, color in zip(colored, SERIES, strict=False):
        name = label(findings.predictions.class_names, number, 36)
        text = f"{curves.areas[number]:.3f} {name}"
        upward = curves.upward[number]
        axis.plot(across, upward, color=color, lw=1.3, label=text)
    text = f"{curves.mean_area:.3f} mean of all classes"
    axis.plot(across, shown.mean(0), color=INK, lw=2.4, label=text)


def _plot_crowd(axis, across, curves):
    """Draws what has no colour of its own."""
    if len(curves) <= MOST_LINES:
        axis.plot(across, curves.T, color=FAINT, lw=1)
        axis.plot([], [], color=FAINT, lw=1, label="each class")
        return
    for low, high, color in ((5, 95, FAINT), (25, 75, MUTED)):
        axis.fill_between(
            across,
            *np.percentile(curves, [low, high], axis=0),
            color=color,
            alpha=0.6,
            lw=0,
            label=f"the middle {high - low} % of the classes",
        )
