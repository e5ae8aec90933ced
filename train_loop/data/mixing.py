"""Mixing: how the images of a training batch are blended with one another."""

import functools
from typing import Annotated

import numpy as np
import tensorflow as tf

from train_loop.bounds import Bounds
from train_loop.data.draws import box, draw


def mixup(
    images, targets, seed, alpha: Annotated[float, Bounds(0.01, 100.0)] = 0.2
):
    """Blends every example with the one before it in the batch.

    Zhang et al., 2017, https://arxiv.org/abs/1710.09412. One share is drawn for
    the whole batch; the first example's partner is the last.

    Args:
      images: float32 [batch, height, width, channels].
      targets: float32 [batch, num_classes].
      seed: int [2].
      alpha: an example keeps a share drawn from Beta(alpha, alpha).

    Returns:
      (images, targets) of the same shapes.
    """
    share = _beta(seed, alpha)
    return _mix(images, share), _mix(targets, share)


def cutmix(
    images, targets, seed, alpha: Annotated[float, Bounds(0.01, 100.0)] = 1.0
):
    """Puts a rectangle of the example before it into every image of a batch.

    Yun et al., 2019, https://arxiv.org/abs/1905.04899. The rectangle's centre
    is anywhere in the image; what juts out is cut off, and the targets follow
    the area that is left. Arguments and results are those of `mixup`.
    """
    shape = images.shape[1:]
    side = tf.sqrt(1.0 - _beta(seed, alpha))
    half = tf.cast(0.5 * side * np.float32(shape[:2]), tf.int32)
    centre = tf.stack(draw(tf.random.fold_in(seed, 1), shape[:2]))
    low = tf.maximum(centre - half, 0)
    high = tf.minimum(centre + half, shape[:2])
    cut = tf.cast(tf.reduce_prod(high - low), tf.float32)
    share = 1.0 - cut / np.float32(shape[0] * shape[1])
    return _mix(images, 1.0 - box(shape, low, high)), _mix(targets, share)


MIXES = {"mixup": mixup, "cutmix": cutmix}


def mix_one_of(mixes, images, targets, seed):
    """Applies one of several ways to mix, each equally often.

    Args:
      mixes: functions like `mixup`; their order matters.
      images: float32 [batch, height, width, channels].
      targets: float32 [batch, num_classes].
      seed: int [2].

    Returns:
      (images, targets) of the same shapes.
    """
    [choice] = draw(seed, [len(mixes)])
    seed = tf.random.fold_in(seed, 1)
    branches = [
        functools.partial(function, images, targets, seed) for function in mixes
    ]
    return tf.switch_case(choice, branches)


def _beta(seed, alpha):
    """Draws from Beta(alpha, alpha)."""
    # Float32 would often give its smallest number twice where alpha is small.
    gammas = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
    return tf.cast(gammas[0] / tf.reduce_sum(gammas), tf.float32)


def _mix(batch, share):
    """Returns `share` of each example and the rest of the one before it."""
    return share * batch + (1.0 - share) * tf.roll(batch, 1, axis=0)
