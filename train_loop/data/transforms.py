"""What is done to images on their way from a file to a model.

Training images are cropped, augmented and mixed as `--augment` lists it, in
that order; evaluation images are cropped as the model's preprocessing says.
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

    Yun et al., 2019, https://arxiv.org/abs/1905.04899. The rectangle's center
    is anywhere in the image; what juts out is cut off, and the targets follow
    the area that is left. Arguments and results are those of `mixup`.
    """
    shape = images.shape[1:]
    side = tf.sqrt(1.0 - _beta(seed, alpha))
    half = tf.cast(0.5 * side * np.float32(shape[:2]), tf.int32)
    center = tf.stack(random_integers(tf.random.fold_in(seed, 1), shape[:2]))
    low = tf.maximum(center - half, 0)
    high = tf.minimum(center + half, shape[:2])
    cut = tf.cast(tf.reduce_prod(high - low), tf.float32)
    share = 1.0 - cut / np.float32(shape[0] * shape[1])
    kept = 1.0 - rectangle_mask(shape, low, high)
    return _mix(images, partners, kept), _mix(targets, partners, share)


MIXES = {"mixup": mixup, "cutmix": cutmix}
# In the order in which they are done.
OPERATION_KINDS = {
    "a crop, which decodes": CROPS,
    "an augmentation of decoded images": AUGMENTATIONS,
    "a mix of whole batches": MIXES,
}
OPERATIONS = CROPS | AUGMENTATIONS | MIXES


class Operation(values.Call):
    """An operation on training images, and numbers for its parameters."""

    __slots__ = ()

    flag = "--augment"
    table = OPERATIONS

    @property
    def function(self):
        """The function, which takes only what comes before its parameters."""
        parameters = values.parameters_of(self.entry)
        named = zip(parameters, self.arguments, strict=False)
        return functools.partial(self.entry, **dict(named))


@dataclasses.dataclass(frozen=True)
class Transforms:
    """What is done to images before a model gets them.

    Args:
      preprocessing: a `resnet_layers.Preprocessing` without gaps.
      operations: `Operation`s on training images.
      num_classes: number of classes, for mixed labels.
    """

    preprocessing: Preprocessing
    operations: Sequence = ()
    num_classes: int | None = None

    def transcode(self, encoded):
        """Maps a file of any format to JPEG or PNG; see `decode.transcode`."""
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
        """Decodes and crops an evaluation image: uint8 [size, size, 3].

        Args:
          encoded: scalar string, a JPEG or PNG file.
        """
        return to_uint8(center_crop(encoded, self.preprocessing))

    @property
    def mixes(self):
        """The functions that mix whole batches; one is drawn for each."""
        return [o.function for o in self.operations if o.name in MIXES]

    def finish(self, images, labels, partners, seed):
        """Mixes a training batch, if `--augment` lists a mix.

        Args:
          images: uint8 [batch, size, size, 3].
          labels: int64 [batch].
          partners: int32 [batch], which example each is mixed with.
          seed: int [2].

        Returns:
          (uint8 images, labels), of which the labels are probabilities,
          float32 [batch, num_classes], where batches are mixed.
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
    """Transforms of what needs none, such as embeddings."""

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
    """Returns what images of a split go through: TFDS's stay as stored."""
    if split.store.as_stored:
        return preprocessing._replace(exif_orientation=False)
    return preprocessing


def parse_operations(operations):
    """Returns a tuple of `Operation`s that can be done in their order.

    Args:
      operations: text with commas between operations, or a sequence of texts
        and `Operation`s.

    Raises:
      UserError: one is not possible, or not where it stands.
    """
    if isinstance(operations, str):
        operations = [text for text in operations.split(",") if text.strip()]
    parsed = tuple(
        each if isinstance(each, Operation) else Operation.parse(each)
        for each in operations
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
                f"--augment={','.join(map(str, parsed))} cannot be done in "
                f"this order: {second.name} is {kinds[ranks[1]]}, and comes "
                f"behind {first.name}, which is {kinds[ranks[0]]}; first one "
                "crop at most, then augmentations, then mixes"
            )
    return parsed


def operation_usage(name):
    """Returns how an operation is written, as NAME:NUMBER (its default)."""
    return values.call_usage(name, OPERATIONS[name])


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
    [choice] = random_integers(seed, [len(mixes)])
    seed = tf.random.fold_in(seed, 1)
    branches = [
        functools.partial(function, images, targets, partners, seed)
        for function in mixes
    ]
    return tf.switch_case(choice, branches)


def to_uint8(image):
    """Rounds an image to whole numbers, as Pillow's are.

    That is what the host hands to the devices: a quarter of the bytes.
    """
    return tf.cast(image + 0.5, tf.uint8)


def _beta(seed, alpha):
    """Draws from Beta(alpha, alpha)."""
    # Float32 would often give its smallest number twice where alpha is small.
    gammas = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
    return tf.cast(gammas[0] / tf.reduce_sum(gammas), tf.float32)


def _mix(batch, partners, share):
    """Returns `share` of each example and the rest of its partner."""
    return share * batch + (1.0 - share) * tf.gather(batch, partners)
