"""This file answers: how are the examples of a split read, in any order?

A split hands out windows: the examples at some positions of an order that
depends on a seed alone. Whoever starts in the middle of an epoch reads the
window there and none of those before it.

    num_examples, num_bytes   of the whole split; the bytes as files hold them
    window                    how many examples are best read at once
    read(seed, start, count)  {"image": ..., "label": int64, "index": int64},
                              each [count]: the examples from a position on.
                              The seed, int64 [2], orders them; None is the
                              order in which they are stored.
    load(image)               one of these images -> the bytes of a file
    stored()                  a dataset of all examples, one by one, as stored
    slice(start, stop)        the stored examples from start up to stop
    without(indices)          all but these
    plus(other)               these, and then those of another split
    name(index)               what a person calls the stored example
    listing()                 a hash of which examples these are
    fingerprint()             a hash that changes as well when a file does
    overlap(other)            how many examples are in both
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

# Records are shuffled within a window of this size. Three windows are in
# memory at a time: the one in use, the next one, and the one being read.
WINDOW_BYTES = 2**29
READ_BUFFER_BYTES = 2**23


class _Split:
    """What all splits have in common."""

    def stored(self):
        @tf.autograph.experimental.do_not_convert
        def read_window(begin):
            size = tf.minimum(self.num_examples - begin, self.window)
            return self.read(None, begin, size)

        begins = tf.data.Dataset.range(0, self.num_examples, self.window)
        return begins.map(read_window).prefetch(1).unbatch()

    def fingerprint(self):
        return _hash(self.listing(), *map(_state, self.files()))

    def slice(self, start, stop):
        return self._take(np.arange(self.num_examples)[start:stop])

    def without(self, indices):
        return self._take(np.setdiff1d(np.arange(self.num_examples), indices))


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedSplit(_Split):
    """Examples that can be read in any order: in memory, or a file each.

    Args:
      images: tensor [num_examples, ...], the bytes of files or what `loader`
        takes.
      labels: int64 tensor [num_examples].
      names: what people call the examples; by default their numbers.
      loader: maps one of the images to the bytes of a file.
      num_bytes: how much all files hold together.
      paths: of the files that they are read from.
    """

    images: tf.Tensor
    labels: tf.Tensor
    names: Sequence | None = None
    loader: Callable | None = None
    num_bytes: int = 0
    paths: Sequence = ()

    window = 4096

    @property
    def num_examples(self):
        return len(self.labels)

    def read(self, seed, start, count):
        index = start + tf.range(count, dtype=tf.int64)
        if seed is not None:
            index = shuffled(index, seed, self.num_examples)
        return {
            "image": tf.gather(self.images, index),
            "label": tf.gather(self.labels, index),
            "index": index,
        }

    def load(self, image):
        return image if self.loader is None else self.loader(image)

    def plus(self, other):
        return dataclasses.replace(
            self,
            images=tf.concat([self.images, other.images], axis=0),
            labels=tf.concat([self.labels, other.labels], axis=0),
            names=[*self._names(), *other._names()],
            num_bytes=self.num_bytes + other.num_bytes,
        )

    def name(self, index):
        return str(index if self.names is None else self.names[index])

    def files(self):
        return self.paths

    def listing(self):
        return _hash(*self._names(), self.labels.numpy().tobytes())

    def overlap(self, other):
        return len({*self._names()} & {*other._names()})

    def _names(self):
        return [self.name(index) for index in range(self.num_examples)]

    def _take(self, kept):
        names = [self.name(index) for index in kept]
        share = len(kept) / max(self.num_examples, 1)
        return dataclasses.replace(
            self,
            images=tf.gather(self.images, kept),
            labels=tf.gather(self.labels, kept),
            names=names,
            num_bytes=round(share * self.num_bytes),
        )


@dataclasses.dataclass(frozen=True)
class Piece:
    """Records of a TFRecord file, in the order in which they stand there.

    Args:
      path: of the file.
      first: number of the first record.
      count: how many records.
      left_out: numbers of those behind the first that are none of them.
    """

    path: str
    first: int
    count: int
    left_out: Sequence = ()

    @classmethod
    def of(cls, path, numbers):
        """Returns the piece of the records of these ascending numbers."""
        span = np.arange(numbers[0], numbers[-1] + 1)
        left_out = np.setdiff1d(span, numbers, assume_unique=True)
        return cls(
            path, int(numbers[0]), len(numbers), tuple(left_out.tolist())
        )

    @property
    def length(self):
        """How many records there are from the first to the last one."""
        return self.count + len(self.left_out)

    @property
    def span(self):
        """Whether each of these records is in it."""
        kept = np.ones(self.length, bool)
        kept[np.array(self.left_out, np.int64) - self.first] = False
        return kept

    @property
    def numbers(self):
        return self.first + np.flatnonzero(self.span)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit(_Split):
    """Examples that stand in TFRecord files, read one after another.

    Each order takes the pieces in an order of its own, cuts them into windows
    and shuffles each window.

    Args:
      pieces: `Piece`s.
      parse: maps a record, a scalar string, to {"image": the bytes of a file,
        "label": int64}.
      num_bytes: how much all records hold together.
      namer: maps the path of a file and the number of a record in it to what
        people call it; by default an id as TFDS has them.
    """

    pieces: Sequence
    parse: Callable
    num_bytes: int
    namer: Callable = lambda path, number: f"{os.path.basename(path)}__{number}"

    @property
    def num_examples(self):
        return sum(piece.count for piece in self.pieces)

    @property
    def window(self):
        if self.num_bytes <= WINDOW_BYTES:
            return max(self.num_examples, 1)
        share = WINDOW_BYTES / self.num_bytes
        return max(round(share * self.num_examples), 1)

    def read(self, seed, start, count):
        order = tf.range(len(self.pieces), dtype=tf.int64)
        if seed is not None:
            order = shuffled(order, seed, len(self.pieces))
        counts = tf.constant([p.count for p in self.pieces], tf.int64)
        offsets = tf.cumsum(counts, exclusive=True)
        ends = tf.cumsum(tf.gather(counts, order))
        first = tf.searchsorted(ends, [start], side="right")[0]
        skipped = start - tf.concat([[0], ends], axis=0)[first]
        paths = tf.constant([piece.path for piece in self.pieces])
        firsts = tf.constant([p.first for p in self.pieces], tf.int64)
        lengths = tf.constant([p.length for p in self.pieces], tf.int64)
        kept = None
        if any(piece.left_out for piece in self.pieces):
            kept = tf.constant(np.concatenate([p.span for p in self.pieces]))
            begins = tf.cumsum(lengths, exclusive=True)

        def read_piece(number):
            records = tf.data.TFRecordDataset(
                paths[number], buffer_size=READ_BUFFER_BYTES
            )
            records = records.skip(firsts[number]).take(lengths[number])
            if kept is not None:
                records = (
                    records.enumerate(begins[number])
                    .filter(lambda place, _: kept[place])
                    .map(lambda _, record: record)
                )
            return records.enumerate(offsets[number])

        def parse(index, record):
            example = self.parse(record)
            return {
                "image": example["image"],
                "label": example["label"],
                "index": index,
            }

        examples = (
            tf.data.Dataset.from_tensor_slices(order[first:])
            .flat_map(read_piece)
            .skip(skipped)
            .take(count)
            .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(count)
            .get_single_element()
        )
        if seed is None:
            return examples
        seed = tf.random.experimental.stateless_fold_in(seed, start)
        positions = shuffled(tf.range(count), seed, count)
        return {k: tf.gather(v, positions) for k, v in examples.items()}

    def load(self, image):
        return image

    def plus(self, other):
        return dataclasses.replace(
            self,
            pieces=[*self.pieces, *other.pieces],
            num_bytes=self.num_bytes + other.num_bytes,
        )

    def files(self):
        return sorted({piece.path for piece in self.pieces})

    def listing(self):
        # Without folders: the same files may lie somewhere else.
        return _hash(
            *(
                (
                    os.path.basename(piece.path),
                    piece.first,
                    piece.count,
                    *piece.left_out,
                )
                for piece in self.pieces
            )
        )

    def overlap(self, other):
        shared = {*self.files()} & {*other.files()}
        own, theirs = self._numbers_in(shared), other._numbers_in(shared)
        return sum(len(np.intersect1d(own[p], theirs[p])) for p in shared)

    def name(self, index):
        for piece in self.pieces:
            if index < piece.count:
                return self.namer(piece.path, int(piece.numbers[index]))
            index -= piece.count
        raise IndexError(index)

    def _numbers_in(self, paths):
        """Returns {path: numbers of the records that are taken there}."""
        numbers = {path: [] for path in paths}
        for piece in self.pieces:
            if piece.path in numbers:
                numbers[piece.path].append(piece.numbers)
        return {path: np.concatenate(n) for path, n in numbers.items()}

    def _take(self, kept):
        pieces, offset = [], 0
        for piece in self.pieces:
            inside = kept[(kept >= offset) & (kept < offset + piece.count)]
            if len(inside):
                numbers = piece.numbers[inside - offset]
                pieces.append(Piece.of(piece.path, numbers))
            offset += piece.count
        share = len(kept) / max(self.num_examples, 1)
        return dataclasses.replace(
            self, pieces=pieces, num_bytes=round(share * self.num_bytes)
        )


def _hash(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _state(path):
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def shuffled(index, seed, count):
    """Returns where a permutation of 0 .. count - 1 takes some of them.

    Args:
      index: int, any shape.
      seed: int64 [2].
      count: how many numbers are permuted.
    """
    # Hashed, because the shuffle looks at some bits of the seed only.
    seed = tf.random.stateless_uniform([3], seed, None, None, tf.int32)
    return tf.raw_ops.RandomIndexShuffle(
        index=index,
        seed=tf.bitcast(seed, tf.uint32),
        max_index=tf.cast(count - 1, index.dtype),
        rounds=4,
    )
