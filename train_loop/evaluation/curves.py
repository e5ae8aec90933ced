"""Precision-recall, ROC and learning curves: computation and charts."""

import concurrent.futures
import os
from typing import NamedTuple

import numpy as np
import scipy.sparse

from train_loop.evaluation.chart_style import (
    FAINT,
    FIGURE_WIDTH,
    INK,
    MUTED,
    PAPER,
    SERIES,
    class_label,
    new_figure,
)
from train_loop.evaluation.predictions import blocks_of

# Sampling points of the curves.
RECALLS = np.linspace(0, 1, 201)
# Denser where good models differ.
FALSE_RATES = np.append(np.linspace(0, 0.2, 200, endpoint=False), RECALLS[40:])
# Classes and replicates per block, which limit the memory: a class can have
# thousands of thresholds.
CLASSES_PER_BLOCK, REPLICATES_PER_BLOCK = 16, 256

# Maximum number of classes with a curve each; bands summarize more classes.
MOST_LINES = 60
# Number of the worst classes that have a color if there are too many classes.
WORST_CLASSES = 4
# The corner with the ROC curves of good models, and the position of its inset.
CORNER = {"xlim": (0, 0.2), "ylim": (0.8, 1.002)}
CORNER_PLACE = 0.46, 0.1, 0.5, 0.5

# Metrics of the learning curves, one chart below the other.
LEARNING_METRICS = ("loss", "accuracy")
# split -> color and marker.
SPLIT_STYLES = {"train": (SERIES[0], ""), "eval": (SERIES[1], "o")}


class Ranking(NamedTuple):
    """One-vs-rest precision-recall and ROC curves, and the areas under them.

    `average_precisions` and `roc_aucs` are [classes, replicates], one column
    for each of `resamples`. `precisions` at `RECALLS` and `sensitivities` at
    `FALSE_RATES` are [classes, points], for the images themselves. Values of a
    class without examples are nan; ROC values also require an example of
    another class.
    """

    average_precisions: np.ndarray
    roc_aucs: np.ndarray
    precisions: np.ndarray
    sensitivities: np.ndarray


def rank(predictions, weights):
    """Returns the `Ranking` of predictions.

    Args:
      predictions: `Predictions`.
      weights: the weights of `resamples`.
    """
    blocks = [
        np.ascontiguousarray(weights[:, columns])
        for columns in blocks_of(weights.shape[1], REPLICATES_PER_BLOCK)
    ]

    def rank_classes(classes):
        scores = predictions.log_probabilities(classes)
        numbers = range(classes.start, classes.stop)
        return [
            _rank_class(of_class, predictions.labels == number, blocks)
            for of_class, number in zip(scores, numbers, strict=True)
        ]

    slices = blocks_of(predictions.num_classes, CLASSES_PER_BLOCK)
    # NumPy and SciPy release Python's lock in the slow operations.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        groups = threads.map(rank_classes, slices)
        ranked = [of_class for group in groups for of_class in group]
    return Ranking(*map(np.stack, zip(*ranked, strict=True)))


class _Thresholds(NamedTuple):
    """Counts of images by score, [levels, replicates], lowest level first.

    The levels are the distinct scores of the class's images. `own` counts the
    class's images at a level, `true` those at or above it. `false` counts the
    other images at or above it, `higher` those above it.
    """

    own: np.ndarray
    true: np.ndarray
    false: np.ndarray
    higher: np.ndarray


def _rank_class(scores, positive, blocks):
    """Returns the row of a class for each array of `Ranking`.

    Only the class's images are sorted. The weights of another image are added
    once, between the two levels that enclose its score; an image below all
    levels does not count.
    """
    if not positive.any():
        replicates = sum(block.shape[1] for block in blocks)
        sizes = replicates, replicates, len(RECALLS), len(FALSE_RATES)
        return [np.full(size, np.nan) for size in sizes]
    # Equal scores share a level.
    levels, level_of = np.unique(scores[positive], return_inverse=True)
    above = np.flatnonzero(scores >= levels[0])
    place = np.searchsorted(levels, scores[above])
    on_level = levels[np.minimum(place, len(levels) - 1)] == scores[above]
    # Odd slots are levels, even slots lie between two levels.
    slots = 2 * place + on_level

    def count(weights):
        images = np.flatnonzero(positive)
        own = _sums(level_of, images, weights, len(levels))
        both = _sums(slots, above, weights, 2 * len(levels) + 1)
        true, both = _from_the_top(own), _from_the_top(both)
        false = both[1::2] - true
        return _Thresholds(own, true, false, both[2::2] - (true - own))

    # The first replicate is the images themselves.
    num_images = int(blocks[0][:, 0].sum())
    curves = _curves(count(blocks[0][:, :1]), num_images)
    areas = [_areas(count(block), num_images) for block in blocks]
    return *map(np.concatenate, zip(*areas, strict=True)), *curves


def _areas(thresholds, num_images):
    """Returns average precisions and ROC-AUCs, [replicates] each."""
    own, true, false, higher = thresholds
    # Avoids a division by 0 for levels without drawn images.
    precision = true / np.maximum(true + false, 1)
    positives = true[0]
    negatives = num_images - positives
    # An image of another class at the same level counts half.
    worse = (own * (false + higher)).sum(0) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        average_precision = (own * precision).sum(0) / positives
        return average_precision, 1 - worse / positives / negatives


