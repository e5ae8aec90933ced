"""Images in HDF5 files, in the layout of the hand signs."""

import functools
import pathlib

import h5py
import numpy as np
import tensorflow as tf

from train_loop.data.split import Dataset, MemoryStore, Split, content_hash
from train_loop.errors import UserError

HDF5_SUFFIXES = (".h5", ".hdf5")


def open_hdf5(*paths):
    """Returns the images in HDF5 files.

    Args:
      *paths: one or two files that hold, between them, `train_set_x` (uint8
        [n, height, width, 1 or 3]), `train_set_y` (integers, n of them), the
        same for test_set where there is one, and `list_classes`. Beside
        train_NAME.h5, test_NAME.h5 is found by itself.

    Raises:
      UserError: a file is not there, or something in it is not as above.
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
                f"{path} cannot be read as an HDF5 file with train_set_x, "
                f"train_set_y and list_classes: {' '.join(str(error).split())}"
            ) from error
    if "train" not in parts:
        raise UserError(
            f"no train_set_x in {', '.join(map(str, paths))}; --dataset takes "
            "the HDF5 file that holds it"
        )
    if class_names is None:
        count = max(int(labels.max()) for _, labels, _ in parts.values()) + 1
        class_names = range(count)
    # Whichever file was named first.
    parts = {name: parts[name] for name in ("train", "test") if name in parts}
    rows, labels, sizes, names, splits = [], [], [], [], {}
    for number, (name, (path, part_labels, size)) in enumerate(parts.items()):
        _check_labels(path, name, part_labels, len(class_names))
        count = len(part_labels)
        # Any slice of a split shall hold all classes.
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
    """Returns (path, labels, bytes of the images) of a split in a file."""
    images, labels = file[f"{name}_set_x"], np.ravel(file[f"{name}_set_y"])
    if not isinstance(images, h5py.Dataset):
        raise UserError(f"{path}: {name}_set_x is not an array")
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
            f"{path}: {name}_set_x is {images.dtype} {list(shape)} with "
            f"{len(labels)} labels of {labels.dtype}; it must be uint8 [n, "
            "height, width, 1 or 3] with n whole numbers, and not empty"
        )
    return path, labels, images.nbytes


def _check_labels(path, name, labels, num_classes):
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{path}: {name}_set_y[{wrong[0]}] is {labels[wrong[0]]}, and "
            f"list_classes has {num_classes} classes: labels go from 0 to "
            f"{num_classes - 1}"
        )


def _row_loader(parts):
    """Returns a function from (part, row) to a PNG file.

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
        # Not compressed: it is only to be decoded again, like any image.
        return tf.io.encode_png(
            tf.ensure_shape(pixels, [None, None, None]), compression=0
        )

    return load
