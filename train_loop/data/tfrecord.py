"""Examples in TFRecord files, read in any order."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from train_loop.data.split import content_hash

# Three windows are in memory at a time: the one in use, the next one, and the
# one being read.
WINDOW_BYTES = 2**29
READ_BUFFER_BYTES = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class RecordStore:
    """Examples that stand in TFRecord files, read one after another.

    Args:
      files: paths.
      counts: how many records are in each.
      parse: maps a record, a scalar string, to {"image": the bytes of a file,
        "label": int64}.
      sizes: bytes of an example, on the average.
      ends: int64 array [num_examples], the byte of its file at which each
        record ends; None where a file is read from its beginning and other
        records are dropped.
    """

    files: Sequence
    counts: Sequence
    parse: Callable
    sizes: float
    ends: np.ndarray | None = None

    labels = links = None
    # Published results are of what TFDS decodes.
    as_stored = True

    @property
    def num_examples(self):
        return sum(self.counts)

    def needs_pillow(self):
        # To find out would be to read everything.
        return True

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

    @functools.cached_property
    def seekable(self):
        """The same examples with an index of their records.

        To make it takes a read of 8 bytes for each record of all files. There
        is none of files elsewhere (`gs://`), where each would be a request,
        nor of damaged ones, which reading reports.
        """
        has_index = self.ends is not None
        if has_index or any("://" in path for path in self.files):
            return self
        with (
            concurrent.futures.ThreadPoolExecutor(16) as executor,
            contextlib.suppress(OSError),
        ):
            ends = [*executor.map(_record_ends, self.files, self.counts)]
            return dataclasses.replace(self, ends=np.concatenate(ends))
        return self

    @tf.autograph.experimental.do_not_convert
    def read(self, numbers):
        # Each file is read forwards, whatever order is asked for.
        order = tf.argsort(numbers)
        ascending = tf.gather(numbers, order)
        records = self._scan if self.ends is None else self._seek
        examples = (
            records(ascending)
            .map(self.parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(tf.size(numbers, tf.int64))
            .get_single_element()
        )
        places = tf.math.invert_permutation(order)
        return {
            name: tf.gather(examples[name], places)
            for name in ("image", "label")
        }

    def _scan(self, numbers):
        """Returns a dataset of ascending records, each file read once."""
        ends = tf.cumsum(tf.constant(self.counts, tf.int64))
        begins = ends - tf.constant(self.counts, tf.int64)
        paths = tf.constant(self.files)
        file_of = tf.searchsorted(ends, numbers, side="right")
        files, _, runs = tf.unique_with_counts(file_of)
        stops = tf.cumsum(runs)

        def read_file(file, start, stop):
            records = numbers[start:stop] - begins[file]
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

        return tf.data.Dataset.from_tensor_slices(
            (files, stops - runs, stops)
        ).flat_map(read_file)

    def _seek(self, numbers):
        """Returns a dataset of ascending records, and reads nothing else."""
        begins, ends, groups, paths = self._index
        files = tf.gather(groups, numbers)
        # Records of a file one behind the other are read at once.
        is_next = (numbers[1:] == numbers[:-1] + 1) & (files[1:] == files[:-1])
        firsts = tf.concat([[0], tf.where(~is_next)[:, 0] + 1], 0)
        lasts = tf.concat([firsts[1:], [tf.size(numbers, tf.int64)]], 0) - 1
        paths = tf.gather(paths, tf.gather(files, firsts))
        begins = tf.gather(begins, tf.gather(numbers, firsts))
        sizes = tf.gather(ends, tf.gather(numbers, lasts)) - begins
        # As many equal buffers as it takes: none reads beyond the last record.
        buffers = -(-sizes // -(-sizes // READ_BUFFER_BYTES))

        def read_run(path, begin, buffer, count):
            # Not `tf.data.TFRecordDataset`, which always starts at byte 0.
            records = tf.raw_ops.TFRecordDatasetV2(
                filenames=[path],
                compression_type="",
                buffer_size=buffer,
                byte_offsets=[begin],
            )
            return tf.data.experimental.from_variant(
                records, tf.TensorSpec([], tf.string)
            ).take(count)

        return tf.data.Dataset.from_tensor_slices(
            (paths, begins, buffers, lasts - firsts + 1)
        ).flat_map(read_run)

    @functools.cached_property
    def _index(self):
        """Tensors: where each record begins, ends, in which file; paths."""
        is_first = np.diff(self.groups, prepend=-1) > 0
        begins = np.where(is_first, 0, np.roll(self.ends, 1))
        parts = (begins, self.ends, self.groups)
        with tf.init_scope():
            parts = [tf.constant(part, tf.int64) for part in parts]
            return *parts, tf.constant(self.files)

    def load(self, image):
        return image

    def name(self, number):
        """Returns an id as TFDS has them: FILE__RECORD."""
        file = self.groups[number]
        record = number - sum(self.counts[:file])
        return f"{os.path.basename(self.files[file])}__{record}"


def _record_ends(path, count):
    """Returns the bytes at which the records of a TFRecord file end.

    Args:
      path: of the file.
      count: how many records it has.

    Returns:
      int64 array [count].

    Raises:
      OSError: it cannot be read, or has fewer records.
    """
    ends, end = np.empty(count, np.int64), 0
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fadvise"):
            # What is between the headers would be read along.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(count):
            # Length, its checksum, the record, and that of the record.
            header = os.pread(file.fileno(), 8, end)
            end += 8 + 4 + int.from_bytes(header, "little") + 4
            if len(header) < 8 or end > size:
                raise OSError(f"{path} ends in record {number}")
            ends[number] = end
    return ends
