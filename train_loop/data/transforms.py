"""Transforms from an image file to the input of a model.

Training images are cropped, augmented and mixed by the operations of
`--augment`, in that order. Evaluation images get the center crop of the
model's preprocessing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import tensorflow as tf

from resnet_layers import Preprocessing
from train_loop import values
from train_loop.data.augment import (
    AUGMENTATIONS,
    random_integers,
    rectangle_mask,
)
from train_loop.data.decode import CROPS, center_crop, transcode
from train_loop.errors import UserError
from train_loop.values import Bounds


def mixup(
    images,
    targets,
    partners,
    seed,
    alpha: Annotated[float, Bounds(0.01, 100.0)] = 0.2,
):
    """Interpolates each example with its partner.

    One weight is drawn for the whole batch.

    Source: Zhang et al., 2017, https://arxiv.org/abs/1710.09412.

    Args:
      images: float32 [batch, height, width, channels].
      targets: float32 [batch, num_classes].
      partners: int32 [batch]; see `find_partners`.
      seed: int [2].
      alpha: the weight of an example is drawn from Beta(alpha, alpha).

    Returns:
      (images, targets) with the same shapes and dtypes.
    """
    weight = _beta(seed, alpha)
    return _mix(images, partners, weight), _mix(targets, partners, weight)


def cutmix(
    images,
    targets,
    partners,
    seed,
    alpha: Annotated[float, Bounds(0.01, 100.0)] = 1.0,
):
    """Pastes a rectangle of its partner into each image of a batch.

    The center of the rectangle is uniform in the image, and the rectangle is
    clipped at the border. The weights of the targets are the areas after
    clipping. See `mixup` for the arguments and results.

    Source: Yun et al., 2019, https://arxiv.org/abs/1905.04899.
    """
    shape = images.shape[1:]
    side = tf.sqrt(1.0 - _beta(seed, alpha))
    half = tf.cast(0.5 * side * np.float32(shape[:2]), tf.int32)
    center = tf.stack(random_integers(tf.random.fold_in(seed, 1), shape[:2]))
    low = tf.maximum(center - half, 0)
    high = tf.minimum(center + half, shape[:2])
    area = tf.cast(tf.reduce_prod(high - low), tf.float32)
    weight = 1.0 - area / np.float32(shape[0] * shape[1])
    mask = 1.0 - rectangle_mask(shape, low, high)
    return _mix(images, partners, mask), _mix(targets, partners, weight)


MIXES = {"mixup": mixup, "cutmix": cutmix}
# In the order in which they are applied.
OPERATION_KINDS = {
    "a crop": CROPS,
    "an augmentation": AUGMENTATIONS,
    "a mix": MIXES,
}
OPERATIONS = CROPS | AUGMENTATIONS | MIXES


class Operation(values.Call):
    """An operation on training images with values for its parameters."""

    __slots__ = ()

    flag = "--augment"
    table = OPERATIONS

    @property
    def function(self):
        """The function of the table with its parameters bound."""
        parameters = values.parameters_of(self.entry)
        arguments = zip(parameters, self.arguments, strict=False)
        return functools.partial(self.entry, **dict(arguments))


@dataclasses.dataclass(frozen=True)
class Transforms:
    """Transforms from image files to batches for a model.

    Args:
      preprocessing: a complete `resnet_layers.Preprocessing`.
      operations: `Operation`s on training images, in the order of
        `OPERATION_KINDS`.
      num_classes: number of classes, for mixed labels.
    """

    preprocessing: Preprocessing
    operations: Sequence = ()
    num_classes: int | None = None

    def transcode(self, encoded):
        """Converts a file of any format to JPEG or PNG.

        See `train_loop.data.decode.transcode`.
        """
        return transcode(encoded, self.preprocessing.exif_orientation)

    def train(self, encoded, seed):
        """Decodes and augments a training image.

        Args:
          encoded: scalar string, a JPEG or PNG file.
          seed: int [2]; the same seed gives the same image.

        Returns:
          uint8 [size, size, 3].
        """
        fold_in = tf.random.experimental.stateless_fold_in
        steps = [(o, fold_in(seed, i)) for i, o in enumerate(self.operations)]
        if steps and steps[0][0].name in CROPS:
            crop, crop_seed = steps[0]
            image = crop.function(encoded, crop_seed, self.preprocessing)
        else:
            image = center_crop(encoded, self.preprocessing)
        for operation, operation_seed in steps:
            if operation.name in AUGMENTATIONS:
                image = operation.function(image, operation_seed)
        return to_uint8(image)

    def evaluate(self, encoded):
        """Decodes and crops an evaluation image.

        Args:
          encoded: scalar string, a JPEG or PNG file.

        Returns:
          uint8 [size, size, 3].
        """
        return to_uint8(center_crop(encoded, self.preprocessing))

    @property
    def mixes(self):
        """Functions that mix a batch; each batch uses one at random."""
        return [o.function for o in self.operations if o.name in MIXES]

    def finish(self, images, labels, partners, seed):
        """Mixes a training batch if `operations` contain a mix.

        Args:
          images: uint8 [batch, size, size, 3].
          labels: int64 [batch].
          partners: int32 [batch]; see `find_partners`.
          seed: int [2].

        Returns:
          (images, labels). Images stay uint8. Labels of mixed batches are
          probabilities, float32 [batch, num_classes].
        """
        if not self.mixes:
            return images, labels
        targets = tf.one_hot(labels, self.num_classes)
        images = tf.cast(images, tf.float32)
        images, targets = mix_one_of(
            self.mixes, images, targets, partners, seed
        )
        return to_uint8(images), targets


class Untransformed:
    """The interface of `Transforms` for embeddings, without any change."""

    def transcode(self, example):
        return example

    def train(self, example, seed):
        del seed
        return example

    def evaluate(self, example):
        return example

    def finish(self, examples, labels, partners, seed):
        del partners, seed
        return examples, labels


def preprocessing_of(split, preprocessing):
    """Returns the preprocessing of a split.

    Images of TFDS are decoded as stored, without their EXIF orientation.
    """
    if split.store.as_stored:
        return preprocessing._replace(exif_orientation=False)
    return preprocessing


def parse_operations(operations):
    """Parses the operations of `--augment`.

    Args:
      operations: text with operations separated by commas, or a sequence of
        texts and `Operation`s.

    Returns:
      A tuple of `Operation`s.

    Raises:
      UserError: an operation or its position is invalid.
    """
    if isinstance(operations, str):
        operations = [text for text in operations.split(",") if text.strip()]
    parsed = tuple(
        operation
        if isinstance(operation, Operation)
        else Operation.parse(operation)
        for operation in operations
    )
    for first, second in itertools.pairwise(parsed):
        ranks = [
            rank
            for name in (first.name, second.name)
            for rank, kind in enumerate(OPERATION_KINDS.values())
            if name in kind
        ]
        if ranks[0] > ranks[1] or ranks == [0, 0]:
            kinds = list(OPERATION_KINDS)
            raise UserError(
                f"--augment={','.join(map(str, parsed))}: {second.name} "
                f"({kinds[ranks[1]]}) cannot follow {first.name} "
                f"({kinds[ranks[0]]}). List at most one crop, then "
                "augmentations, then mixes."
            )
    return parsed


def operation_usage(name):
    """Returns the syntax of an operation, NAME:NUMBER (default)."""
    return values.call_usage(name, OPERATIONS[name])


def find_partners(positions, repeats):
    """Returns the example of a batch that each example is mixed with.

    The partner is the example `repeats` positions earlier. No image is mixed
    with a repeat of itself, and each example is the partner of one other. In a
    batch of fewer than two images with all their repeats, the partner is the
    nearest earlier example of another image.

    Args:
      positions: int [batch], positions in the stream of training examples,
        where repeats of an image are adjacent.
      repeats: number of repeats of each image.

    Returns:
      int32 [batch], indices in the batch.
    """
    size = positions.shape[0]
    indices = tf.range(size)
    offsets = tf.range(size if size < 2 * repeats else 1)
    candidates = (indices[:, tf.newaxis] - repeats - offsets) % size
    images = positions // repeats
    is_other = tf.gather(images, candidates) != images[:, tf.newaxis]
    # If the batch has no other image, the first candidate.
    first = tf.argmax(is_other, axis=1)
    return tf.gather(candidates, first, batch_dims=1)


def mix_one_of(mixes, images, targets, partners, seed):
    """Applies one of several mixes, each with the same probability.

    Args:
      mixes: functions with the signature of `mixup`.
      images: float32 [batch, height, width, channels].
      targets: float32 [batch, num_classes].
      partners: int32 [batch]; see `find_partners`.
      seed: int [2]. It selects a mix by its index in `mixes`.

    Returns:
      (images, targets) with the same shapes and dtypes.
    """
    [choice] = random_integers(seed, [len(mixes)])
    seed = tf.random.fold_in(seed, 1)
    branches = [
        functools.partial(function, images, targets, partners, seed)
        for function in mixes
    ]
    return tf.switch_case(choice, branches)


def to_uint8(image):
    """Rounds an image to uint8, as Pillow does.

    The host sends uint8 to the devices: a quarter of the bytes of float32.
    """
    return tf.cast(image + 0.5, tf.uint8)


def _beta(seed, alpha):
    """Draws from Beta(alpha, alpha)."""
    # For a small alpha, both float32 gammas are often the smallest number.
    gammas = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
    return tf.cast(gammas[0] / tf.reduce_sum(gammas), tf.float32)


def _mix(batch, partners, weight):
    """Returns the weighted sum of each example and its partner."""
    return weight * batch + (1.0 - weight) * tf.gather(batch, partners)
