"""Mixing: how the images of a training batch are blended with one another."""

import functools
from typing import Annotated

import numpy as np
import tensorflow as tf

from train_loop.data.draws import box, draw
from train_loop.values import Bounds


def find_partners(positions, repeats):
    """Returns which example of a batch each is mixed with.

    The one `repeats` places before it, so that no image is mixed with a repeat
    of itself, and every example is the partner of one. A batch shorter than
    two images with all their repeats may leave no such order: there, the
    partner is the next one before it that shows another image.

    Args:
      positions: int [batch], places in the stream of training examples, where
        repeats of an image stand next to each other.
      repeats: how often each image stands there.

    Returns:
      int32 [batch].
    """
    size = positions.shape[0]
    places = tf.range(size)
    tries = tf.range(size if size < 2 * repeats else 1)
    candidates = (places[:, tf.newaxis] - repeats - tries) % size
    images = positions // repeats
    is_other = tf.gather(images, candidates) != images[:, tf.newaxis]
    # Where no other image is there, the first candidate.
    first = tf.argmax(is_other, axis=1)
    return tf.gather(candidates, first, batch_dims=1)


def mixup(
    images,
    targets,
    partners,
    seed,
    alpha: Annotated[float, Bounds(0.01, 100.0)] = 0.2,
):
    """Mixes every example with its partner.

    Zhang et al., 2017, https://arxiv.org/abs/1710.09412. One share is drawn for
    the whole batch.

    Args:
      images: float32 [batch, height, width, channels].
      targets: float32 [batch, num_classes].
      partners: int32 [batch], see `find_partners`.
      seed: int [2].
      alpha: an example keeps a share drawn from Beta(alpha, alpha).

    Returns:
      (images, targets) of the same shapes.
    """
    share = _beta(seed, alpha)
    return _mix(images, partners, share), _mix(targets, partners, share)


def cutmix(
    images,
    targets,
    partners,
    seed,
    alpha: Annotated[float, Bounds(0.01, 100.0)] = 1.0,
):
    """Puts a rectangle of its partner into every image of a batch.

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
    kept = 1.0 - box(shape, low, high)
    return _mix(images, partners, kept), _mix(targets, partners, share)


MIXES = {"mixup": mixup, "cutmix": cutmix}


def mix_one_of(mixes, images, targets, partners, seed):
    """Applies one of several ways to mix, each equally often.

    Args:
      mixes: functions like `mixup`; their order matters.
      images: float32 [batch, height, width, channels].
      targets: float32 [batch, num_classes].
      partners: int32 [batch], see `find_partners`.
      seed: int [2].

    Returns:
      (images, targets) of the same shapes.
    """
    [choice] = draw(seed, [len(mixes)])
    seed = tf.random.fold_in(seed, 1)
    branches = [
        functools.partial(function, images, targets, partners, seed)
        for function in mixes
    ]
    return tf.switch_case(choice, branches)


def _beta(seed, alpha):
    """Draws from Beta(alpha, alpha)."""
    # Float32 would often give its smallest number twice where alpha is small.
    gammas = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
    return tf.cast(gammas[0] / tf.reduce_sum(gammas), tf.float32)


def _mix(batch, partners, share):
    """Returns `share` of each example and the rest of its partner."""
    return share * batch + (1.0 - share) * tf.gather(batch, partners)
