"""This file answers: what of the pictures is kept nearer than they are stored?

The bytes of their files, as they are: never what was shuffled or augmented.
"""

import os
import pathlib

import tensorflow as tf

from train_loop.splits import IndexedSplit, Piece, RecordSplit

# What `--cache=auto` keeps in memory, of both splits together.
AUTO_BYTES = 2**28
FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
}


def uncached(split, path):
    """Returns the split as it is."""
    del path
    return split


def in_memory(split, path):
    """Returns the split with the bytes of all its files in memory."""
    del path
    images, labels = (
        _loaded(split).batch(split.num_examples).get_single_element()
    )
    return IndexedSplit(
        images,
        labels,
        names=[split.name(index) for index in range(split.num_examples)],
        num_bytes=split.num_bytes,
    )


def on_disk(split, path):
    """Returns the split from a file, which is written where it is missing.

    Args:
      split: see `splits.py`.
      path: of the file; its folder is made.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside and then renamed, so that a kill never leaves half of it.
        unfinished = f"{path}.tmp"
        with tf.io.TFRecordWriter(unfinished) as writer:
            for image, label in _loaded(split).as_numpy_iterator():
                writer.write(_record(image, label))
        os.replace(unfinished, path)

    def parse(record):
        return tf.io.parse_single_example(record, FEATURES)

    return RecordSplit(
        [Piece(str(path), 0, split.num_examples)],
        parse,
        path.stat().st_size,
        namer=lambda _, number: split.name(number),
    )


# Name -> (split, path of a file to keep it in) -> split.
CACHES = {"none": uncached, "memory": in_memory, "disk": on_disk}


def choose(splits):
    """Returns the row of `CACHES` that suits splits of this size."""
    fits = sum(split.num_bytes for split in splits) <= AUTO_BYTES
    return "memory" if fits else "none"


def _loaded(split):
    return split.stored().map(
        lambda example: (split.load(example["image"]), example["label"]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _record(image, label):
    feature = {
        "image": tf.train.Feature(bytes_list={"value": [image]}),
        "label": tf.train.Feature(int64_list={"value": [label]}),
    }
    return tf.train.Example(features={"feature": feature}).SerializeToString()
