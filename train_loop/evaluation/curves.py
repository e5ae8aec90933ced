"""Precision-recall and ROC curves: the areas below them, and their charts."""

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

# Where curves are read off.
RECALLS = np.linspace(0, 1, 201)

# Closer where good models differ.
FALSE_RATES = np.append(np.linspace(0, 0.2, 200, endpoint=False), RECALLS[40:])

# How many classes are looked at together, and how many replicates: of two
# classes, each has thousands of thresholds.
CLASSES_PER_BLOCK, REPLICATES_PER_BLOCK = 16, 256


class Ranking(NamedTuple):
    """One-versus-rest: how well scores put a class's images first.

    The areas have a column for each of `resamples`, the curves are those of
    the images themselves. Without an example (and for the ROC, without an
    example of another class) all of it is nan.

    `average_precisions` and `roc_aucs` are [classes, replicates];
    `precisions`, at `RECALLS`, and `sensitivities`, at `FALSE_RATES`, are
    [classes, points].
    """

    average_precisions: np.ndarray
    roc_aucs: np.ndarray
    precisions: np.ndarray
    sensitivities: np.ndarray


def rank(predictions, weights):
    """Returns the `Ranking` of predictions.

    Args:
      predictions: `Predictions`.
      weights: of `resamples`.
    """

    blocks = [
        np.ascontiguousarray(weights[:, columns])
        for columns in blocks_of(weights.shape[1], REPLICATES_PER_BLOCK)
    ]

    def rank_some(classes):
        scores = predictions.log_probabilities(classes)
        numbers = range(classes.start, classes.stop)
        return [
            _rank_class(row, predictions.labels == number, blocks)
            for row, number in zip(scores, numbers, strict=True)
        ]

    some = blocks_of(predictions.num_classes, CLASSES_PER_BLOCK)
    # What takes long, NumPy and SciPy do without Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        ranked = [one for ones in threads.map(rank_some, some) for one in ones]
    return Ranking(*map(np.stack, zip(*ranked, strict=True)))


class _Thresholds(NamedTuple):
    """How many images score how high; [levels, replicates], lowest first.

    The levels are the scores of the class's own images. `own` have just that
    score, `true` at least that; of all other images, `false` have at least
    that, and `higher` more.
    """

    own: np.ndarray
    true: np.ndarray
    false: np.ndarray
    higher: np.ndarray


def _rank_class(scores, positive, blocks):
    """Returns a row of each of `Ranking`'s arrays.

    Only the class's own images need be ranked. Every other one counts by the
    two of them that it falls between, so that its weights are added up once,
    and not at all where it falls below all of them.
    """
    if not positive.any():
        replicates = sum(block.shape[1] for block in blocks)
        sizes = replicates, replicates, len(RECALLS), len(FALSE_RATES)
        return [np.full(size, np.nan) for size in sizes]
    # Equal scores are one level.
    levels, level_of = np.unique(scores[positive], return_inverse=True)
    above = np.flatnonzero(scores >= levels[0])
    place = np.searchsorted(levels, scores[above])
    on_level = levels[np.minimum(place, len(levels) - 1)] == scores[above]
    # Odd places are levels, even ones lie between two of them.
    places = 2 * place + on_level

    def count(weights):
        images = np.flatnonzero(positive)
        own = _sums(level_of, images, weights, len(levels))
        everyone = _sums(places, above, weights, 2 * len(levels) + 1)
        true, everyone = _from_the_top(own), _from_the_top(everyone)
        false = everyone[1::2] - true
        return _Thresholds(own, true, false, everyone[2::2] - (true - own))

    # The first replicate are the images themselves.
    num_images = int(blocks[0][:, 0].sum())
    curves = _curves(count(blocks[0][:, :1]), num_images)
    areas = [_areas(count(block), num_images) for block in blocks]
    return *map(np.concatenate, zip(*areas, strict=True)), *curves


