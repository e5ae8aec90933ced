"""Data sets by name, and the splits that a run uses."""

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
    LAYOUT,
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

# The default of --eval_split is the first of these that exists.
EVALUATION_SPLITS = ("validation", "val", "test")
# Number of names with several spellings to report.
MAX_WARNINGS = 5
# Suffixes of archives, which can contain folders of images.
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def open_digits(data_dir=None, manual_dir=None):
    """Opens scikit-learn's 1,797 handwritten digits, 8 x 8, as PNG files.

    The split "test" is a fixed 20% of each class.

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
# Suffix of a file -> path -> `Dataset`.
FILES = {
    **dict.fromkeys(HDF5_SUFFIXES, open_hdf5),
    **dict.fromkeys(CSV_SUFFIXES, open_csv),
}


def open_dataset(name, data_dir=None, manual_dir=None):
    """Opens a data set.

    Args:
      name: a key of `DATASETS`, a folder, a file with a suffix in `FILES`, or
        any image-classification data set of TFDS.
      data_dir: folder of prepared TFDS data; None for the default of TFDS.
      manual_dir: folder of manually downloaded files; None for the default of
        TFDS, `downloads/manual` in `data_dir`.

    Returns:
      A `Dataset`.

    Raises:
      UserError: the data set is unknown, not found or not readable.
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
            f"{error.filename}: cannot be read ({error.strerror}). Check its "
            "permissions."
        ) from error
    suffix = path.suffix.lower()
    if suffix in FILES and path.is_file():
        return FILES[suffix](path)
    is_path = suffix in FILES or name.startswith((".", "~", os.sep))
    if is_path and path.exists():
        action = "Unpack" if suffix in ARCHIVES else "Convert"
        raise UserError(
            f"--dataset={name}: must be a folder of images or a file "
            f"({', '.join(FILES)}). {action} it first."
        )
    if is_path:
        raise UserError(
            f"--dataset={name}: not found. Pass a folder of images or a file "
            f"({', '.join(FILES)}); if it was moved, its new path."
        )
    try:
        return open_tfds(name, data_dir=data_dir, manual_dir=manual_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name) from error


def choose_splits(
    dataset, train_split=None, eval_split=None, validation_fraction=0.2
):
    """Returns the training and evaluation data of a run.

    Args:
      dataset: a `Dataset`. The order of its examples is independent of their
        classes, so that any slice is a fair sample.
      train_split: training examples in the split language of TFDS, such as
        "train[:90%]"; None for "train".
      eval_split: evaluation examples; None for the first of
        `EVALUATION_SPLITS` that exists, or for a held-out fraction of the
        training examples.
      validation_fraction: fraction of the training examples to hold out; 0 for
        no evaluation. The fraction is the same for each class if the labels
        are known without reading the images.

    Returns:
      A `Data`.

    Raises:
      UserError: a split is unknown, empty, or contains an image twice; or the
        data set has only one class.
    """
    if len(dataset.class_names) < 2:
        raise UserError(
            "--dataset: must have at least two classes for training, but has "
            f"only {dataset.class_names[0]}. {dataset.hint or LAYOUT}"
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
            f"--train_split={train_split or 'train'}: shares {shared:,} images "
            f"with --eval_split={spec}. Pass parts that share none, such as "
            "train[:90%] and train[90%:]."
        )
    note = ""
    if not eval_split and held_out[1:]:
        rest = " and ".join(held_out[1:])
        note = (
            f"Evaluating on {spec}; use {rest} for the final evaluation: "
            f"--mode=evaluate --eval_split={held_out[-1]}"
        )
    return _data(dataset, train, evaluation, note)


def choose_evaluation(dataset, eval_split=None):
    """Returns the `Split` of a data set to evaluate on.

    Args:
      dataset: a `Dataset`.
      eval_split: split in the split language of TFDS; None for the first of
        `EVALUATION_SPLITS` that exists, or for the first split.

    Raises:
      UserError: the split is unknown or empty.
    """
    names = [*EVALUATION_SPLITS, *dataset.splits]
    first = next(name for name in names if name in dataset.splits)
    return _select(dataset, "eval_split", eval_split or first)


