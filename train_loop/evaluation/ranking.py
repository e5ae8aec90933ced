"""How well each class's scores put its images before all others."""

import concurrent.futures
import os
from typing import NamedTuple

import numpy as np
import scipy.sparse

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
