"""What is done to images on their way from a file to a model.

Training images are cropped, augmented and mixed as `--augment` lists it, in
that order; evaluation images are cropped as the model's preprocessing says.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import tensorflow as tf

from resnet_layers import Preprocessing
from train_loop import values
from train_loop.data.augment import AUGMENTATIONS
from train_loop.data.decode import CROPS, center_crop, transcode
from train_loop.data.mixing import MIXES, mix_one_of
from train_loop.errors import UserError

# In this order: what decodes an image, what varies it, what blends batches.
KINDS = {
    "a crop, which decodes": CROPS,
    "an augmentation of decoded images": AUGMENTATIONS,
    "a mix of whole batches": MIXES,
}
OPERATIONS = {
    name: row for kind in KINDS.values() for name, row in kind.items()
}


class Operation(values.Call):
    """An operation on training images, and numbers for its parameters."""

    __slots__ = ()

    flag = "--augment"
    table = OPERATIONS

    @property
    def function(self):
        """The function, which takes only what comes before its parameters."""
        parameters = values.parameters_of(self.row)
        named = zip(parameters, self.arguments, strict=False)
        return functools.partial(self.row, **dict(named))


def operation_usage(name):
    """Returns how an operation is written, as NAME:NUMBER (its default)."""
    return values.call_usage(name, OPERATIONS[name])


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
        ranks = _rank(first), _rank(second)
        if ranks[0] > ranks[1] or ranks == (0, 0):
            kinds = list(KINDS)
            raise UserError(
                f"--augment={','.join(map(str, parsed))} cannot be done in "
                f"this order: {second.name} is {kinds[ranks[1]]}, and comes "
                f"behind {first.name}, which is {kinds[ranks[0]]}; first one "
                "crop at most, then augmentations, then mixes"
            )
    return parsed


def _rank(operation):
    [rank] = [
        rank
        for rank, kind in enumerate(KINDS.values())
        if operation.name in kind
    ]
    return rank


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
        """The functions that blend whole batches; one is drawn for each."""
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


def preprocessing_of(split, preprocessing):
    """Returns what images of a split go through: TFDS's stay as stored."""
    if split.store.as_stored:
        return preprocessing._replace(exif_orientation=False)
    return preprocessing


def to_uint8(image):
    """Rounds an image to whole numbers, as Pillow's are.

    That is what the host hands to the devices: a quarter of the bytes.
    """
    return tf.cast(image + 0.5, tf.uint8)


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
