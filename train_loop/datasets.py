"""This file answers: where do the pictures and their labels come from?

Every data set becomes stored splits. They hold their examples in an order that
does not follow the classes, so that any slice of them is a fair one.
"""

import difflib
import functools
import os
import pathlib
import shutil
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from typing import NamedTuple

import h5py
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError,
)
from tensorflow_datasets.core.download.resource import get_dl_fname

from train_loop import UserError
from train_loop.splits import IndexedSplit, Piece, RecordSplit

NEEDS_NOTHING = "--dataset=digits needs neither files nor network"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
HDF5_SUFFIXES = (".h5", ".hdf5")
# What is evaluated on where --eval_split is not given: the first that exists.
EVALUATION_SPLITS = ("validation", "val", "test")
# The folders of these names are splits, if they hold folders of classes.
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
    to recognise the pictures, broken ones among them: {split: description}.
    """

    class_names: tuple
    train: IndexedSplit | RecordSplit
    evaluation: IndexedSplit | RecordSplit
    embedded: bool = False
    seen: dict | None = None


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
    train = _select(stored, "train_split", train_split or "train")
    if eval_split or held_out:
        evaluation = _select(stored, "eval_split", eval_split or held_out[0])
    else:
        train, evaluation = _hold_out(train, validation_fraction)
    return Source(stored.class_names, train, evaluation)


def _select(stored, flag, spec):
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
    return split


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
        where one of the splits is called train; or just CLASS/PICTURE.

    Returns:
      A `Stored`. Files of other kinds are left out, with a warning; links
      that lead out of the folder and empty files are refused.

    Raises:
      UserError: there are no folders of classes.
    """
    root = pathlib.Path(root)
    folders = {name: root / name for name in SPLITS if _folders(root / name)}
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
    return Stored(tuple(class_names), splits, refused, tuple(warnings))


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
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(_unknown(name)) from error
    except (ValueError, AssertionError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--dataset={name}: {reason[:300]}") from error
    image_key, label_key = _keys(name, builder)
    if not builder.is_prepared():
        _prepare(builder, manual_files, manual_dir)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"{name} in {builder.data_dir} is prepared as "
            f"{builder.info.file_format.value}; only tfrecord can be read, so "
            "have it prepared again into another --data_dir"
        )
    decoders = tfds.decode.PartialDecoding(
        {image_key: True, label_key: True},
        decoders={image_key: tfds.decode.SkipDecoding()},
    )
    features = decoders.extract_features(builder.info.features)

    def parse(record):
        example = features.deserialize_example(
            record, decoders=decoders.decoders
        )
        return {"image": example[image_key], "label": example[label_key]}

    return Stored(
        class_names=tuple(builder.info.features[label_key].names),
        splits={
            split: RecordSplit(
                pieces=[
                    Piece(file.filename, file.skip, file.examples_in_shard)
                    for file in info.file_instructions
                ],
                parse=parse,
                num_bytes=info.num_bytes,
            )
            for split, info in builder.info.splits.items()
            if info.num_examples
        },
    )


def _unknown(name):
    known = [*DATASETS, *tfds.list_builders()]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"--dataset={name} is neither a folder nor known to TFDS; {hint}It "
        f"takes: {', '.join(DATASETS)}, an image-classification set of TFDS, a "
        "folder with a folder of pictures per class, or an .h5 file"
    )


def _keys(name, builder):
    """Returns the names of the picture and of its label."""
    features = builder.info.features
    images, labels = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    supervised = builder.info.supervised_keys or ()
    if len(supervised) == 2 and {*supervised} <= {*images, *labels}:
        return supervised
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise UserError(
        f"--dataset={name} is not for image classification: it needs one "
        f"picture and one class label, and has {', '.join(features)}"
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


def _data_dir(builder):
    return pathlib.Path(builder.data_dir).parents[1]


def _prepare(builder, manual_files, manual_dir):
    downloads = _data_dir(builder) / "downloads"
    manual_dir = pathlib.Path(manual_dir or downloads / "manual")
    missing = [
        str(manual_dir / file)
        for file in manual_files
        if not (manual_dir / file).is_file()
    ]
    if missing:
        raise UserError(
            f"{builder.name} must be downloaded by hand, and these files are "
            f"missing: {', '.join(missing)}. Put them there (see "
            f"{builder.info.homepage}) or name their folder with --manual_dir; "
            f"{NEEDS_NOTHING}"
        )
    if not manual_files:
        _check_reachable(builder, downloads, manual_dir)
    _check_disk_space(builder, [manual_dir / file for file in manual_files])
    print(f"Preparing {builder.name} in {builder.data_dir}, once.")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=str(manual_dir)
            )
        )
    except (
        OSError,
        AssertionError,
        tfds.download.DownloadError,
        NonMatchingChecksumError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{builder.name} could not be prepared in {builder.data_dir}: "
            f"{reason[:300]}"
        ) from error


def _check_disk_space(builder, archives):
    """Raises UserError where preparing would fill the disk."""
    needed = builder.info.dataset_size
    if archives:
        needed += sum(path.stat().st_size for path in archives)
    else:
        # What is downloaded, and about as much again prepared from it.
        sizes = sum(info.size for info in builder.url_infos.values())
        needed += sizes if needed else 2 * sizes
    folder = next(
        p for p in _data_dir(builder).absolute().parents if p.exists()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"preparing {builder.name} takes {needed / 1e9:.1f} GB in "
            f"{_data_dir(builder)}, and {free / 1e9:.1f} GB are free; make "
            "room, or name another --data_dir"
        )


def _check_reachable(builder, downloads, manual_dir):
    """Finds out in seconds what TFDS finds out after minutes of retries."""
    for url, info in builder.url_infos.items():
        cached_name = get_dl_fname(url, info.checksum)
        if (manual_dir / info.filename).is_file() or any(
            downloads.rglob(cached_name)
        ):
            continue
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except urllib.error.HTTPError:
            continue
        except OSError as error:
            host = urllib.parse.urlsplit(url).netloc
            files = ", ".join(
                f"{url} as {manual_dir / info.filename}"
                for url, info in builder.url_infos.items()
            )
            raise UserError(
                f"{builder.name} is not in {_data_dir(builder)} yet and "
                f"{host} could not be reached ({error}). On a machine that "
                f"reaches it download {files}, and start again; "
                f"{NEEDS_NOTHING}"
            ) from error
