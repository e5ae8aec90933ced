"""Confusion matrices, from two classes to thousands."""

import math

import numpy as np

from train_loop.evaluation.charts.look import SHADES, WIDTH, label, new_figure
from train_loop.evaluation.confusion import (
    binned_matrix,
    confused_pairs,
    confusion_matrix,
)

# Letters of a class's name.
LETTERS = 20

# How many cells an overview has on a side at most, and how many classes the
# part of it that is shown with names.
OVERVIEW_CELLS = 250
NAMED_CLASSES = 24

# Inches.
CELL, NAME = 0.24, 1.8


def draw_confusion(findings):
    """Draws the matrix in the form that suits the number of classes."""
    classes = findings.predictions.num_classes
    draw = next(draw for most, draw in FORMS if classes <= most)
    return draw(findings)


def _draw_whole(findings):
    """Draws every cell, with its count."""
    classes = range(findings.predictions.num_classes)
    side = max(CELL * len(classes) + NAME, WIDTH)
    figure = new_figure(side, side)
    _draw_named(figure.subplots(), findings, classes)
    return figure


def _draw_overview(findings):
    """Draws the structure, and below it the most confused classes by name."""
    predictions = findings.predictions
    pairs = confused_pairs(predictions, NAMED_CLASSES)
    # Pair by pair, as long as there is room.
    classes = list(dict.fromkeys(c for pair in pairs for c in pair[:2]))
    classes = sorted(classes[:NAMED_CLASSES])
    named = CELL * len(classes) + NAME
    width = max(named, WIDTH)
    figure = new_figure(width + named, width)
    above, below = figure.subfigures(2, 1, height_ratios=[width, named])
    _draw_structure(above.subplots(), findings)
    if classes:
        axis = below.subplots()
        _draw_named(axis, findings, classes)
        axis.set_title("The most confused classes")
    return figure


def _draw_structure(axis, findings):
    classes = findings.predictions.num_classes
    step = math.ceil(classes / OVERVIEW_CELLS)
    binned = binned_matrix(findings.predictions, step)
    # A single mistake among thousands of images shall be seen beside the
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


def _draw_named(axis, findings, classes):
    """Draws the rows and columns of some classes."""
    matrix = confusion_matrix(findings.predictions, classes)
    shares = matrix / np.maximum(findings.examples[classes], 1)[:, None]
    axis.imshow(shares, cmap=SHADES, vmin=0, vmax=1, aspect="equal")
    size = _letter_size(len(classes))
    for row, column in np.argwhere(matrix):
        axis.text(
            column,
            row,
            _count(matrix[row, column]),
            size=size,
            ha="center",
            va="center",
            # Not quite white: it stays so on dark paper.
            **({"color": "#fefefe"} if shares[row, column] > 0.7 else {}),
        )
    class_names = findings.predictions.class_names
    names = [label(class_names, number, LETTERS) for number in classes]
    axis.set_xticks(range(len(classes)), names, rotation=90)
    axis.set_yticks(range(len(classes)), names)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")


def _letter_size(classes):
    """Returns the points of a count that fits its cell."""
    return max(min(10, 150 / classes), 6.5)


def _count(number):
    """Returns a count in four letters."""
    if number < 1000:
        return str(number)
    return f"{number / 1000:.{1 if number < 10_000 else 0}f}k"


# The largest number of classes -> how they are drawn.
FORMS = ((60, _draw_whole), (math.inf, _draw_overview))