def _curves(thresholds, num_images):
    """Returns precisions at `RECALLS`, sensitivities at `FALSE_RATES`."""
    # Highest scores first.
    true, false = thresholds.true[::-1, 0], thresholds.false[::-1, 0]
    recall, negatives = true / true[-1], num_images - true[-1]
    # The highest threshold that reaches the recall.
    places = np.searchsorted(recall, RECALLS - 1e-9)
    precisions = (true / np.maximum(true + false, 1))[places]
    if not negatives:
        return precisions, np.full(len(FALSE_RATES), np.nan)
    # The lowest threshold that does not exceed the false-positive rate.
    places = np.searchsorted(false / negatives, FALSE_RATES + 1e-9)
    return precisions, np.append(0, recall)[places]


def _sums(groups, images, weights, num_groups):
    """Adds up the weights of each group's images, [groups, replicates]."""
    # The dtype of the weights also holds their sums, and is much faster.
    ones = np.ones(len(images), weights.dtype)
    shape = num_groups, len(weights)
    matrix = scipy.sparse.csr_matrix((ones, (groups, images)), shape)
    return (matrix @ weights).astype(float)


def _from_the_top(sums):
    """Adds to each row all rows after it."""
    reached = sums.copy()
    # NumPy's cumsum works column by column, which is ten times as slow.
    for row in reversed(range(len(sums) - 1)):
        reached[row] += reached[row + 1]
    return reached


class _Curves(NamedTuple):
    """Curves `upward` [classes, points] over `across`, and their areas.

    Undefined curves and areas are nan.
    """

    across: np.ndarray
    upward: np.ndarray
    areas: np.ndarray
    mean_area: float

    @property
    def defined(self):
        """The indices of the classes with a curve, the worst first."""
        worst_first = np.argsort(self.areas, kind="stable")
        return worst_first[: np.isfinite(self.areas).sum()]


def draw_precision_recall(results):
    """Draws the precision-recall curves."""
    curves = _Curves(
        RECALLS,
        results.ranking.precisions,
        results.ranking.average_precisions[:, 0],
        results.estimates["mean_average_precision"],
    )
    return _draw_curves(results, curves, "recall", "precision", "AP")


def draw_roc(results):
    """Draws the ROC curves; None if all images are of one class."""
    curves = _Curves(
        FALSE_RATES,
        results.ranking.sensitivities,
        results.ranking.roc_aucs[:, 0],
        results.estimates["mean_roc_auc"],
    )
    if not len(curves.defined):
        return None
    rates = "false-positive rate", "true-positive rate"
    figure = _draw_curves(results, curves, *rates, "AUC")
    [axis] = figure.axes
    axis.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":")
    corner = axis.inset_axes(CORNER_PLACE, **CORNER)
    corner.set_facecolor(PAPER)
    corner.spines[:].set_visible(True)
    corner.tick_params(labelsize=8)
    corner.set_title("upper-left corner", size=8, backgroundcolor=PAPER, pad=9)
    _plot_curves(corner, results, curves)
    return figure


def draw_learning_curves(records):
    """Draws loss and accuracy against steps; None without records.

    Args:
      records: list of the records of `metrics.jsonl`.
    """
    names = [n for n in LEARNING_METRICS if any(n in r for r in records)]
    if not names:
        return None
    figure = new_figure(2.6 * len(names))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name)
        ends = []
        for split, (color, marker) in SPLIT_STYLES.items():
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
        # One label is above the end of its curve, the other below.
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


def trailing_means(steps, values, span=None):
    """Averages the training metrics of several reports over more steps.

    A report covers the steps since the previous one. At the end of an epoch or
    a run, these can be a few steps, and the metrics are noisy.

    Args:
      steps: steps of the reports, in ascending order.
      values: means since the previous report, [reports, ...].
      span: minimum number of steps that a mean covers, if the reports allow
        it; the default is that of the longest report.

    Returns:
      The means at `steps`, and the number of steps that each covers.
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


def _draw_curves(results, curves, across, upward, area):
    figure = new_figure(FIGURE_WIDTH)
    axis = figure.subplots()
    axis.set(xlim=(0, 1.005), ylim=(0, 1.01), xlabel=across, ylabel=upward)
    _plot_curves(axis, results, curves)
    skipped = len(curves.areas) - len(curves.defined)
    without = f" ({skipped} excluded: no examples)" if skipped else ""
    lines = len(axis.get_legend_handles_labels()[0])
    figure.set_figheight(FIGURE_WIDTH + 0.4 + 0.24 * lines)
    figure.legend(
        loc="outside lower left",
        title=f"{area} by class{without}",
        alignment="left",
    )
    return figure


def _plot_curves(axis, results, curves):
    defined, across = curves.defined, curves.across
    shown = curves.upward[defined]
    colored = defined
    if len(defined) > len(SERIES):
        colored = defined[:WORST_CLASSES]
        _plot_crowd(axis, across, shown)
    for number, color in zip(colored, SERIES, strict=False):
        name = class_label(results.predictions.class_names, number, 36)
        text = f"{curves.areas[number]:.3f} {name}"
        upward = curves.upward[number]
        axis.plot(across, upward, color=color, lw=1.3, label=text)
    text = f"{curves.mean_area:.3f} mean of all classes"
    axis.plot(across, shown.mean(0), color=INK, lw=2.4, label=text)


def _plot_crowd(axis, across, curves):
    """Draws the curves of all classes in gray, or their percentile bands."""
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
            label=f"central {high - low} % of the classes",
        )
