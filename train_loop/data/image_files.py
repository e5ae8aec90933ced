"""Data sets with one file per image."""

import array
import bisect
import collections.abc
import concurrent.futures
import contextlib
import functools
import os
import stat

import numpy as np
import tensorflow as tf

from train_loop.data.decode import HEIF_ADVICE, NATIVE_HEADS, READS_HEIF
from train_loop.data.split import Dataset, MemoryStore, Split, content_hash
from train_loop.errors import UserError

HEIF_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".avif"),
    *(HEIF_SUFFIXES if READS_HEIF else ()),
)
# Threads that read the first bytes of files, and files per task.
THREADS, FILES_PER_TASK = 16, 256


class Paths(collections.abc.Sequence):
    """Paths of files in compact form: a few bytes each beside the names.

    A million Python strings use 130 MB, and a tensor of them as much again.
    """

    def __init__(self):
        # Each entry of `_starts` is the number of the first file of a run of
        # consecutive files in one folder.
        self._folders, self._starts = [], array.array("q")
        self._names, self._ends = bytearray(), array.array("q", [0])

    def append(self, path):
        begin = path.rfind("/") + 1
        folder = path[:begin]
        if not self._folders or self._folders[-1] != folder:
            self._folders.append(folder)
            self._starts.append(len(self))
        self._names += os.fsencode(path[begin:])
        self._ends.append(len(self._names))

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, number):
        number = range(len(self))[number]
        run = bisect.bisect_right(self._starts, number) - 1
        return self._folders[run] + self._name(number)

    def relative_to(self, root):
        """Yields the paths relative to a folder."""
        ends = [*self._starts[1:], len(self)]
        for folder, begin, end in zip(
            self._folders, self._starts, ends, strict=True
        ):
            folder = os.path.relpath(folder or ".", root)
            folder = "" if folder == "." else f"{folder}/"
            for number in range(begin, end):
                yield folder + self._name(number)

    def tensor(self, numbers):
        """Maps numbers of paths, int64 [n], to the paths, strings [n]."""
        folders, starts, names, ends, characters = self._tensors
        run = tf.searchsorted(starts, numbers, side="right") - 1
        positions = tf.ragged.range(
            tf.gather(ends, numbers), tf.gather(ends, numbers + 1)
        )
        codes = tf.cast(tf.gather(names, positions.flat_values), tf.int32)
        joined = tf.strings.unsorted_segment_join(
            tf.gather(characters, codes),
            positions.value_rowids(),
            tf.size(numbers, tf.int64),
        )
        return tf.gather(folders, run) + joined

    def _name(self, number):
        begin, end = self._ends[number], self._ends[number + 1]
        return os.fsdecode(bytes(self._names[begin:end]))

    @functools.cached_property
    def _tensors(self):
        # As single bytes: TensorFlow copies a string of all names repeatedly.
        with tf.init_scope():
            return (
                tf.constant([*map(os.fsencode, self._folders)], tf.string),
                tf.constant(np.frombuffer(self._starts, np.int64)),
                tf.constant(np.frombuffer(self._names, np.uint8)),
                tf.constant(np.frombuffer(self._ends, np.int64)),
                tf.constant([bytes([code]) for code in range(256)]),
            )


