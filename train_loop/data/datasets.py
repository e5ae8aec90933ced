"""A data set by its name, and the splits of it that a run uses."""

import collections
import functools
import math
import os
import pathlib
import unicodedata
from functools import partial

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split

from train_loop.data.folder import (
    CSV_SUFFIXES,
    open_csv,
    open_folder,
    subfolders,
)
from train_loop.data.hdf5 import HDF5_SUFFIXES, open_hdf5
from train_loop.data.split import (
    Data,
    Dataset,
    MemoryStore,
    Split,
    content_hash,
)
from train_loop.data.tfds import open_tfds
from train_loop.errors import UserError, first_few, nearest

# What is evaluated on where --eval_split is not given: the first that exists.
EVALUATION_SPLITS = ("validation", "val", "test")
# How many names with several spellings are reported.
MAX_WARNINGS = 5
# Suffixes of files that may hold folders of images.
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def open_digits(data_dir=None, manual_dir=None):
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8, as PNG files.

    A fifth of each class, drawn once and for all, is the split "test".

    Source: Alpaydin and Kaynak, 1998, UCI machine learning repository.
    """
    del data_dir, manual_dir
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype("uint8")
    encoded = tf.io.encode_png(pixels).numpy()
    store = MemoryStore(
        tf.constant(encoded),
        labels,
        identity=content_hash("digits", labels.tobytes()),
        namer="digit {}".format,
        sizes=np.array([len(image) for image in encoded]),
    )
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset(
        class_names=tuple("0123456789"),
        splits={"train": Split(store, train), "test": Split(store, test)},
    )


# Name -> (data_dir, manual_dir) -> `Dataset`.
DATASETS = {
    "digits": open_digits,
    "oxford_iiit_pet": partial(open_tfds, "oxford_iiit_pet"),
    "imagenet2012": partial(
        open_tfds,
        "imagenet2012",
        manual_files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    ),
}
# What a file's name ends in -> path -> `Dataset`.
FILES = {
    **dict.fromkeys(HDF5_SUFFIXES, open_hdf5),
    **dict.fromkeys(CSV_SUFFIXES, open_csv),
}


def open_dataset(name, data_dir=None, manual_dir=None):
    """Returns the `Dataset` of a name.

    Args:
      name: a key of `DATASETS`, a folder, a file of those in `FILES`, or any
        image classification set of TFDS.
      data_dir: where TFDS keeps prepared data; None for TFDS's own default.
      manual_dir: where files downloaded by hand are; None for TFDS's own
        default, `downloads/manual` below `data_dir`.

    Raises:
      UserError: the data is not there and cannot be had.
    """
    if name in DATASETS:
        return DATASETS[name](data_dir=data_dir, manual_dir=manual_dir)
    path = pathlib.Path(name).expanduser()
    try:
        if path.is_dir():
            pair = [
                file
                for file in path.iterdir()
                if file.suffix.lower() in HDF5_SUFFIXES
            ]
            if pair and not subfolders(path):
                return open_hdf5(*sorted(pair))
            return open_folder(path)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror})"
        ) from error
    suffix = path.suffix.lower()
    if suffix in FILES and path.is_file():
        return FILES[suffix](path)
    is_path = suffix in FILES or name.startswith((".", "~", os.sep))
    if is_path and path.exists():
        way = "Unpack it first." if suffix in ARCHIVES else "Convert it first."
        raise UserError(
            f"--dataset={name}: must be a folder of images or a file "
            f"({', '.join(FILES)}). {way}"
        )
    if is_path:
        raise UserError(
            f"--dataset={name} is not there, neither a folder of images nor a "
            f"file ({', '.join(FILES)}); if it was moved, name its new place "
            "with --dataset"
        )
    try:
        return open_tfds(name, data_dir=data_dir, manual_dir=manual_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name) from error


def choose_splits(
    dataset, train_split=None, eval_split=None, validation_fraction=0.2
):
    """Returns the `Data` that a run uses of a data set.

    Args:
      dataset: a `Dataset`. Its examples stand in an order that does not follow
        the classes, so that any slice of them is a fair one.
      train_split: what to train on, in TFDS's split language, such as
        "train[:90%]"; None for "train".
      eval_split: what to evaluate on; None for the split that exists for it,
        or else for a part of the training examples.
      validation_fraction: how large that part is; 0 for nothing to evaluate
        on. Where labels are known without reading every image, it has this
        part of each class.

    Raises:
      UserError: there is no such split, nothing in it, or something twice; or
        there is only one class.
    """
    if len(dataset.class_names) < 2:
        raise UserError(
            f"there is only one class, {dataset.class_names[0]}; training "
            "takes at least two, and a folder is train/CLASS/IMAGE and "
            "test/CLASS/IMAGE, or CLASS/IMAGE"
            f"{dataset.hint and f'. {dataset.hint}'}"
        )
    held_out = [name for name in EVALUATION_SPLITS if name in dataset.splits]
    train = _select(dataset, "train_split", train_split or "train")
    if not (eval_split or held_out):
        return _data(dataset, *_hold_out(train, validation_fraction))
    spec = eval_split or held_out[0]
    evaluation = _select(dataset, "eval_split", spec)
    shared = train.overlap(evaluation)
    if shared:
        raise UserError(
            f"--train_split={train_split or 'train'} and --eval_split={spec} "
            f"share {shared:,} images: what was trained on measures nothing; "
            "take parts that share none, such as train[:90%] and train[90%:]"
        )
    note = ""
    if not eval_split and held_out[1:]:
        rest = " and ".join(held_out[1:])
        note = (
            f"Evaluating on {spec}; {rest} is left for the end: "
            f"--mode=evaluate --eval_split={held_out[-1]}"
        )
    return _data(dataset, train, evaluation, note)


def choose_evaluation(dataset, eval_split=None):
    """Returns the `Split` of a data set to measure anything on.

    Args:
      dataset: a `Dataset`.
      eval_split: which one; None for the split that exists for it, or else for
        all of the first.

    Raises:
      UserError: there is no such split, or nothing in it.
    """
    names = [*EVALUATION_SPLITS, *dataset.splits]
    first = next(name for name in names if name in dataset.splits)
    return _select(dataset, "eval_split", eval_split or first)


def check_new(data, dataset):
    """Raises UserError where a new run could not be measured correctly.

    Runs that exist are read all the same.

    Args:
      data: a `Data`.
      dataset: its name.
    """
    if data.fault:
        raise UserError(data.fault)
    repeated = _repeated(data.class_names)
    if repeated:
        numbers = [
            number
            for number, name in enumerate(data.class_names)
            if name == repeated[0]
        ]
        raise UserError(
            f"--dataset={dataset}: names of classes must be unique, and "
            f"{repeated[0]!r} is that of classes "
            f"{' and '.join(map(str, numbers))}. Rename one of them"
        )
    if data.evaluation is None:
        return
    linked = data.train.linked(data.evaluation)
    if len(linked):
        train, evaluation = map(data.train.store.name, linked[0])
        raise UserError(
            f"--dataset={dataset}: {len(linked):,} images to evaluate on are "
            f"images to train on, through links: {evaluation} is {train}. Put "
            "other images in place of the links, or pass other splits"
        )


def check_unique(names):
    """Raises UserError where classes cannot be matched by their names."""
    repeated = _repeated(names)
    if repeated:
        raise UserError(
            f"several classes are called {first_few(map(repr, repeated))}: "
            "classes are matched by name, which must be unique. Rename them"
        )


def spelling_warnings(class_names):
    """Returns lines on classes that may be one, written in several ways."""
    warnings, alike = [], {}
    for name in dict.fromkeys(class_names):
        form = unicodedata.normalize("NFC", name)
        alike.setdefault(" ".join(form.split()).casefold(), []).append(name)
    for names in alike.values():
        forms = {unicodedata.normalize("NFC", name) for name in names}
        folded = {form.casefold() for form in forms}
        if len(names) > 1:
            what = "Unicode form" if len(forms) == 1 else "case"
            what = what if len(folded) == 1 else "spaces"
            warnings.append(
                f"classes {' and '.join(map(ascii, names))} differ in {what} "
                "only, which some file systems take for one name. If they are "
                "one class, give them one name"
            )
    others = len(warnings) - MAX_WARNINGS
    if others > 0:
        warnings[MAX_WARNINGS:] = [
            f"{others:,} other names have several spellings"
        ]
    return warnings


def _unknown(name):
    known = [*DATASETS, *tfds.list_builders()]
    return UserError(
        f"--dataset={name}: neither a folder nor a TFDS data set."
        f"{nearest(name, known)} Use one of: {', '.join(DATASETS)}, an "
        "image-classification set of TFDS, a folder with a folder of images "
        "per class, an .h5 file, or a .csv or .tsv file with the columns image "
        "and label"
    )


def _data(dataset, train, evaluation, note=""):
    data = Data(dataset.class_names, train, evaluation, {}, note, dataset.fault)
    contents = {
        "class_names": [*dataset.class_names],
        "splits": {
            name: {"images": split.num_examples, "identity": split.identity}
            for name, split in data.splits.items()
        },
    }
    return data._replace(contents=contents)


def _select(dataset, flag, spec):
    """Returns the split that a flag asks for."""
    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[split.num_examples], num_bytes=0
        )
        for name, split in dataset.splits.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"--{flag}={spec} cannot be read; there is "
            f"{', '.join(dataset.splits)}, and parts of it such as "
            f"{next(iter(dataset.splits))}[:90%]"
        ) from error
    split = functools.reduce(
        Split.plus,
        (
            dataset.splits[part.splitname].slice(part.from_, part.to)
            for part in parts
        ),
    )
    if not split.num_examples:
        raise UserError(f"--{flag}={spec} holds no images")
    repeated = 0
    if len(parts) > 1:
        _, times = np.unique(split.indices, return_counts=True)
        repeated = np.count_nonzero(times > 1)
    if repeated:
        raise UserError(
            f"--{flag}={spec} names {repeated:,} images more than once; take "
            "parts that share none"
        )
    return split


def _hold_out(split, fraction):
    """Returns what is left of a split, the part held out, and a note."""
    count = split.num_examples
    if fraction == 0:
        note = "Training on everything (--validation_fraction=0): "
        return split, None, f"{note}nothing is evaluated on"
    if not 0 < fraction < 1 or count < 2:
        raise UserError(
            f"--validation_fraction={fraction} of {count} images cannot be "
            "held out; take a part between 0 and 1 of at least two, or 0 to "
            "train on everything and to evaluate on nothing"
        )
    if split.labels is None:
        kept = min(max(round(count * (1 - fraction)), 1), count - 1)
        return split.slice(0, kept), split.slice(kept, count), ""
    _check_even(split, fraction)
    halves = StratifiedShuffleSplit(test_size=fraction, random_state=0)
    # Of the images, only their number counts.
    images = np.broadcast_to(0, count)
    train, evaluation = next(halves.split(images, split.labels))
    return split.take(np.sort(train)), split.take(np.sort(evaluation)), ""


def _check_even(split, fraction):
    """Raises UserError where not every class could be on both sides."""
    count = split.num_examples
    present, first, counts = np.unique(
        split.labels, return_index=True, return_counts=True
    )
    alone = first[counts == 1]
    if len(alone):
        names = [split.store.name(split.indices[i]) for i in alone]
        raise UserError(
            "the only image of its class can be trained on or evaluated on, "
            f"not both: {first_few(names)}; add images of the class, put those "
            "to evaluate on into a folder test/, or take "
            "--validation_fraction=0"
        )
    held_out = math.ceil(fraction * count)
    if min(held_out, count - held_out) < len(present):
        raise UserError(
            f"--validation_fraction={fraction} of {count:,} images leaves "
            f"{count - held_out:,} to train on and {held_out:,} to evaluate "
            f"on, and there are {len(present):,} classes; take a part that has "
            "an image of each on both sides, or --validation_fraction=0"
        )


def _repeated(names):
    """Returns the names that come more than once."""
    counts = collections.Counter(names)
    return [name for name, count in counts.items() if count > 1]
