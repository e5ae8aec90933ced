"""Folders of images that are named after their classes."""

import pathlib

import numpy as np
import tensorflow as tf

from train_loop.data.split import Split, content_hash
from train_loop.data.stored import EVALUATION_SPLITS, Stored
from train_loop.data.stores import MemoryStore
from train_loop.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# The folders of these names, whatever their capitals, are splits, if they hold
# folders of classes.
SPLITS = ("train", *EVALUATION_SPLITS)


def open_folder(root):
    """Returns the images below a folder.

    Args:
      root: folder in the layout of `tfds.ImageFolder`, SPLIT/CLASS/IMAGE,
        where one of the splits is called train, or Train; or just
        CLASS/IMAGE. Any of these may be links.

    Returns:
      A `Stored`. Files of other kinds are left out, with a warning; empty
      files, and links that lead nowhere, are refused.

    Raises:
      UserError: there are no folders of classes, two for one split, or no
        images to train on.
    """
    root = pathlib.Path(root)
    folders = _split_folders(root)
    if "train" not in folders:
        folders = {"train": root}
    classes = {
        name: {folder.name: _files(folder) for folder in subfolders(path)}
        for name, path in folders.items()
    }
    class_names = sorted(set().union(*classes.values()))
    if len(class_names) < 2:
        raise UserError(
            f"{root} is no folder of classes: it takes train/CLASS/IMAGE and "
            "test/CLASS/IMAGE, or CLASS/IMAGE, with at least two classes; "
            f"found {', '.join(class_names) or 'no folder'}"
        )
    paths, labels, sizes, indices = [], [], [], {}
    refused, warnings = {}, []
    for name, files_of in classes.items():
        begin, num_others = len(paths), 0
        for label, class_name in enumerate(class_names):
            images, others = files_of.get(class_name, ([], 0))
            num_others += others
            for path in images:
                size, reason = _examine(path)
                if reason:
                    refused[str(path)] = reason
                    continue
                paths.append(str(path))
                labels.append(label)
                sizes.append(size)
            if not images:
                warnings.append(f"{folders[name] / class_name} holds no images")
        if num_others:
            warnings.append(
                f"{num_others} files in {folders[name]} are left out: they are "
                f"none of {', '.join(IMAGE_SUFFIXES)}"
            )
        if len(paths) > begin:
            # Any slice of a split shall hold all classes.
            order = np.random.default_rng(0).permutation(len(paths) - begin)
            indices[name] = begin + order
    if "train" not in indices:
        reasons = [f"; {path} {reason}" for path, reason in refused.items()]
        raise UserError(
            f"{folders['train']} holds no image that can be read"
            f"{''.join(reasons[:1])}"
        )
    labels = np.array(labels)
    relative = [str(pathlib.Path(path).relative_to(root)) for path in paths]
    store = MemoryStore(
        tf.constant(paths, tf.string),
        labels,
        identity=content_hash(relative, labels.tobytes()),
        namer=paths.__getitem__,
        sizes=np.array(sizes),
        loader=tf.io.read_file,
        files=paths,
    )
    splits = {name: Split(store, order) for name, order in indices.items()}
    return Stored(tuple(class_names), splits, refused, tuple(warnings))


def subfolders(path):
    """Returns the folders in a folder, without runs that were put there."""
    if not path.is_dir():
        return []
    return sorted(
        folder
        for folder in path.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and not (folder / "flags.txt").is_file()
    )


def _split_folders(root):
    """Returns {split: folder of its classes}, whatever the capitals."""
    found = {}
    for folder in subfolders(root):
        name = folder.name.lower()
        if name not in SPLITS or not subfolders(folder):
            continue
        # A link from one to the other is no second folder; small letters
        # sort last, and stay.
        if name in found and not folder.samefile(found[name]):
            raise UserError(
                f"{found[name]} and {folder} are both the split {name}; put "
                "their images into one folder, or rename one of them"
            )
        found[name] = folder
    return {name: found[name] for name in SPLITS if name in found}


def _files(folder):
    """Returns (paths of images, number of other files) in a folder."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".")]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(images), len(files) - len(images)


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
