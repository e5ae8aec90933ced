"""This file answers: where do the pictures and their labels come from?

Every data set becomes stored splits. They hold their examples in an order that
does not follow the classes, so that any slice of them is a fair one.
"""

import difflib
import functools
import os
import pathlib
from functools import partial
from typing import NamedTuple

import h5py
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from train_loop import UserError, tfds_source
from train_loop.splits import IndexedSplit, RecordSplit

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
HDF5_SUFFIXES = (".h5", ".hdf5")
# What is evaluated on where --eval_split is not given: the first that exists.
EVALUATION_SPLITS = ("validation", "val", "test")
# The folders of these names, whatever their capitals, are splits, if they hold
# folders of classes.
SPLITS = ("train", *EVALUATION_SPLITS)


class Stored(NamedTuple):
    """A data set as it is stored.

    `splits` is {name: split}, see `splits.py`; `refused` {path: reason} of
    pictures that are there and cannot be used; `warnings` are lines of text.
    """

    class_names: tuple
    splits: dict
    refused: dict = {}  # noqa: RUF012
    warnings: tuple = ()


class Source(NamedTuple):
    """What a run trains and evaluates on.

    `embedded` tells that it holds embeddings in place of pictures, `seen` how
    to recognise the pictures, broken ones among them: {split: description};
    `warnings` are lines of text.
    """

    class_names: tuple
    train: IndexedSplit | RecordSplit
    evaluation: IndexedSplit | RecordSplit
    embedded: bool = False
    seen: dict | None = None
    warnings: tuple = ()


def open_stored(name, data_dir=None, manual_dir=None):
    """Returns the `Stored` data set that a name stands for.

    Args:
      name: a row of `DATASETS`, a folder, an HDF5 file, or any image
        classification set of TFDS.
      data_dir: where TFDS keeps prepared data; None for TFDS's own default.
      manual_dir: where files downloaded by hand are; None for TFDS's own
        default, `downloads/manual` below `data_dir`.

    Raises:
      UserError: the data is not there and cannot be had.
    """
    path = pathlib.Path(name).expanduser()
    if name in DATASETS:
        return DATASETS[name](data_dir=data_dir, manual_dir=manual_dir)
    try:
        if path.is_dir() and _folders(path):
            return from_folder(path)
        if path.is_dir():
            files = sorted(path.iterdir())
            pair = [file for file in files if file.suffix in HDF5_SUFFIXES]
            return from_hdf5(*pair) if pair else from_folder(path)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror})"
        ) from error
    if path.suffix in HDF5_SUFFIXES:
        return from_hdf5(path)
    return from_tfds(name, data_dir=data_dir, manual_dir=manual_dir)


def choose_splits(
    stored, train_split=None, eval_split=None, validation_fraction=0.2
):
    """Returns the `Source` that a run reads of a stored data set.

    Args:
      stored: a `Stored`.
      train_split: what to train on, in TFDS's split language, such as
        "train[:90%]"; None for "train".
      eval_split: what to evaluate on; None for the split that exists for it,
        or else for a part of the training examples.
      validation_fraction: how large that part is. Where labels are known
        without reading every picture, it has this part of each class.

    Raises:
      UserError: there is no such split, or nothing in it.
    """
    held_out = [name for name in EVALUATION_SPLITS if name in stored.splits]
    train, warnings = _select(stored, "train_split", train_split or "train")
    if eval_split or held_out:
        evaluation, others = _select(
            stored, "eval_split", eval_split or held_out[0]
        )
        warnings += others
    else:
        train, evaluation = _hold_out(train, validation_fraction)
    return Source(stored.class_names, train, evaluation, warnings=warnings)


def _select(stored, flag, spec):
    """Returns (the split that a flag asks for, lines of text about it)."""
    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[split.num_examples], num_bytes=0
        )
        for name, split in stored.splits.items()
    }
    try:
        slices = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"--{flag}={spec} cannot be read; there is "
            f"{', '.join(stored.splits)}, and parts of it such as "
            f"{next(iter(stored.splits))}[:90%]"
        ) from error
    parts = [
        stored.splits[part.splitname].slice(part.from_, part.to)
        for part in slices
    ]
    split = functools.reduce(lambda split, other: split.plus(other), parts)
    if not split.num_examples:
        raise UserError(f"--{flag}={spec} holds no pictures")
    # TFDS reads them as often as they are named, and so does this.
    times = {
        name: np.zeros(whole.num_examples, int)
        for name, whole in stored.splits.items()
    }
    for part in slices:
        times[part.splitname][part.from_ : part.to] += 1
    repeated = sum(np.count_nonzero(count > 1) for count in times.values())
    if not repeated:
        return split, ()
    return split, (
        f"{repeated:,} pictures are in --{flag}={spec} more than once",
    )


