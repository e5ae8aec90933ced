"""Data sets of which each image is a file."""

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
# How many files are opened at once, and in a row by one thread.
THREADS, FILES_IN_A_ROW = 16, 256


class Paths(collections.abc.Sequence):
    """Paths of files, in a few bytes each beside the names.

    A million strings of Python take 130 MB, and a tensor of them as much.
    """

    def __init__(self):
        # A run are files of one folder, one behind the other.
        self._folders, self._runs = [], array.array("q")
        self._names, self._ends = bytearray(), array.array("q", [0])

    def append(self, path):
        begin = path.rfind("/") + 1
        folder = path[:begin]
        if not self._folders or self._folders[-1] != folder:
            self._folders.append(folder)
            self._runs.append(len(self))
        self._names += os.fsencode(path[begin:])
        self._ends.append(len(self._names))

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, number):
        number = range(len(self))[number]
        run = bisect.bisect_right(self._runs, number) - 1
        return self._folders[run] + self._name(number)

    def relative_to(self, root):
        """Yields the paths as they are from a folder on."""
        ends = [*self._runs[1:], len(self)]
        for folder, begin, end in zip(
            self._folders, self._runs, ends, strict=True
        ):
            folder = os.path.relpath(folder or ".", root)
            folder = "" if folder == "." else f"{folder}/"
            for number in range(begin, end):
                yield folder + self._name(number)

    def tensor(self, numbers):
        """Maps numbers, int64 [n], to paths, strings [n]."""
        folders, runs, names, ends, letters = self._tensors
        run = tf.searchsorted(runs, numbers, side="right") - 1
        places = tf.ragged.range(
            tf.gather(ends, numbers), tf.gather(ends, numbers + 1)
        )
        spelled = tf.cast(tf.gather(names, places.flat_values), tf.int32)
        joined = tf.strings.unsorted_segment_join(
            tf.gather(letters, spelled),
            places.value_rowids(),
            tf.size(numbers, tf.int64),
        )
        return tf.gather(folders, run) + joined

    def _name(self, number):
        begin, end = self._ends[number], self._ends[number + 1]
        return os.fsdecode(bytes(self._names[begin:end]))

    @functools.cached_property
    def _tensors(self):
        # Of letters: TensorFlow copies a string of all names several times.
        with tf.init_scope():
            return (
                tf.constant([*map(os.fsencode, self._folders)], tf.string),
                tf.constant(np.frombuffer(self._runs, np.int64)),
                tf.constant(np.frombuffer(self._names, np.uint8)),
                tf.constant(np.frombuffer(self._ends, np.int64)),
                tf.constant([bytes([letter]) for letter in range(256)]),
            )


def open_image_files(root, class_names, files):
    """Returns the `Dataset` of image files.

    Args:
      root: what the names of the files are relative to. By these the data set
        is known, so that it may be moved.
      class_names: of all classes.
      files: {split: iterable of (path, label)}.

    Returns:
      A `Dataset`. Empty files, and links that lead nowhere, are rejected.

    Raises:
      UserError: no image can be read, or none of those to train on.
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
            # Any slice of a split shall hold all classes.
            order = np.random.default_rng(0).permutation(len(paths) - begin)
            order += begin
            indices[split] = order
    if not indices or "train" in files.keys() - indices.keys():
        reasons = [f"; {path} {reason}" for path, reason in rejected.items()]
        raise UserError(
            f"{root} holds no image to train on that can be read"
            f"{''.join(reasons[:1])}"
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
    """Returns what would read some of these files, or an empty text.

    Args:
      names: of files that are not read.
    """
    if any(str(name).lower().endswith(HEIF_SUFFIXES) for name in names):
        return f"; {HEIF_ADVICE}"
    return ""


def _some_need_pillow(paths):
    """Finds out whether one of many files is neither JPEG nor PNG.

    By their first bytes: names are wrong too often. What cannot be read is
    none of them; reading it raises an error later.
    """

    def some_need_pillow(begin):
        for number in range(begin, min(begin + FILES_IN_A_ROW, len(paths))):
            with (
                contextlib.suppress(OSError),
                open(paths[number], "rb", 0) as file,
            ):
                if not file.read(4).startswith(NATIVE_HEADS):
                    return True
        return False

    begins = range(0, len(paths), FILES_IN_A_ROW)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
        found = any(executor.map(some_need_pillow, begins))
        executor.shutdown(cancel_futures=True)
    return found


def _examine(path):
    """Returns (status, reason to reject it or None) of an image's file."""
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
    """Returns which files are in several splits, see `split.py`.

    Args:
      begins: the number of the first example of each split.
      inodes: array of numbers of files.
      devices: array of what these are the numbers on.
    """
    inodes = np.frombuffer(inodes, np.uint64)
    splits = np.split(inodes, begins[1:])
    # All but the largest one, for what is sorted is in memory twice.
    splits.sort(key=len)
    others = [np.unique(split) for split in splits[:-1]]
    if not sum(map(len, others)):
        return None
    others, counts = np.unique(np.concatenate(others), return_counts=True)
    in_largest = splits[-1][_places_of(others, splits[-1])]
    shared = np.union1d(others[counts > 1], in_largest)
    numbers = _places_of(shared, inodes)
    both = np.stack(
        [inodes[numbers], np.frombuffer(devices, np.uint32)[numbers]], axis=1
    )
    _, files = np.unique(both, axis=0, return_inverse=True)
    return np.stack([numbers, files.ravel()], axis=1)


def _places_of(some, values, block=2**16):
    """Returns where some sorted values are among others."""
    places = []
    for begin in range(0, len(values) if len(some) else 0, block):
        part = values[begin : begin + block]
        nearest = np.searchsorted(some, part).clip(max=len(some) - 1)
        places.append(begin + np.flatnonzero(some[nearest] == part))
    return np.concatenate([np.empty(0, np.int64), *places])
