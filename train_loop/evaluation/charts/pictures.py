"""Images that a model gets wrong, to look at."""

import math

from train_loop.evaluation.charts.look import (
    FAINT,
    SERIES,
    WIDTH,
    label,
    new_figure,
)
from train_loop.evaluation.confusion import confused_pairs, mistakes
from train_loop.evaluation.thumbnails import thumbnail

PAIRS = 8
IMAGES_OF_A_PAIR = 5

MISTAKES = 12
COLUMNS = 3

# Pixels.
SIDE = 160


def draw_pairs(findings):
    """Draws the most confused pairs, a row each; None without mistakes."""
    predictions = findings.predictions
    pairs = confused_pairs(predictions, PAIRS)
    if not pairs:
        return None
    figure = new_figure(1.3 * len(pairs))
    rows = figure.subfigures(len(pairs), 1, squeeze=False)[:, 0]
    for row, pair in zip(rows, pairs, strict=True):
        names = " → ".join(
            label(predictions.class_names, number) for number in pair[:2]
        )
        row.suptitle(
            f"{len(pair.images)} ({pair.share:.0%}): {names}",
            size=10,
            x=0.01,
            ha="left",
        )
        axes = row.subplots(1, IMAGES_OF_A_PAIR)
        for axis in axes:
            axis.set_axis_off()
        for axis, number in zip(axes, pair.images, strict=False):
            _show(axis, predictions.picture(number))
    return figure


def draw_mistakes(findings):
    """Draws the most confident mistakes; None where there is none."""
    predictions = findings.predictions
    names = predictions.class_names
    wrong = mistakes(predictions)[:MISTAKES]
    if not len(wrong):
        return None
    rows = math.ceil(len(wrong) / COLUMNS)
    figure = new_figure(rows * (WIDTH / COLUMNS + 0.4))
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(wrong) :]:
        axis.set_axis_off()
    for axis, number in zip(axes, wrong, strict=False):
        _show(axis, predictions.picture(number))
        truth = label(names, predictions.labels[number], 20)
        taken = label(names, predictions.predicted[number], 16)
        axis.set_title(truth, size=9)
        confidence = f"{predictions.confidences[number]:.0%}"
        axis.set_xlabel(
            f"{confidence} {taken}", size=9, color=SERIES[1], loc="left"
        )
    return figure


def _show(axis, picture):
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[], facecolor=FAINT, box_aspect=1)
    if picture is not None:
        axis.imshow(thumbnail(picture, SIDE))
