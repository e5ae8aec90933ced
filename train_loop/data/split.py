"""Data sets and their splits: the examples and the order of reading.

A split is read in windows: examples at consecutive positions of an order that
depends only on a seed. A pipeline that starts in the middle of an epoch reads
the window there and none of the earlier ones.

A split reads from a store, which numbers its examples from 0. A `MemoryStore`
contains images in memory or one file per image. A `RecordStore` (`tfds.py`)
contains TFRecord files. Every store has:

    num_examples   number of examples
    sizes          bytes of each example, or one number for all
    labels         int64 [num_examples]; None if only reading gives the labels
    groups         int64 [num_examples]; examples of a group are best read one
                   after another. None if any order is equally fast.
    window         number of examples that are best read at once
    read(numbers)  {"image": ..., "label": int64}, each [n], for numbers, int64
                   [n], in their order
    load(image)    maps one of these images to the bytes of a file
    seekable       the same store, prepared to read few examples per window
    name(number)   name of the example in messages
    identity       hash that identifies the examples
    files          paths of the files with the examples
    links          int64 [n, 2], pairs (example, number of its file) for files
                   that are in several splits through symbolic or hard links;
                   None if there are none
    needs_pillow   None if all files are JPEG or PNG; else a function that
                   returns whether some are not
    as_stored      whether images are decoded as stored, without their EXIF
                   orientation and transparency
"""

