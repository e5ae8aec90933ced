"""A data set and its splits: which examples are read, and in which order.

A split hands out windows: the examples at some positions of an order that
depends on a seed alone. A pipeline that starts in the middle of an epoch reads
the window there and none of those before it.

A split reads from a store, which numbers its examples from 0. Images in memory
and files of one image each are in a `MemoryStore`, TFRecord files in a
`RecordStore` (`tfrecord.py`). Every store has:

    num_examples, sizes   how many; bytes of each, or one number for all
    labels, groups        int64 [num_examples]; None where only reading tells
                          the label, and where any order is as good. Examples
                          of the same group are best read one after another.
    window                how many are best read at once
    read(numbers)         {"image": ..., "label": int64}, each [n], in the
                          order of the numbers, int64 [n]
    load(image)           one of these images -> the bytes of a file
    seekable              the same store, to read few examples of each window
    name(number)          the name of the example in messages
    identity              a hash of which examples these are
    files                 paths of what they are read from
    links                 int64 [n, 2], (example, number of its file), where a
                          file is in several splits, through links or by hard
                          links; None where there are none
    needs_pillow          None where all files are JPEG or PNG; else a function
                          that finds out whether some are not
    as_stored             whether files are decoded as they are stored, whatever
                          their EXIF orientation and transparency
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

# Orders of a million examples correlate with themselves after
# 8, by 80 standard deviations of chance, and not after 12.
SHUFFLE_ROUNDS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples of a store.

    Args:
      store: a store, see above.
      indices: int64 array [num_examples], numbers of examples in the store,
        none twice.
    """

    store: Any
    indices: np.ndarray

    @classmethod
    def of_all(cls, store):
        """Returns all examples of a store, as they stand there."""
        return cls(store, np.arange(store.num_examples))

    @property
    def num_examples(self):
        return len(self.indices)

    @property
    def num_bytes(self):
        """Bytes of all examples, as files hold them."""
        sizes = np.broadcast_to(self.store.sizes, self.store.num_examples)
        return round(float(sizes[self.indices].sum()))

    @property
    def labels(self):
        """int64 array [num_examples]; None where only reading would tell."""
        labels = self.store.labels
        return None if labels is None else labels[self.indices]

    @property
    def window(self):
        """How many examples are read at once."""
        return max(min(self.store.window, self.num_examples), 1)

    def slice(self, start, stop):
        return self.take(slice(start, stop))

    def take(self, positions):
        """Returns the examples at these positions of the split."""
        return dataclasses.replace(self, indices=self.indices[positions])

    def without(self, numbers):
        """Returns all but the examples with these numbers in the store."""
        return self.take(~np.isin(self.indices, numbers))

    def plus(self, other):
        """Returns these examples, and then those of another split."""
        indices = np.concatenate([self.indices, other.indices])
        return dataclasses.replace(self, indices=indices)

    def seekable(self):
        """Returns these examples, to read few of each window."""
        return dataclasses.replace(self, store=self.store.seekable)

    def overlap(self, other):
        """Returns how many examples of the same store are in both."""
        return len(
            np.intersect1d(self.indices, other.indices, assume_unique=True)
        )

    def linked(self, other):
        """Returns pairs of examples, here and in another split, of one file.

        Args:
          other: a `Split` of the same store.

        Returns:
          int64 [n, 2], numbers in the store.
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
        """A hash of which examples these are, wherever they lie."""
        return content_hash(self.store.identity, self.indices)

    def origin(self, workers):
        """Returns what a copy of the examples is made from, for JSON.

        A copy is out of date where this is not what it was.

        Args:
          workers: a `Workers`, who all take the same for out of date.
        """
        # Not the newest only: an older file may take the place of another.
        files = map(os.stat, self.store.files)
        states = ((file.st_size, file.st_mtime_ns) for file in files)
        # On a disk of its own, a worker's files have other dates.
        files = workers.text_from_chief(content_hash(states))
        return {"identity": self.identity, "files": files}

    def numbers(self, seed, start, count):
        """Returns which examples stand at some positions of an order.

        Args:
          seed: int64 [2], for the order; None for the order of the split.
          start: scalar int64, the first position; a multiple of `window`
            where there is a seed.
          count: scalar int64, how many.

        Returns:
          int64 [count], numbers in the store.
        """
        positions = start + tf.range(count, dtype=tf.int64)
        if seed is None:
            return tf.gather(self._indices, positions)
        if self.store.groups is None:
            order = shuffled(positions, seed, self.num_examples)
            return tf.gather(self._indices, order)
        # Files in any order, and then shuffled within the window.
        indices, begins, sizes = self._by_group
        order = shuffled(tf.range(len(sizes)), seed, len(sizes))
        ends = tf.cumsum(tf.gather(sizes, order))
        place = tf.searchsorted(ends, positions, side="right")
        group = tf.gather(order, place)
        before = tf.gather(ends, place) - tf.gather(sizes, group)
        window = tf.gather(
            indices, tf.gather(begins, group) + positions - before
        )
        seed = tf.random.experimental.stateless_fold_in(seed, start)
        return tf.gather(window, shuffled(tf.range(count), seed, count))

    def read(self, seed, start, count, places=None):
        """Returns the examples at some positions of an order.

        Args:
          seed: see `numbers`.
          start: see `numbers`.
          count: see `numbers`.
          places: int64, which of these positions, from 0; None for all.

        Returns:
          {"image": what `load` takes, "label": int64, "number": int64, that in
          the store}, each [count].
        """
        numbers = self.numbers(seed, start, count)
        if places is not None:
            numbers = tf.gather(numbers, places)
        return {**self.store.read(numbers), "number": numbers}

    def load(self, image):
        """Maps an image of `read` to the bytes of a file, a scalar string."""
        return self.store.load(image)

    @tf.autograph.experimental.do_not_convert
    def stored(self):
        """Returns a dataset of all examples of `read`, one by one."""

        def read_window(begin):
            count = tf.minimum(self.num_examples - begin, self.window)
            return self.read(None, begin, count)

        begins = tf.data.Dataset.range(0, self.num_examples, self.window)
        return begins.map(read_window).prefetch(1).unbatch()

    @property
    def needs_pillow(self):
        """Whether some file of the store may be neither JPEG nor PNG."""
        find_out = self.store.needs_pillow
        return find_out is not None and find_out()

    @functools.cached_property
    def _indices(self):
        with tf.init_scope():
            return tf.constant(self.indices, tf.int64)

    @functools.cached_property
    def _by_group(self):
        """Tensors: all indices by group, where each begins, and its size."""
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
    """Examples that can be read in any order: in memory, or a file each.

    Args:
      images: tensor [num_examples, ...], the bytes of files or what `loader`
        takes; or a function from numbers, int64 [n], to as many of these.
      labels: int64 array [num_examples].
      namer: maps a number to the name of the example.
      loader: maps one of the images to the bytes of a file.

    The others are what every store has.
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
    """A data set as it is stored.

    `splits` is {name: `Split`}, all of one store; `rejected` {path: reason} of
    images that are there and cannot be used; `warnings` are lines of text,
    `hint` says where the data set may be if this is not it, and `fault` why no
    new run may use it, if that is so.
    """

    class_names: tuple
    splits: dict
    rejected: dict = {}  # noqa: RUF012
    warnings: tuple = ()
    hint: str = ""
    fault: str = ""