def _hold_out(split, fraction):
    """Returns what is left of a split, and the part that was held out."""
    count = split.num_examples
    if not 0 < fraction < 1 or count < 2:
        raise UserError(
            f"--validation_fraction={fraction} of {count} pictures cannot be "
            "held out; take a part between 0 and 1 of at least two"
        )
    labels = getattr(split, "labels", None)
    if labels is None:
        kept = min(max(round(count * (1 - fraction)), 1), count - 1)
        return split.slice(0, kept), split.slice(kept, count)
    try:
        train, evaluation = train_test_split(
            np.arange(count),
            test_size=fraction,
            stratify=labels.numpy(),
            random_state=0,
        )
    except ValueError as error:
        raise UserError(
            f"--validation_fraction={fraction} of {count} pictures cannot be "
            f"held out evenly ({error}); add pictures, or a folder test/ with "
            "those to evaluate on"
        ) from error
    return split.without(evaluation), split.without(train)


def digits(data_dir=None, manual_dir=None):
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8, as PNG files.

    A fifth of each class, drawn once and for all, is the split "test".

    Source: Alpaydin and Kaynak, 1998, UCI machine learning repository.
    """
    del data_dir, manual_dir
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype("uint8")
    encoded = np.array([tf.io.encode_png(image).numpy() for image in pixels])
    parts = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return Stored(
        class_names=tuple("0123456789"),
        splits={
            name: IndexedSplit(
                tf.constant(encoded[part]),
                tf.constant(labels[part], tf.int64),
                names=[f"digit {index}" for index in part],
            )
            for name, part in zip(("train", "test"), parts, strict=True)
        },
    )


def from_folder(root):
    """Returns the pictures in folders that are named after their classes.

    Args:
      root: folder in the layout of `tfds.ImageFolder`, SPLIT/CLASS/PICTURE,
        where one of the splits is called train, or Train; or just
        CLASS/PICTURE.

    Returns:
      A `Stored`. Files of other kinds are left out, with a warning; links
      that lead out of the folder and empty files are refused.

    Raises:
      UserError: there are no folders of classes, two for one split, or no
        pictures to train on.
    """
    root = pathlib.Path(root)
    folders = _split_folders(root)
    if "train" not in folders:
        folders = {"train": root}
    classes = {
        name: {folder.name: _pictures(folder) for folder in _folders(path)}
        for name, path in folders.items()
    }
    class_names = sorted(set().union(*classes.values()))
    if len(class_names) < 2:
        raise UserError(
            f"{root} is no folder of classes: it takes train/CLASS/PICTURE and "
            "test/CLASS/PICTURE, or CLASS/PICTURE, with at least two classes; "
            f"found {', '.join(class_names) or 'no folder'}"
        )
    splits, refused, warnings = {}, {}, []
    for name, pictures_of in classes.items():
        paths, labels, num_bytes, ignored = [], [], 0, 0
        for label, class_name in enumerate(class_names):
            pictures, others = pictures_of.get(class_name, ([], 0))
            ignored += others
            for path in pictures:
                size, reason = _examine(path, root)
                if reason:
                    refused[str(path)] = reason
                    continue
                num_bytes += size
                paths.append(str(path))
                labels.append(label)
            if not pictures:
                warnings.append(
                    f"{folders[name] / class_name} holds no pictures"
                )
        if ignored:
            warnings.append(
                f"{ignored} files in {folders[name]} are left out: they are "
                f"none of {', '.join(PICTURE_SUFFIXES)}"
            )
        if not paths:
            continue
        order = np.random.default_rng(0).permutation(len(paths))
        paths = [paths[index] for index in order]
        splits[name] = IndexedSplit(
            tf.constant(paths, tf.string),
            tf.constant([labels[index] for index in order], tf.int64),
            names=paths,
            loader=tf.io.read_file,
            num_bytes=num_bytes,
            paths=paths,
        )
    if "train" not in splits:
        reasons = [f"; {path} {reason}" for path, reason in refused.items()]
        raise UserError(
            f"{folders['train']} holds no picture that can be read"
            f"{''.join(reasons[:1])}"
        )
    return Stored(tuple(class_names), splits, refused, tuple(warnings))


def _split_folders(root):
    """Returns {split: folder of its classes}, whatever the capitals."""
    found = {}
    for folder in _folders(root):
        name = folder.name.lower()
        if name not in SPLITS or not _folders(folder):
            continue
        # A link from one to the other is no second folder; small letters
        # sort last, and stay.
        if name in found and not folder.samefile(found[name]):
            raise UserError(
                f"{found[name]} and {folder} are both the split {name}; put "
                "their pictures into one folder, or rename one of them"
            )
        found[name] = folder
    return {name: found[name] for name in SPLITS if name in found}


def _folders(path):
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


def _pictures(folder):
    """Returns (paths of pictures, number of other files) in a folder."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".")]
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(pictures), len(files) - len(pictures)


