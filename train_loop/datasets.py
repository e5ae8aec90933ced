"""This file answers: where do the pictures and their labels come from?"""

import pathlib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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

NEEDS_NOTHING = "--dataset=digits needs neither files nor network"


class Split(NamedTuple):
    """One part of a data set.

    `read(seed)` returns a `tf.data.Dataset` of {"image": scalar string, the
    bytes of a picture file, "label": scalar int64}. The seed, a scalar int64,
    shuffles files; None reads them in order.
    """

    num_examples: int
    read: Callable


class Source(NamedTuple):
    """A data set: the names of its classes and its two splits."""

    class_names: tuple
    train: Split
    evaluation: Split


def digits(data_dir=None, manual_dir=None):
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8, as PNG files.

    A fifth of each class, drawn once and for all, is held out for evaluation.

    Source: Alpaydin and Kaynak, 1998, UCI machine learning repository.
    """
    del data_dir, manual_dir
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype("uint8")
    encoded = np.array([tf.io.encode_png(image).numpy() for image in images])
    train, evaluation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return Source(
        class_names=tuple("0123456789"),
        train=_in_memory(encoded[train], labels[train]),
        evaluation=_in_memory(encoded[evaluation], labels[evaluation]),
    )


def from_tfds(
    name, evaluation, manual_files=(), data_dir=None, manual_dir=None
):
    """Returns a data set of TFDS, downloaded and prepared where necessary.

    Args:
      name: of the TFDS builder.
      evaluation: name of the split to evaluate on.
      manual_files: files that TFDS cannot download and expects to find.
      data_dir: where TFDS keeps prepared data; None for TFDS's own default.
      manual_dir: where files downloaded by hand are; None for TFDS's own
        default, `downloads/manual` below `data_dir`.

    Raises:
      UserError: the data is not there and cannot be had.
    """
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        _prepare(builder, manual_files, manual_dir)
    for split in ("train", evaluation):
        if split not in builder.info.splits:
            raise UserError(
                f"{name} in {builder.data_dir} has no split {split!r}, only "
                f"{sorted(builder.info.splits)}; remove that folder to have "
                "it prepared again"
            )
    return Source(
        class_names=tuple(builder.info.features["label"].names),
        train=_tfds_split(builder, "train"),
        evaluation=_tfds_split(builder, evaluation),
    )


# Name -> (data_dir, manual_dir) -> Source.
DATASETS = {
    "digits": digits,
    "oxford_iiit_pet": partial(from_tfds, "oxford_iiit_pet", evaluation="test"),
    "imagenet2012": partial(
        from_tfds,
        "imagenet2012",
        evaluation="validation",
        manual_files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    ),
}


def _in_memory(encoded, labels):
    def read(seed):
        del seed
        return tf.data.Dataset.from_tensor_slices(
            {"image": encoded, "label": labels.astype("int64")}
        )

    return Split(len(labels), read)


def _tfds_split(builder, split):
    decoders = tfds.decode.PartialDecoding(
        {"image": True, "label": True},
        decoders={"image": tfds.decode.SkipDecoding()},
    )

    def read(seed):
        read_config = tfds.ReadConfig(
            shuffle_seed=seed,
            shuffle_reshuffle_each_iteration=False,
            try_autocache=False,
        )
        return builder.as_dataset(
            split=split,
            shuffle_files=seed is not None,
            decoders=decoders,
            read_config=read_config,
        )

    return Split(builder.info.splits[split].num_examples, read)


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
    print(f"Preparing {builder.name} in {builder.data_dir}, once.")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=str(manual_dir)
            )
        )
    except (
        OSError,
        tfds.download.DownloadError,
        NonMatchingChecksumError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{builder.name} could not be prepared in {builder.data_dir}: "
            f"{reason[:300]}"
        ) from error


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
