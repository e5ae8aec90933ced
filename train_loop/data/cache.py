"""Copies of a split in memory or on disk, or of embeddings of its images.

A copy holds the bytes of image files as they are, never what was shuffled or
augmented, and is read in the order of the split that it is a copy of.
"""

import pathlib

import numpy as np
import tensorflow as tf

from train_loop.data.decode import NATIVE_HEADS
from train_loop.data.split import MemoryStore, Split
from train_loop.workdir import is_made_from, made_from

# What `--cache=auto` keeps in memory, of both splits together.
AUTO_BYTES = 2**28


def _uncached(split, folder, workers):
    """Returns the split as it is."""
    del folder, workers
    return split


def in_memory(split, folder, workers):
    """Returns the split with the bytes of all its files in memory."""
    del folder, workers
    images, labels = (
        _loaded(split).batch(split.num_examples).get_single_element()
    )

    def some_need_pillow():
        heads = tf.strings.substr(images, 0, 4).numpy()
        return not all(head.startswith(NATIVE_HEADS) for head in heads)

    return _copy_of(
        split,
        images,
        labels.numpy(),
        needs_pillow=split.store.needs_pillow and some_need_pillow,
    )


def on_disk(split, folder, workers):
    """Returns the split from a file of its own, written where it is missing.

    Args:
      split: a `Split`.
      folder: that the copy is in, or is to be.
      workers: the `Workers` that read it. The first one writes it; on a disk
        that they do not share, so does each of the others.
    """
    folder, origin = pathlib.Path(folder), split.origin(workers)
    with workers.in_turn():
        if not is_made_from(folder, origin):
            with made_from(folder, origin) as unfinished:
                _write(_loaded(split), unfinished)
    ends = np.load(folder / "ends.npy")
    content = np.memmap(folder / "images.bin", np.uint8, "r")

    def read(number):
        begin = ends[number - 1] if number else 0
        return content[begin : ends[number]].tobytes()

    return _copy_of(
        split,
        tf.range(split.num_examples, dtype=tf.int64),
        np.load(folder / "labels.npy"),
        lambda number: tf.ensure_shape(
            tf.numpy_function(read, [number], tf.string), []
        ),
        needs_pillow=split.store.needs_pillow,
    )


# Name -> (split, folder to keep it in, workers) -> split.
CACHES = {"none": _uncached, "memory": in_memory, "disk": on_disk}


def choose_cache(splits):
    """Returns the key of `CACHES` that suits splits of this size."""
    fits = sum(split.num_bytes for split in splits) <= AUTO_BYTES
    return "memory" if fits else "none"


def _copy_of(split, images, labels, loader=None, needs_pillow=None):
    """Returns a split of the same examples, read from somewhere else.

    Args:
      split: the `Split` that was copied.
      images: tensor [num_examples, ...], the bytes of files or what `loader`
        takes.
      labels: int64 array [num_examples].
      loader: maps one of the images to what is read of it.
      needs_pillow: see `split.py`.
    """
    groups = split.store.groups
    return Split.of_all(
        MemoryStore(
            images,
            labels,
            identity=split.identity,
            namer=lambda number: split.store.name(split.indices[number]),
            sizes=split.num_bytes / max(split.num_examples, 1),
            loader=loader,
            files=split.store.files,
            groups=None if groups is None else groups[split.indices],
            window=split.window,
            needs_pillow=needs_pillow,
            as_stored=split.store.as_stored,
        )
    )


def embedded(split, folder):
    """Returns the split with embeddings in place of images.

    Args:
      split: a `Split` of images.
      folder: with `embeddings.bin`, float32 [num_examples, channels], and
        `labels.npy`, in the order of the split.
    """
    labels = np.load(folder / "labels.npy")
    # Read where they lie: ImageNet's are 10 GB.
    rows = np.memmap(folder / "embeddings.bin", np.float32, "r")
    rows = rows.reshape(len(labels), -1)
    return _copy_of(
        split,
        tf.range(len(labels), dtype=tf.int64),
        labels,
        lambda number: tf.ensure_shape(
            tf.numpy_function(
                lambda number: np.array(rows[number]), [number], tf.float32
            ),
            rows.shape[1:],
        ),
    )


def _write(examples, folder):
    """Writes images one behind the other, where each ends, and labels."""
    ends, labels = [], []
    with (folder / "images.bin").open("wb") as file:
        for image, label in examples.as_numpy_iterator():
            file.write(image)
            ends.append(file.tell())
            labels.append(label)
    np.save(folder / "ends.npy", np.array(ends))
    np.save(folder / "labels.npy", np.array(labels))


@tf.autograph.experimental.do_not_convert
def _loaded(split):
    return split.stored().map(
        lambda example: (split.load(example["image"]), example["label"]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
