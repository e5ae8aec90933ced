"""Stores: where the examples of a data set are read from.

A store numbers its examples from 0, and only reads; see `split.py` for which
of them, and in which order.

    num_examples, sizes   how many; bytes of each, or one number for all
    labels, groups        int64 [num_examples]; None where only reading tells
                          the label, and where any order is as good. Examples
                          of the same group are best read one after another.
    window                how many are best read at once
    read(numbers)         {"image": ..., "label": int64}, each [n], in the
                          order of the numbers, int64 [n]
    load(image)           one of these images -> the bytes of a file
    name(number)          what a person calls the example
    identity              a hash of which examples these are
    files                 paths of what they are read from
    links                 int64 [n, 2], (example, number of its file), where a
                          file is in several splits, through links or by hard
                          links; None where there are none
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from train_loop.data.split import content_hash

# Three windows are in memory at a time: the one in use, the next one, and the
# one being read.
WINDOW_BYTES = 2**29
READ_BUFFER_BYTES = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryStore:
    """Examples that can be read in any order: in memory, or a file each.

    Args:
      images: tensor [num_examples, ...], the bytes of files or what `loader`
        takes; None where that is their numbers.
      labels: int64 array [num_examples].
      identity: see above.
      namer: maps a number to what people call the example.
      sizes: see above.
      loader: maps one of the images to the bytes of a file.
      files: see above.
      groups: see above; those of what this is a copy of.
      window: see above.
      links: see above.
    """

    images: tf.Tensor | None
    labels: np.ndarray
    identity: str = ""
    namer: Callable = str
    sizes: Any = 0
    loader: Callable | None = None
    files: Sequence = ()
    groups: np.ndarray | None = None
    window: int = 4096
    links: np.ndarray | None = None

    @property
    def num_examples(self):
        return len(self.labels)

    def read(self, numbers):
        images = numbers
        if self.images is not None:
            images = tf.gather(self.images, numbers)
        return {"image": images, "label": tf.gather(self._labels, numbers)}

    def load(self, image):
        return image if self.loader is None else self.loader(image)

    def name(self, number):
        return self.namer(number)

    @functools.cached_property
    def _labels(self):
        with tf.init_scope():
            return tf.constant(self.labels, tf.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordStore:
    """Examples that stand in TFRecord files, read one after another.

    Args:
      files: paths.
      counts: how many records are in each.
      parse: maps a record, a scalar string, to {"image": the bytes of a file,
        "label": int64}.
      sizes: bytes of an example, on the average.
    """

    files: Sequence
    counts: Sequence
    parse: Callable
    sizes: float

    labels = links = None

    @property
    def num_examples(self):
        return sum(self.counts)

    @property
    def window(self):
        return max(round(WINDOW_BYTES / max(self.sizes, 1)), 1)

    @functools.cached_property
    def groups(self):
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def identity(self):
        # Without folders: the same files may lie somewhere else.
        names = [os.path.basename(path) for path in self.files]
        return content_hash(names, [*self.counts])

    @tf.autograph.experimental.do_not_convert
    def read(self, numbers):
        # Each file is read once and forwards, whatever order is asked for.
        order = tf.argsort(numbers)
        ascending = tf.gather(numbers, order)
        ends = tf.cumsum(tf.constant(self.counts, tf.int64))
        begins = ends - tf.constant(self.counts, tf.int64)
        paths = tf.constant(self.files)
        file_of = tf.searchsorted(ends, ascending, side="right")
        files, _, runs = tf.unique_with_counts(file_of)
        stops = tf.cumsum(runs)

        def read_file(file, start, stop):
            records = ascending[start:stop] - begins[file]
            first, length = records[0], records[-1] + 1 - records[0]
            is_asked_for = tf.scatter_nd(
                records[:, tf.newaxis] - first, tf.ones_like(records), [length]
            )
            span = tf.data.TFRecordDataset(
                paths[file], buffer_size=READ_BUFFER_BYTES
            )
            span = span.skip(first).take(length)
            return (
                tf.data.Dataset.zip(
                    span, tf.data.Dataset.from_tensor_slices(is_asked_for)
                )
                .filter(lambda _, asked: asked > 0)
                .map(lambda record, _: record)
            )

        examples = (
            tf.data.Dataset.from_tensor_slices((files, stops - runs, stops))
            .flat_map(read_file)
            .map(self.parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(tf.size(numbers, tf.int64))
            .get_single_element()
        )
        places = tf.math.invert_permutation(order)
        return {
            name: tf.gather(examples[name], places)
            for name in ("image", "label")
        }

    def load(self, image):
        return image

    def name(self, number):
        """Returns an id as TFDS has them: FILE__RECORD."""
        file = self.groups[number]
        record = number - sum(self.counts[:file])
        return f"{os.path.basename(self.files[file])}__{record}"
