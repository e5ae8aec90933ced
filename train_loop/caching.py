"""This file answers: what of the pictures is kept nearer than they are stored?

The bytes of their files, as they are: never what was shuffled or augmented.
"""

import pathlib
import shutil

import tensorflow as tf

from train_loop.splits import IndexedSplit, Piece, RecordSplit

# What `--cache=auto` keeps in memory, of both splits together.
AUTO_BYTES = 2**28
# How large the files of a cache on disk are.
FILE_BYTES = 2**26
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
    """Returns the split from files of its own, written where they are missing.

    Args:
      split: see `splits.py`.
      path: folder that they are in, in one named after the split's contents.
    """
    folder = pathlib.Path(path) / split.fingerprint()
    if not folder.is_dir():
        # Beside and then renamed, so that a kill never leaves half of it.
        unfinished = pathlib.Path(f"{folder}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write(_loaded(split), unfinished)
        unfinished.rename(folder)

    def parse(record):
        return tf.io.parse_single_example(record, FEATURES)

    pieces, names = [], {}
    for file in sorted(folder.iterdir()):
        number, count = map(int, file.stem.split("-"))
        pieces.append(Piece(str(file), 0, count))
        names[str(file)] = number
    return RecordSplit(
        pieces,
        parse,
        sum(file.stat().st_size for file in folder.iterdir()),
        namer=lambda file, number: split.name(names[file] + number),
    )


def _write(examples, folder):
    """Writes FIRST-COUNT.tfrecord files, numbers of examples, of some size.

    Several, because the order of an epoch is that of files, shuffled.
    """
    first, records, size = 0, [], 0

    def write():
        path = folder / f"{first:09}-{len(records)}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)

    for image, label in examples.as_numpy_iterator():
        records.append(_record(image, label))
        size += len(records[-1])
        if size >= FILE_BYTES:
            write()
            first, records, size = first + len(records), [], 0
    if records:
        write()


# Name -> (split, folder to keep it in) -> split.
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
