"""Resampling: intervals by bootstrap, p-values by swapping models."""

import math

import numpy as np
import scipy.stats

from train_loop.evaluation.predictions import blocks_of

REPLICATES = 500
# With the models as they are, 200: p-values are multiples of 0.005, and the
# test at 0.05 is exact.
SWAPS = 199
LEVEL = 0.95

# The upper end of the exact interval for how many mistakes are expected where
# none was seen. The bootstrap does not know of what no image shows.
UNSEEN = -math.log((1 - LEVEL) / 2)

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


def swaps(count, replicates=SWAPS):
    """Draws for each image which of two models predicts it in which role.

    If the models are equally good, swapping their predictions of an image
    changes nothing but chance: the paired permutation test.

    Args:
      count: of the images.
      replicates: how often.

    Returns:
      0 or 1, [count, 1 + replicates], in the dtype of `resamples`; the first
      column is all ones, the models in their own roles.
    """
    random = np.random.default_rng(count)
    chosen = random.integers(2, size=[count, 1 + replicates], dtype=np.uint8)
    chosen[:, 0] = 1
    return chosen.astype(np.min_scalar_type(count), copy=False)


def permutation_test(differences):
    """Returns the two-sided p-value of a difference measured on `swaps`.

    Args:
      differences: [1 + replicates], the difference itself first. Replicates in
        which it is not defined (nan) are skipped.
    """
    if np.isnan(differences[0]):
        return np.nan
    sizes = np.abs(differences[np.isfinite(differences)])
    # Equal sums, added up in another order.
    return float((sizes >= sizes[0] - 1e-12).mean())


def proportion_interval(successes, count):
    """Returns the exact (Clopper-Pearson) interval of a proportion."""
    test = scipy.stats.binomtest(successes, count)
    return tuple(map(float, test.proportion_ci(LEVEL, "exact")))


def interval(values, mistake=0.0, smallest=-np.inf, largest=np.inf):
    """Returns the confidence interval of a number measured on `resamples`.

    That of the percentiles, corrected twice for bias: the mean of the
    replicates differs from the number as the number differs from the truth.
    (Drawing images twice makes models look worse calibrated and scores better
    ranked than they are.) Each side is widened by what the images do not show:
    mistakes rarer than one in a third of them.

    Args:
      values: [1 + replicates], the number itself first. Replicates in which it
        is not defined (nan) are left out.
      mistake: how far one more mistake would move the number.
      smallest: what the number may be at least.
      largest: what it may be at most.

    Returns:
      (low, high), floats; nan where the number is. The number lies between.
    """
    estimate, drawn = values[0], values[1:]
    drawn = drawn[np.isfinite(drawn)]
    if np.isnan(estimate) or not len(drawn):
        return np.nan, np.nan
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    shift = 2 * (drawn.mean() - estimate)
    below = np.hypot(max(estimate - low + shift, 0), UNSEEN * mistake)
    above = np.hypot(max(high - shift - estimate, 0), UNSEEN * mistake)
    return (
        float(max(estimate - below, smallest)),
        float(min(estimate + above, largest)),
    )
