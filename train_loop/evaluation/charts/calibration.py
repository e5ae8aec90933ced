"""Reliability diagrams."""

import numpy as np

from train_loop.evaluation.calibration import EDGES, reliability
from train_loop.evaluation.charts.look import INK, MUTED, SERIES, new_figure


def draw_reliability(findings):
    """Draws accuracy against confidence, over how often each occurs."""
    measured = reliability(findings.predictions)
    figure = new_figure(5.6)
    axis, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    middles, width = (EDGES[1:] + EDGES[:-1]) / 2, np.diff(EDGES) * 0.9
    error = findings.estimates["expected_calibration_error"]
    axis.bar(
        middles,
        measured.accuracies,
        width,
        color=SERIES[0],
        alpha=0.75,
        label=f"accuracy; calibration error {error:.2%}",
    )
    if findings.temperature is not None:
        tempered = reliability(findings.tempered)
        axis.plot(
            tempered.confidences,
            tempered.accuracies,
            color=SERIES[1],
            marker="o",
            ms=4,
            clip_on=False,
            zorder=3,
            label=f"with temperature {findings.temperature:.3g}; calibration "
            f"error {findings.tempered_error:.2%}",
        )
    axis.plot([0, 1], [0, 1], color=INK, lw=1, ls=":")
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    shares = measured.counts / measured.counts.sum()
    below.bar(middles, 100 * shares, width, color=MUTED)
    below.set(xlabel="confidence", ylabel="% of images")
    figure.legend(loc="outside lower left")
    return figure
