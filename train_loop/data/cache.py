"""Caches of a split in memory or on disk, and embeddings of its images.

A cache contains the unchanged bytes of the image files, before shuffling and
augmentation, in the order of the split.
"""

import pathlib

import numpy as np
import tensorflow as tf

from train_loop.data.decode import NATIVE_HEADS
from train_loop.data.split import MemoryStore, Split
from train_loop.workdir import is_made_from, made_from

# `--cache=auto` keeps both splits in memory up to this total size.
AUTO_BYTES = 2**28


def _uncached(split, folder, workers):
    """Returns the split unchanged."""
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
    """Returns the split with its files in one cache file.

    A missing or outdated cache file is written first.

    Args:
      split: a `Split`.
      folder: folder of the cache.
      workers: the `Workers` that read it. The chief writes it; workers that do
        not share its disk write their own.
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


# Name -> (split, folder of the cache, workers) -> split.
CACHES = {"none": _uncached, "memory": in_memory, "disk": on_disk}


def choose_cache(splits):
    """Returns the key of `CACHES` for `--cache=auto`, by the size of splits."""
    fits = sum(split.num_bytes for split in splits) <= AUTO_BYTES
    return "memory" if fits else "none"


def embedded(split, folder):
    """Returns the split with embeddings in place of images.

    Args:
      split: a `Split` of images.
      folder: folder with `embeddings.bin`, float32 [num_examples, channels],
        and `labels.npy`, in the order of the split.
    """
    labels = np.load(folder / "labels.npy")
    # Memory-mapped, because the embeddings of ImageNet have 10 GB.
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


def _copy_of(split, images, labels, loader=None, needs_pillow=None):
    """Returns a split of the same examples, read from another source.

    Args:
      split: the original `Split`.
      images: tensor [num_examples, ...], the bytes of files or arguments of
        `loader`.
      labels: int64 array [num_examples].
      loader: maps one of the images to the bytes of its file or its embedding.
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


def _write(examples, folder):
    """Writes the concatenated images, the end of each, and the labels."""
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
