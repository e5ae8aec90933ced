"""Curves of what a run reported while it trained."""

import numpy as np

from train_loop.evaluation.charts.look import SERIES, new_figure

# What is drawn of a run's reports, one below the other.
DRAWN = ("loss", "accuracy")

# split -> colour, and whether its points are marked.
SPLITS = {"train": (SERIES[0], ""), "eval": (SERIES[1], "o")}


def trailing_means(steps, values, span=None):
    """Averages what training reported with what it reported before.

    A report covers the steps since the one before. Where an epoch or a run
    ends shortly after another report, that is a batch or two: noise.

    Args:
      steps: of the reports, in ascending order.
      values: the means since the report before, [reports, ...].
      span: how many steps a mean covers at least, as far as there are so many;
        by default as many as the longest report.

    Returns:
      The means at `steps`, and how many steps each covers.
    """
    steps, values = np.asarray(steps), np.asarray(values, float)
    starts = np.append(0, steps[:-1])
    if span is None:
        span = (steps - starts).max()
    sums = np.cumsum(((steps - starts) * values.T).T, axis=0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    first = np.searchsorted(starts, steps - span, side="right") - 1
    first = np.maximum(first, 0)
    covered = steps - starts[first]
    return ((sums[1:] - sums[first]).T / covered).T, covered


def draw_learning(findings):
    """Draws loss and accuracy against steps; None without any report."""
    records = findings.records
    drawn = [name for name in DRAWN if any(name in r for r in records)]
    if not drawn:
        return None
    figure = new_figure(2.6 * len(drawn))
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, drawn, strict=True):
        axis.set_title(name)
        ends = []
        for split, (color, marker) in SPLITS.items():
            points = [
                (record["step"], record[name])
                for record in records
                if record["split"] == split and name in record
            ]
            if points:
                steps, values = zip(*sorted(points), strict=True)
                if split == "train":
                    values, _ = trailing_means(steps, values)
                axis.plot(steps, values, marker=marker, ms=3, color=color)
                ends.append((values[-1], steps[-1], split, color))
        # One stands above its curve's end, the other below.
        for (value, step, split, color), side in zip(
            sorted(ends, reverse=True), ("bottom", "top"), strict=False
        ):
            axis.annotate(
                f"{split} {value:.3g}",
                (step, value),
                xytext=(5, 0),
                textcoords="offset points",
                va=side,
                color=color,
                annotation_clip=False,
            )
    axes[-1].set_xlabel("step")
    return figure
