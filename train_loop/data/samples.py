"""Some images of each split, as a model gets them, for people to look at."""

import numpy as np
import tensorflow as tf

from train_loop.data.batches import evaluation_batches, training_batches
from train_loop.data.check import explained
from train_loop.data.decode import check_image
from train_loop.errors import UserError

NUM_IMAGES = 16


def training_sample(data, transforms, batching, count=NUM_IMAGES):
    """Returns the first images of training.

    Args:
      data: a `Data`.
      transforms: a `Transforms`.
      batching: a `Batching`; its size does not matter.
      count: how many, a multiple of 4; where there are fewer, some come twice.

    Returns:
      (float32 [count, size, size, 3] in 0..1, a list of names of classes).
    """
    # Several batches, because each is mixed in a way of its own.
    batching = batching._replace(batch_size=count // 4, data_service=None)
    batches = training_batches(data.train, transforms, batching).take(4)
    with explained(data.train):
        images, labels = zip(*batches, strict=True)
    return _visible(data, tf.concat(images, 0), tf.concat(labels, 0))


def evaluation_sample(data, transforms, count=NUM_IMAGES):
    """Returns the same as `training_sample`, of the evaluation split."""
    batches = evaluation_batches(data.evaluation, transforms, count)
    with explained(data.evaluation):
        images, labels, weights = next(iter(batches))
    return _visible(data, images[weights > 0], labels[weights > 0])


@tf.autograph.experimental.do_not_convert
def stored_files(split, count):
    """Returns the first files of a split that can be decoded.

    Args:
      split: a `Split`.
      count: of how many examples, at most.

    Returns:
      (list of the bytes of files, int64 array of labels).

    Raises:
      UserError: none of them can be.
    """

    def load(example):
        file = split.load(example["image"])
        return file, example["label"], check_image(file)

    examples = split.slice(0, count).stored().map(load).ignore_errors()
    readable = list(examples.as_numpy_iterator())
    if not readable:
        raise UserError(f"none of the first {count} images can be decoded")
    files, labels, _ = zip(*readable, strict=True)
    return list(files), np.array(labels)


def _visible(data, images, labels):
    images = tf.cast(images, tf.float32) / 255.0
    names = data.class_names
    if labels.dtype.is_integer:
        return images, [names[label] for label in labels]
    return images, [
        "\n".join(
            f"{names[label]} {row[label]:.0%}" for label in np.flatnonzero(row)
        )
        for row in labels.numpy()
    ]