import collections.abc
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# With 8 rounds, the order of a million examples has an autocorrelation of 80
# standard deviations; with 12, none is measurable.
SHUFFLE_ROUNDS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples of a store.

    Args:
      store: a store; see the module's docstring.
      indices: int64 array [num_examples], unique numbers of examples in the
        store.
    """

    store: Any
    indices: np.ndarray

    @classmethod
    def of_all(cls, store):
        """Returns all examples of a store, in its order."""
        return cls(store, np.arange(store.num_examples))

    @property
    def num_examples(self):
        return len(self.indices)

    @property
    def num_bytes(self):
        """Size of the files of all examples in bytes."""
        sizes = np.broadcast_to(self.store.sizes, self.store.num_examples)
        return round(float(sizes[self.indices].sum()))

    @property
    def labels(self):
        """int64 array [num_examples]; None if only reading gives them."""
        labels = self.store.labels
        return None if labels is None else labels[self.indices]

    @property
    def window(self):
        """Number of examples that are read at once."""
        return max(min(self.store.window, self.num_examples), 1)

    def slice(self, start, stop):
        return self.take(slice(start, stop))

    def take(self, positions):
        """Returns the examples at these positions of the split."""
        return dataclasses.replace(self, indices=self.indices[positions])

    def without(self, numbers):
        """Returns the split without examples, by numbers in the store."""
        return self.take(~np.isin(self.indices, numbers))

    def plus(self, other):
        """Returns the concatenation with another split."""
        indices = np.concatenate([self.indices, other.indices])
        return dataclasses.replace(self, indices=indices)

    def seekable(self):
        """Returns the same examples, prepared to read few per window."""
        return dataclasses.replace(self, store=self.store.seekable)

    def overlap(self, other):
        """Returns the number of examples that both splits contain."""
        return len(
            np.intersect1d(self.indices, other.indices, assume_unique=True)
        )

    def linked(self, other):
        """Returns pairs of examples in two splits that are the same file.

        Args:
          other: a `Split` of the same store.

        Returns:
          int64 [n, 2], numbers in the store: in this split and in the other.
        """
        links = self.store.links
        if links is None:
            return np.empty([0, 2], np.int64)
        here, there = (
            links[np.isin(links[:, 0], split.indices)]
            for split in (self, other)
        )
        _, mine, theirs = np.intersect1d(
            here[:, 1], there[:, 1], return_indices=True
        )
        return np.stack([here[mine, 0], there[theirs, 0]], axis=1)

    @property
    def identity(self):
        """Hash of the examples, independent of their location."""
        return content_hash(self.store.identity, self.indices)

    def origin(self, workers):
        """Returns a JSON value that identifies the source of a copy.

        A copy is out of date if this value has changed.

        Args:
          workers: a `Workers`. All workers get the same value.
        """
        # All files, because an older file can replace a newer one.
        files = map(os.stat, self.store.files)
        states = ((file.st_size, file.st_mtime_ns) for file in files)
        # Copies of the files on the disks of other workers have other dates.
        files = workers.text_from_chief(content_hash(states))
        return {"identity": self.identity, "files": files}

    def numbers(self, seed, start, count):
        """Returns the examples at consecutive positions of an order.

        Args:
          seed: int64 [2] for a shuffled order; None for the order of the
            split.
          start: scalar int64, the first position. With a seed, a multiple of
            `window`.
          count: scalar int64, the number of positions.

        Returns:
          int64 [count], numbers in the store.
        """
        positions = start + tf.range(count, dtype=tf.int64)
        if seed is None:
            return tf.gather(self._indices, positions)
        if self.store.groups is None:
            order = shuffled(positions, seed, self.num_examples)
            return tf.gather(self._indices, order)
        # First the groups are shuffled, then the examples of the window.
        indices, begins, sizes = self._by_group
        order = shuffled(tf.range(len(sizes)), seed, len(sizes))
        ends = tf.cumsum(tf.gather(sizes, order))
        rank = tf.searchsorted(ends, positions, side="right")
        group = tf.gather(order, rank)
        before = tf.gather(ends, rank) - tf.gather(sizes, group)
        window = tf.gather(
            indices, tf.gather(begins, group) + positions - before
        )
        seed = tf.random.experimental.stateless_fold_in(seed, start)
        return tf.gather(window, shuffled(tf.range(count), seed, count))

    def read(self, seed, start, count, offsets=None):
        """Reads the examples at positions of an order.

        Args:
          seed: see `numbers`.
          start: see `numbers`.
          count: see `numbers`.
          offsets: int64 [n], offsets from `start` of the positions to read;
            None for all.

        Returns:
          {"image": argument of `load`, "label": int64, "number": int64 number
          in the store}, each [n].
        """
        numbers = self.numbers(seed, start, count)
        if offsets is not None:
            numbers = tf.gather(numbers, offsets)
        return {**self.store.read(numbers), "number": numbers}

    def load(self, image):
        """Maps an image of `read` to the bytes of its file, a scalar string."""
        return self.store.load(image)

    @tf.autograph.experimental.do_not_convert
    def stored(self):
        """Returns a dataset of all single examples of `read`, unshuffled."""

        def read_window(begin):
            count = tf.minimum(self.num_examples - begin, self.window)
            return self.read(None, begin, count)

        begins = tf.data.Dataset.range(0, self.num_examples, self.window)
        return begins.map(read_window).prefetch(1).unbatch()

    @property
    def needs_pillow(self):
        """Whether a file of the store can be neither JPEG nor PNG."""
        needs_pillow = self.store.needs_pillow
        return needs_pillow is not None and needs_pillow()

    @functools.cached_property
    def _indices(self):
        with tf.init_scope():
            return tf.constant(self.indices, tf.int64)

    @functools.cached_property
    def _by_group(self):
        """Tensors: the indices by group, the start and size of each group."""
        groups = self.store.groups[self.indices]
        order = np.argsort(groups, kind="stable")
        _, begins, sizes = np.unique(
            groups[order], return_index=True, return_counts=True
        )
        parts = (self.indices[order], begins, sizes)
        with tf.init_scope():
            return tuple(tf.constant(part, tf.int64) for part in parts)


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryStore:
    """Examples with fast random access: in memory, or one file each.

    Args:
      images: tensor [num_examples, ...], the bytes of files or arguments of
        `loader`; or a function that maps numbers, int64 [n], to n of these.
      labels: int64 array [num_examples].
      namer: maps a number to the name of the example.
      loader: maps one of the images to the bytes of a file.

    See the module's docstring for the other arguments.
    """

    images: tf.Tensor | Callable
    labels: np.ndarray
    identity: str = ""
    namer: Callable = str
    sizes: Any = 0
    loader: Callable | None = None
    files: Sequence = ()
    groups: np.ndarray | None = None
    window: int = 4096
    links: np.ndarray | None = None
    needs_pillow: Callable | None = None
    as_stored: bool = False

    @property
    def num_examples(self):
        return len(self.labels)

    def read(self, numbers):
        images = self.images
        return {
            "image": images(numbers)
            if callable(images)
            else tf.gather(images, numbers),
            "label": tf.gather(self._labels, numbers),
        }

    @property
    def seekable(self):
        return self

    def load(self, image):
        return image if self.loader is None else self.loader(image)

    def name(self, number):
        return self.namer(number)

    @functools.cached_property
    def _labels(self):
        with tf.init_scope():
            return tf.constant(self.labels, tf.int64)


class Dataset(NamedTuple):
    """A data set with all of its splits.

    Attributes:
      class_names: names of all classes, in the order of the labels.
      splits: {name: `Split`}, all of one store.
      rejected: {path: reason} of images that cannot be used.
      warnings: lines of text.
      hint: a sentence that suggests another path, or "".
      fault: error message for new runs, or "".
    """

    class_names: tuple
    splits: dict
    rejected: dict = {}  # noqa: RUF012
    warnings: tuple = ()
    hint: str = ""
    fault: str = ""


class Data(NamedTuple):
    """The training and evaluation data of a run.

    Attributes:
      class_names: names of all classes, in the order of the labels.
      train: the training `Split`.
      evaluation: the evaluation `Split`; None for no evaluation.
      contents: JSON value that identifies the examples, before broken ones are
        skipped.
      note: message about a default choice of splits, or "".
      fault: see `Dataset`.
    """

    class_names: tuple
    train: Split
    evaluation: Split | None
    contents: dict
    note: str = ""
    fault: str = ""

    @property
    def splits(self):
        """{name: `Split`}, with the names of reports: "train", "eval"."""
        both = {"train": self.train, "eval": self.evaluation}
        return {
            name: split for name, split in both.items() if split is not None
        }

    def map(self, function):
        """Applies `function(name, split)` to each split."""
        mapped = {n: function(n, split) for n, split in self.splits.items()}
        return self._replace(
            train=mapped["train"], evaluation=mapped.get("eval")
        )

    def difference(self, contents):
        """Describes the difference from earlier contents; "" if equal."""
        if self.contents == contents:
            return ""
        if self.contents["class_names"] != contents["class_names"]:
            return "the classes differ"
        counts = [
            {name: part["images"] for name, part in each["splits"].items()}
            for each in (contents, self.contents)
        ]
        if counts[0] != counts[1]:
            before, now = (
                " and ".join(f"{n:,} for {name}" for name, n in each.items())
                for each in counts
            )
            return f"the number of images was {before}, and is now {now}"
        return "names or labels differ"


def content_hash(*parts):
    """Returns a hash of arrays, bytes, strings, numbers and lists of these.

    An iterator has the same hash as the list of its items.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part))
        elif isinstance(part, bytes):
            digest.update(part)
        elif isinstance(part, collections.abc.Iterator):
            separator = "["
            for item in part:
                digest.update(_encode(f"{separator}{item!r}"))
                separator = ", "
            digest.update(b"]" if separator == ", " else b"[]")
        else:
            digest.update(_encode(repr(part)))
    return digest.hexdigest()[:16]


def _encode(text):
    return text.encode(errors="surrogateescape")


def shuffled(index, seed, count):
    """Maps indices through a random permutation of 0 to count - 1.

    Args:
      index: int tensor of any shape.
      seed: int64 [2].
      count: size of the permutation.

    Returns:
      A tensor with the shape and dtype of `index`.
    """
    # Hashed, because the shuffle uses only some bits of the seed.
    seed = tf.random.stateless_uniform([3], seed, None, None, tf.int32)
    # If the largest index is 2**16, 2**18 and so on, TensorFlow's operation
    # returns one number twice and another one never: it counts one bit too few.
    # An odd largest index is never such a power. If that makes the permutation
    # one longer, the index with the surplus result is permuted once more.
    last = tf.cast(count - 1, index.dtype)
    largest = tf.bitwise.bitwise_or(last, 1)

    def permute(index):
        return tf.raw_ops.RandomIndexShuffle(
            index=index,
            seed=tf.bitcast(seed, tf.uint32),
            max_index=largest,
            rounds=SHUFFLE_ROUNDS,
        )

    order = permute(index)
    return tf.where(order > last, permute(largest), order)