def open_image_files(root, class_names, files):
    """Opens a data set of image files.

    Args:
      root: folder. Paths relative to it identify the data set, which can
        therefore be moved.
      class_names: names of all classes.
      files: {split: iterable of (path, label)}.

    Returns:
      A `Dataset`. It rejects empty files and broken links.

    Raises:
      UserError: no image, or no training image, can be read.
    """
    paths, rejected, indices = Paths(), {}, {}
    labels, sizes = array.array("q"), array.array("q")
    inodes, devices, device_numbers = array.array("Q"), array.array("I"), {}
    begins = []
    for split, examples in files.items():
        begin = len(paths)
        begins.append(begin)
        for path, label in examples:
            status, reason = _examine(path)
            if reason:
                rejected[str(path)] = reason
                continue
            paths.append(str(path))
            labels.append(label)
            sizes.append(status.st_size)
            inodes.append(status.st_ino)
            devices.append(
                device_numbers.setdefault(status.st_dev, len(device_numbers))
            )
        if len(paths) > begin:
            # Shuffled, so that any slice of a split contains all classes.
            order = np.random.default_rng(0).permutation(len(paths) - begin)
            order += begin
            indices[split] = order
    if not indices or "train" in files.keys() - indices.keys():
        reasons = [f" ({path} {reason})" for path, reason in rejected.items()]
        raise UserError(
            f"{root}: no readable training image found{''.join(reasons[:1])}. "
            "Add images to the training split."
        )
    labels = np.frombuffer(labels, np.int64)
    store = MemoryStore(
        paths.tensor,
        labels,
        identity=content_hash(paths.relative_to(root), labels),
        namer=paths.__getitem__,
        sizes=np.frombuffer(sizes, np.int64),
        loader=tf.io.read_file,
        files=paths,
        links=_links(begins, inodes, devices),
        needs_pillow=functools.cache(lambda: _some_need_pillow(paths)),
    )
    splits = {name: Split(store, order) for name, order in indices.items()}
    return Dataset(tuple(class_names), splits, rejected)


def heif_advice(names):
    """Returns a sentence on HEIC files among unsupported files, or ""."""
    if any(str(name).lower().endswith(HEIF_SUFFIXES) for name in names):
        return f" {HEIF_ADVICE}."
    return ""


def _some_need_pillow(paths):
    """Returns whether some file is neither JPEG nor PNG.

    The first bytes decide, because suffixes are often wrong. Unreadable files
    are ignored here; reading them later raises an error.
    """

    def some_need_pillow(begin):
        for number in range(begin, min(begin + FILES_PER_TASK, len(paths))):
            with (
                contextlib.suppress(OSError),
                open(paths[number], "rb", 0) as file,
            ):
                if not file.read(4).startswith(NATIVE_HEADS):
                    return True
        return False

    begins = range(0, len(paths), FILES_PER_TASK)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
        found = any(executor.map(some_need_pillow, begins))
        executor.shutdown(cancel_futures=True)
    return found


def _examine(path):
    """Returns (status, None or a reason for rejection) of an image file."""
    try:
        str(path).encode()
        status = os.stat(path)
    except UnicodeEncodeError:
        return None, "has a name that is not UTF-8"
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return None, "is not a file"
    return status, None if status.st_size else "is empty"


def _links(begins, inodes, devices):
    """Returns the files that are in several splits; see `split.py`.

    Args:
      begins: number of the first example of each split.
      inodes: array with the inode of each file.
      devices: array with the number of the device of each inode.
    """
    inodes = np.frombuffer(inodes, np.uint64)
    splits = np.split(inodes, begins[1:])
    # Only the smaller splits are sorted, because sorting copies them.
    splits.sort(key=len)
    smaller = [np.unique(split) for split in splits[:-1]]
    if not sum(map(len, smaller)):
        return None
    smaller, counts = np.unique(np.concatenate(smaller), return_counts=True)
    in_largest = splits[-1][_indices_of(smaller, splits[-1])]
    shared = np.union1d(smaller[counts > 1], in_largest)
    numbers = _indices_of(shared, inodes)
    both = np.stack(
        [inodes[numbers], np.frombuffer(devices, np.uint32)[numbers]], axis=1
    )
    _, files = np.unique(both, axis=0, return_inverse=True)
    return np.stack([numbers, files.ravel()], axis=1)


def _indices_of(keys, values, block=2**16):
    """Returns the indices of the values that are among sorted keys."""
    indices = []
    for begin in range(0, len(values) if len(keys) else 0, block):
        part = values[begin : begin + block]
        nearest = np.searchsorted(keys, part).clip(max=len(keys) - 1)
        indices.append(begin + np.flatnonzero(keys[nearest] == part))
    return np.concatenate([np.empty(0, np.int64), *indices])
