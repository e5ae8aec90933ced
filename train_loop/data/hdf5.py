"""Images in HDF5 files with the layout of the hand-signs data set."""

import functools
import pathlib

import h5py
import numpy as np
import tensorflow as tf

from train_loop.data.split import Dataset, MemoryStore, Split, content_hash
from train_loop.errors import UserError

HDF5_SUFFIXES = (".h5", ".hdf5")


def open_hdf5(*paths):
    """Opens the images in one or two HDF5 files.

    Args:
      *paths: the files. Together, they contain `train_set_x` (uint8 [n, height,
        width, 1 or 3]), `train_set_y` (n integers), optionally `test_set_x`
        and `test_set_y`, and optionally `list_classes`. For a single
        train_NAME.h5, test_NAME.h5 in the same folder is found automatically.

    Returns:
      A `Dataset`.

    Raises:
      UserError: a file cannot be read or has another content.
    """
    paths = [pathlib.Path(path).expanduser() for path in paths]
    partner = paths[0].with_name(paths[0].name.replace("train", "test"))
    if len(paths) == 1 and partner.is_file() and partner != paths[0]:
        paths.append(partner)
    parts, class_names = {}, None
    for path in paths:
        try:
            with h5py.File(path) as file:
                for name in ("train", "test"):
                    if f"{name}_set_x" in file:
                        parts[name] = _read_part(path, file, name)
                if "list_classes" in file:
                    class_names = [
                        value.decode(errors="replace")
                        if isinstance(value, bytes)
                        else value
                        for value in np.ravel(file["list_classes"])
                    ]
        except (OSError, KeyError) as error:
            raise UserError(
                f"{path}: not readable ({' '.join(str(error).split())}). Pass "
                "an HDF5 file with train_set_x, train_set_y and list_classes."
            ) from error
    if "train" not in parts:
        raise UserError(
            f"{', '.join(map(str, paths))}: train_set_x not found. Pass the "
            "HDF5 file that contains it."
        )
    if class_names is None:
        count = max(int(labels.max()) for _, labels, _ in parts.values()) + 1
        class_names = range(count)
    # The order does not depend on the order of the files.
    parts = {name: parts[name] for name in ("train", "test") if name in parts}
    rows, labels, sizes, names, splits = [], [], [], [], {}
    for number, (name, (path, part_labels, size)) in enumerate(parts.items()):
        _check_labels(path, name, part_labels, len(class_names))
        count = len(part_labels)
        # Shuffled, so that any slice of a split contains all classes.
        order = np.random.default_rng(0).permutation(count)
        splits[name] = len(labels) + order
        rows += [[number, row] for row in range(count)]
        labels += part_labels.tolist()
        sizes += [size / count] * count
        names += [f"{path}: {name}_set_x[{row}]" for row in range(count)]
    labels = np.array(labels)
    store = MemoryStore(
        tf.constant(rows, tf.int64),
        labels,
        identity=content_hash([*parts], labels.tobytes()),
        namer=names.__getitem__,
        sizes=np.array(sizes),
        loader=_row_loader(
            [(path, name) for name, (path, *_) in parts.items()]
        ),
        files=[str(path) for path in paths],
    )
    return Dataset(
        tuple(map(str, class_names)),
        {name: Split(store, order) for name, order in splits.items()},
    )


def _read_part(path, file, name):
    """Returns (path, labels, bytes of all images) of a split in a file."""
    images, labels = file[f"{name}_set_x"], np.ravel(file[f"{name}_set_y"])
    if not isinstance(images, h5py.Dataset):
        raise UserError(
            f"{path}: {name}_set_x must be an array. Store the images in it."
        )
    shape = images.shape
    if (
        images.dtype != np.uint8
        or 0 in shape
        or len(shape) != 4
        or shape[3] not in (1, 3)
        or shape[0] != len(labels)
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise UserError(
            f"{path}: {name}_set_x must be uint8 [n, height, width, 1 or 3], "
            f"not empty, with n integers in {name}_set_y; it is {images.dtype} "
            f"{list(shape)} with {len(labels)} labels of {labels.dtype}. "
            "Convert the arrays."
        )
    return path, labels, images.nbytes


def _check_labels(path, name, labels, num_classes):
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{path}: {name}_set_y[{wrong[0]}] is {labels[wrong[0]]}, but must "
            f"be from 0 to {num_classes - 1} for the {num_classes} classes of "
            "list_classes. Correct the labels."
        )


def _row_loader(parts):
    """Returns a function that maps (part, row) to a PNG file.

    Args:
      parts: [(path of an HDF5 file, name of the split in it)].
    """

    @functools.cache
    def images(part):
        path, name = parts[part]
        return h5py.File(path)[f"{name}_set_x"]

    def load(part_and_row):
        pixels = tf.numpy_function(
            lambda numbers: images(numbers[0])[numbers[1]],
            [part_and_row],
            tf.uint8,
        )
        # Not compressed, because it is decoded at once.
        return tf.io.encode_png(
            tf.ensure_shape(pixels, [None, None, None]), compression=0
        )

    return load