def check_new(data, dataset):
    """Raises UserError if a new run could not be evaluated correctly.

    Existing runs are not checked and stay readable.

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
            f"--dataset={dataset}: class names must be unique, but classes "
            f"{' and '.join(map(str, numbers))} are named {repeated[0]!r}. "
            "Rename one of them."
        )
    if data.evaluation is None:
        return
    linked = data.train.linked(data.evaluation)
    if len(linked):
        train, evaluation = map(data.train.store.name, linked[0])
        raise UserError(
            f"--dataset={dataset}: {len(linked):,} evaluation images are the "
            f"same files as training images, such as {evaluation} and {train}. "
            "Replace the links by other images, or pass other splits."
        )


def check_unique(names):
    """Raises UserError if classes cannot be matched by name."""
    repeated = _repeated(names)
    if repeated:
        raise UserError(
            "--dataset: class names must be unique to match classes by name, "
            f"but several are named {first_few(map(repr, repeated))}. Rename "
            "them."
        )


def spelling_warnings(class_names):
    """Returns warnings about class names that differ only in spelling."""
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
                f"classes {' and '.join(map(ascii, names))}: differ only in "
                f"{what}, so some file systems treat them as one name. If they "
                "are one class, give them one name."
            )
    others = len(warnings) - MAX_WARNINGS
    if others > 0:
        warnings[MAX_WARNINGS:] = [
            f"{others:,} other class names: have several spellings."
        ]
    return warnings


def _unknown(name):
    known = [*DATASETS, *tfds.list_builders()]
    return UserError(
        f"--dataset={name}: neither a folder nor a TFDS data set."
        f"{nearest(name, known)} Pass {', '.join(DATASETS)}, an "
        "image-classification data set of TFDS, a folder with a folder of "
        "images per class, an .h5 file, or a .csv or .tsv file with the "
        "columns image and label."
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
    """Returns the split of a specification in TFDS's split language."""
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
            f"--{flag}={spec}: unknown split or invalid slice. Pass one of "
            f"{', '.join(dataset.splits)}, or a slice such as "
            f"{next(iter(dataset.splits))}[:90%]."
        ) from error
    split = functools.reduce(
        Split.plus,
        (
            dataset.splits[part.splitname].slice(part.from_, part.to)
            for part in parts
        ),
    )
    if not split.num_examples:
        raise UserError(
            f"--{flag}={spec}: contains no images. Pass a larger slice."
        )
    repeated = 0
    if len(parts) > 1:
        _, times = np.unique(split.indices, return_counts=True)
        repeated = np.count_nonzero(times > 1)
    if repeated:
        raise UserError(
            f"--{flag}={spec}: contains {repeated:,} images more than once. "
            "Pass parts that share none."
        )
    return split


def _hold_out(split, fraction):
    """Returns the rest of a split, the held-out fraction, and a note."""
    count = split.num_examples
    if fraction == 0:
        note = "Training on all images, without evaluation"
        return split, None, f"{note} (--validation_fraction=0)"
    if not 0 < fraction < 1 or count < 2:
        raise UserError(
            f"--validation_fraction={fraction}: must be between 0 and 1, and "
            f"requires at least two images (found {count}). Pass 0 to train on "
            "all images without evaluation."
        )
    if split.labels is None:
        kept = min(max(round(count * (1 - fraction)), 1), count - 1)
        return split.slice(0, kept), split.slice(kept, count), ""
    _check_even(split, fraction)
    halves = StratifiedShuffleSplit(test_size=fraction, random_state=0)
    # Only the number of images matters.
    images = np.broadcast_to(0, count)
    train, evaluation = next(halves.split(images, split.labels))
    return split.take(np.sort(train)), split.take(np.sort(evaluation)), ""


def _check_even(split, fraction):
    """Raises UserError unless each class can be on both sides."""
    count = split.num_examples
    present, first, counts = np.unique(
        split.labels, return_index=True, return_counts=True
    )
    alone = first[counts == 1]
    if len(alone):
        names = [split.store.name(split.indices[i]) for i in alone]
        raise UserError(
            f"--validation_fraction={fraction}: requires at least two images "
            f"per class; the only ones of their class: {first_few(names)}. Add "
            "images, put evaluation images into a folder test/, or pass "
            "--validation_fraction=0."
        )
    held_out = math.ceil(fraction * count)
    if min(held_out, count - held_out) < len(present):
        raise UserError(
            f"--validation_fraction={fraction}: {count:,} images give "
            f"{count - held_out:,} training and {held_out:,} evaluation images "
            f"for {len(present):,} classes. Pass a fraction with an image of "
            "each class on both sides, or --validation_fraction=0."
        )


def _repeated(names):
    """Returns the names that occur more than once."""
    counts = collections.Counter(names)
    return [name for name, count in counts.items() if count > 1]