def _areas(thresholds, num_images):
    """Returns average precisions and areas below ROC curves, [replicates]."""
    own, true, false, higher = thresholds
    # What was not drawn counts nothing, and shall not divide by 0.
    precision = true / np.maximum(true + false, 1)
    positives = true[0]
    negatives = num_images - positives
    # Another image on the same level counts half.
    worse = (own * (false + higher)).sum(0) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        average_precision = (own * precision).sum(0) / positives
        return average_precision, 1 - worse / positives / negatives


def _curves(thresholds, num_images):
    """Returns precisions at `RECALLS`, sensitivities at `FALSE_RATES`."""
    # Highest scores first.
    true, false = thresholds.true[::-1, 0], thresholds.false[::-1, 0]
    recall, negatives = true / true[-1], num_images - true[-1]
    # With at least so many of the class's own images found.
    places = np.searchsorted(recall, RECALLS - 1e-9)
    precisions = (true / np.maximum(true + false, 1))[places]
    if not negatives:
        return precisions, np.full(len(FALSE_RATES), np.nan)
    # With at most so many of the others taken for them.
    places = np.searchsorted(false / negatives, FALSE_RATES + 1e-9)
    return precisions, np.append(0, recall)[places]


def _sums(groups, images, weights, num_groups):
    """Adds up the weights of each group's images, [groups, replicates]."""
    # The weights' dtype holds the sums as well, and is much faster to add.
    ones = np.ones(len(images), weights.dtype)
    shape = num_groups, len(weights)
    matrix = scipy.sparse.csr_matrix((ones, (groups, images)), shape)
    return (matrix @ weights).astype(float)


def _from_the_top(sums):
    """Adds to every row those below it."""
    reached = sums.copy()
    # NumPy's own cumulative sum goes column by column, ten times as slow.
    for row in reversed(range(len(sums) - 1)):
        reached[row] += reached[row + 1]
    return reached


# Up to this many classes each has a curve, behind those that have a color; of
# more, bands show where most lie.
MOST_LINES = 60
# How many of the worst classes have a color, where not all can.
WORST_CLASSES = 4
# The corner that good models' ROC curves lie in, and where it is shown.
CORNER = {"xlim": (0, 0.2), "ylim": (0.8, 1.002)}
CORNER_PLACE = 0.46, 0.1, 0.5, 0.5

# Metrics of a run's reports, one chart below the other.
LEARNING_METRICS = ("loss", "accuracy")
# split -> color and marker.
SPLIT_STYLES = {"train": (SERIES[0], ""), "eval": (SERIES[1], "o")}


class _Curves(NamedTuple):
    """A curve [classes, points] over `across` each, and the areas below.

    Classes for which there is none are nan.
    """

    across: np.ndarray
    upward: np.ndarray
    areas: np.ndarray
    mean_area: float

    @property
    def defined(self):
        """The numbers of the classes that have one, the worst first."""
        worst_first = np.argsort(self.areas, kind="stable")
        return worst_first[: np.isfinite(self.areas).sum()]


def draw_precision_recall(results):
    """Draws precision against recall."""
    curves = _Curves(
        RECALLS,
        results.ranking.precisions,
        results.ranking.average_precisions[:, 0],
        results.estimates["mean_average_precision"],
    )
    return _draw_curves(results, curves, "recall", "precision", "AP")


def draw_roc(results):
    """Draws the curves and their corner; None where all are of one class."""
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
    corner.set_title("upper left corner", size=8, backgroundcolor=PAPER, pad=9)
    _plot_curves(corner, results, curves)
    return figure


def draw_learning_curves(results):
    """Draws loss and accuracy against steps; None without any report."""
    records = results.records
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


def _draw_curves(results, curves, across, upward, area):
    figure = new_figure(FIGURE_WIDTH)
    axis = figure.subplots()
    axis.set(xlim=(0, 1.005), ylim=(0, 1.01), xlabel=across, ylabel=upward)
    _plot_curves(axis, results, curves)
    skipped = len(curves.areas) - len(curves.defined)
    without = f" ({skipped} left out, without examples)" if skipped else ""
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
    """Draws what has no color of its own."""
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