class Data(NamedTuple):
    """What a run trains and evaluates on: two `Split`s.

    `evaluation` is None where nothing is evaluated on. `contents` is a value
    for JSON that tells these examples from others, even where some are
    skipped later because they are broken; `note` says in words what was chosen
    by default, or is empty. `fault` is that of `Dataset`.
    """

    class_names: tuple
    train: Split
    evaluation: Split | None
    contents: dict
    note: str = ""
    fault: str = ""

    @property
    def splits(self):
        """{name: `Split`}, by the names that reports give them."""
        both = {"train": self.train, "eval": self.evaluation}
        return {
            name: split for name, split in both.items() if split is not None
        }

    def map(self, function):
        """Returns the data with `function(name, split)` of each split."""
        mapped = {n: function(n, split) for n, split in self.splits.items()}
        return self._replace(
            train=mapped["train"], evaluation=mapped.get("eval")
        )

    def difference(self, contents):
        """Returns in words what differs from earlier contents, or ""."""
        if self.contents == contents:
            return ""
        if self.contents["class_names"] != contents["class_names"]:
            return "the classes are others"
        counts = [
            {name: part["images"] for name, part in each["splits"].items()}
            for each in (contents, self.contents)
        ]
        if counts[0] != counts[1]:
            before, now = (
                " and ".join(f"{n:,} for {name}" for name, n in each.items())
                for each in counts
            )
            return f"there were {before}, and are {now}"
        return "names or labels are others"


def content_hash(*parts):
    """Returns a hash of arrays, bytes, strings, numbers and lists of these.

    An iterator counts as the list of what it yields.
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
                digest.update(_text(f"{separator}{item!r}"))
                separator = ", "
            digest.update(b"]" if separator == ", " else b"[]")
        else:
            digest.update(_text(repr(part)))
    return digest.hexdigest()[:16]


def _text(text):
    return text.encode(errors="surrogateescape")


def shuffled(index, seed, count):
    """Returns where a permutation of 0 .. count - 1 takes some of them.

    Args:
      index: int, any shape.
      seed: int64 [2].
      count: how many numbers are permuted.
    """
    # Hashed, because the shuffle looks at some bits of the seed only.
    seed = tf.random.stateless_uniform([3], seed, None, None, tf.int32)
    # For a largest index of 2**16, 2**18 and so on, TensorFlow's operation
    # returns one number twice and another one never: it counts a bit too few.
    # An odd largest index is no such power. Where that makes the order one
    # longer, the index that leads to the surplus number takes its place.
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
