"""Images that are a file each: which are of use, and the store of them."""

import os

import numpy as np
import tensorflow as tf

from train_loop.data.split import Split, content_hash
from train_loop.data.stored import Stored
from train_loop.data.stores import MemoryStore
from train_loop.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff"),
)


def store_files(root, class_names, files, warnings=()):
    """Returns the `Stored` data set of image files.

    Args:
      root: what the names of the files are relative to. By these the data set
        is known, so that it may be moved.
      class_names: of all classes.
      files: {split: list of (path, label)}.
      warnings: lines of text.

    Returns:
      A `Stored`. Empty files, and links that lead nowhere, are refused.

    Raises:
      UserError: no image can be read, or none of those to train on.
    """
    paths, labels, sizes, refused, indices = [], [], [], {}, {}
    for split, examples in files.items():
        begin = len(paths)
        for path, label in examples:
            size, reason = _examine(path)
            if reason:
                refused[str(path)] = reason
                continue
            paths.append(str(path))
            labels.append(label)
            sizes.append(size)
        if len(paths) > begin:
            # Any slice of a split shall hold all classes.
            order = np.random.default_rng(0).permutation(len(paths) - begin)
            indices[split] = begin + order
    if not indices or "train" in files.keys() - indices.keys():
        reasons = [f"; {path} {reason}" for path, reason in refused.items()]
        raise UserError(
            f"{root} holds no image to train on that can be read"
            f"{''.join(reasons[:1])}"
        )
    labels = np.array(labels)
    names = [os.path.relpath(path, root) for path in paths]
    store = MemoryStore(
        tf.constant(paths, tf.string),
        labels,
        identity=content_hash(names, labels.tobytes()),
        namer=paths.__getitem__,
        sizes=np.array(sizes),
        loader=tf.io.read_file,
        files=paths,
    )
    splits = {name: Split(store, order) for name, order in indices.items()}
    return Stored(tuple(class_names), splits, refused, tuple(warnings))


def _examine(path):
    """Returns (bytes, reason to refuse it or None) of an image's file."""
    try:
        str(path).encode()
        if not path.resolve(strict=True).is_file():
            return 0, "is not a file"
        size = path.stat().st_size
    except UnicodeEncodeError:
        return 0, "has a name that is not UTF-8"
    except (OSError, RuntimeError) as error:
        return 0, f"cannot be read ({getattr(error, 'strerror', error)})"
    return (size, None) if size else (0, "is empty")
