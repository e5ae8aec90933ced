"""The bootstrap: how far a number would move on other images."""

import numpy as np

from train_loop.evaluation.predictions import blocks_of

REPLICATES = 500
LEVEL = 0.95

# How many replicates are turned to float64 at once.
BLOCK = 64


def resamples(count, replicates=REPLICATES):
    """Draws as many images as there are, with replacement, again and again.

    The numbers drawn depend on `count` alone: what two models are measured
    with on the same images is drawn alike, so that their difference is paired.

    Args:
      count: of the images.
      replicates: how often.

    Returns:
      How often each image was drawn, [count, 1 + replicates]; the first column
      is all ones, the images themselves. Every column sums to `count`, and the
      dtype is the smallest one that holds that.
    """
    random = np.random.default_rng(count)
    dtype = np.min_scalar_type(count)
    weights = np.ones([1 + replicates, count], dtype)
    for row in weights[1:]:
        drawn = random.integers(count, size=count)
        row[:] = np.bincount(drawn, minlength=count)
    return np.ascontiguousarray(weights.T)


def weighted_sums(matrix, weights):
    """Multiplies a matrix [rows, images], sparse or not, by `resamples`."""
    return np.concatenate(
        [
            matrix @ weights[:, columns].astype(float)
            for columns in blocks_of(weights.shape[1], BLOCK)
        ],
        axis=1,
    )


def interval(values, smallest=-np.inf, largest=np.inf):
    """Returns the interval of a number that was measured on `resamples`.

    It is that of the percentiles, moved so that the mean of the replicates
    comes to lie on the number itself. Drawing images twice makes nets look
    worse calibrated and scores better ranked than they are; an interval that
    was not moved may miss the number that it belongs to.

    Args:
      values: [1 + replicates], the number itself first. Replicates in which it
        is not defined (nan) are left out.
      smallest: what the number may be at least.
      largest: what it may be at most.

    Returns:
      (low, high), floats; nan where the number is.
    """
    estimate, drawn = values[0], values[1:]
    drawn = drawn[np.isfinite(drawn)]
    if np.isnan(estimate) or not len(drawn):
        return np.nan, np.nan
    tail = (1 - LEVEL) / 2
    moved = drawn - drawn.mean() + estimate
    low, high = np.quantile(moved, [tail, 1 - tail]).clip(smallest, largest)
    return float(low), float(high)