def _examine(path, root):
    """Returns (bytes, reason to refuse it or None) of a picture's file."""
    try:
        str(path).encode()
        target = path.resolve(strict=True)
        if not target.is_relative_to(root.resolve()):
            return 0, f"is a link that leaves the folder, to {target}"
        if not target.is_file():
            return 0, "is not a file"
        size = target.stat().st_size
    except UnicodeEncodeError:
        return 0, "has a name that is not UTF-8"
    except (OSError, RuntimeError) as error:
        return 0, f"cannot be read ({getattr(error, 'strerror', error)})"
    return (size, None) if size else (0, "is empty")


def from_hdf5(*paths):
    """Returns the pictures in HDF5 files in the layout of the hand signs.

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
    found, class_names = {}, None
    for path in paths:
        try:
            with h5py.File(path) as file:
                for name in ("train", "test"):
                    if f"{name}_set_x" in file:
                        found[name] = (path, np.ravel(file[f"{name}_set_y"]))
                        _check_pictures(path, file, name)
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
    if "train" not in found:
        raise UserError(
            f"no train_set_x in {', '.join(map(str, paths))}; --dataset takes "
            "the HDF5 file that holds it"
        )
    if class_names is None:
        count = max(int(labels.max()) for _, labels in found.values()) + 1
        class_names = range(count)
    load = _row_loader([(path, name) for name, (path, _) in found.items()])
    splits = {}
    for name, (path, labels) in found.items():
        wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if len(wrong):
            raise UserError(
                f"{path}: {name}_set_y[{wrong[0]}] is {labels[wrong[0]]}, and "
                f"list_classes has {len(class_names)} classes: labels go from "
                f"0 to {len(class_names) - 1}"
            )
        order = np.random.default_rng(0).permutation(len(labels))
        number = list(found).index(name)
        with h5py.File(path) as file:
            num_bytes = file[f"{name}_set_x"].nbytes
        splits[name] = IndexedSplit(
            tf.constant([[number, row] for row in order], tf.int64),
            tf.constant(labels[order], tf.int64),
            names=[f"{path}: {name}_set_x[{row}]" for row in order],
            loader=load,
            num_bytes=num_bytes,
            paths=[str(path)],
        )
    return Stored(tuple(map(str, class_names)), splits)


def _check_pictures(path, file, name):
    pictures, labels = file[f"{name}_set_x"], np.ravel(file[f"{name}_set_y"])
    if not isinstance(pictures, h5py.Dataset):
        raise UserError(f"{path}: {name}_set_x is not an array")
    shape = pictures.shape
    if (
        pictures.dtype != np.uint8
        or 0 in shape
        or len(shape) != 4
        or shape[3] not in (1, 3)
        or shape[0] != len(labels)
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise UserError(
            f"{path}: {name}_set_x is {pictures.dtype} {list(shape)} with "
            f"{len(labels)} labels of {labels.dtype}; it must be uint8 [n, "
            "height, width, 1 or 3] with n whole numbers, and not empty"
        )


def _row_loader(parts):
    """Returns a function from (part, row) to a PNG file.

    Args:
      parts: [(path of an HDF5 file, name of the split in it)].
    """

    @functools.cache
    def pictures(part):
        path, name = parts[part]
        return h5py.File(path)[f"{name}_set_x"]

    def load(part_and_row):
        pixels = tf.numpy_function(
            lambda numbers: pictures(numbers[0])[numbers[1]],
            [part_and_row],
            tf.uint8,
        )
        # Not compressed: it is only to be decoded again, like any picture.
        return tf.io.encode_png(
            tf.ensure_shape(pixels, [None, None, None]), compression=0
        )

    return load


def from_tfds(name, manual_files=(), data_dir=None, manual_dir=None):
    """Returns a data set of TFDS, downloaded and prepared where necessary.

    Args:
      name: of the TFDS builder, such as "cifar10" or "eurosat/rgb:2.0.0".
      manual_files: files that TFDS cannot download and expects to find.
      data_dir: see `open_stored`.
      manual_dir: see `open_stored`.

    Raises:
      UserError: there is no such data set, it has no pictures with labels, or
        it is not there and cannot be had.
    """
    if name.startswith((".", "~", os.sep)):
        raise UserError(_unknown(name))
    try:
        class_names, splits = tfds_source.read(
            name, manual_files, data_dir, manual_dir
        )
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(_unknown(name)) from error
    return Stored(class_names, splits)


def _unknown(name):
    known = [*DATASETS, *tfds.list_builders()]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"--dataset={name} is neither a folder nor known to TFDS; {hint}It "
        f"takes: {', '.join(DATASETS)}, an image-classification set of TFDS, a "
        "folder with a folder of pictures per class, or an .h5 file"
    )


# Name -> (data_dir, manual_dir) -> Stored.
DATASETS = {
    "digits": digits,
    "oxford_iiit_pet": partial(from_tfds, "oxford_iiit_pet"),
    "imagenet2012": partial(
        from_tfds,
        "imagenet2012",
        manual_files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    ),
}
