"""Where a data set comes from: its name -> what is stored."""

import os
import pathlib
from functools import partial

import tensorflow_datasets as tfds

from train_loop.data.csv_table import SUFFIXES as CSV_SUFFIXES
from train_loop.data.csv_table import open_csv
from train_loop.data.digits import open_digits
from train_loop.data.folder import open_folder, subfolders
from train_loop.data.hdf5 import SUFFIXES as HDF5_SUFFIXES
from train_loop.data.hdf5 import open_hdf5
from train_loop.data.tfds import open_tfds
from train_loop.errors import UserError, nearest

# Name -> (data_dir, manual_dir) -> Stored.
DATASETS = {
    "digits": open_digits,
    "oxford_iiit_pet": partial(open_tfds, "oxford_iiit_pet"),
    "imagenet2012": partial(
        open_tfds,
        "imagenet2012",
        manual_files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    ),
}
# What a file's name ends in -> path -> Stored.
FILES = {
    **dict.fromkeys(HDF5_SUFFIXES, open_hdf5),
    **dict.fromkeys(CSV_SUFFIXES, open_csv),
}
# Of files that hold images in folders, perhaps.
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def open_stored(name, data_dir=None, manual_dir=None):
    """Returns the `Stored` data set that a name stands for.

    Args:
      name: a row of `DATASETS`, a folder, a file of those in `FILES`, or any
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


def _unknown(name):
    known = [*DATASETS, *tfds.list_builders()]
    return UserError(
        f"--dataset={name} is neither a folder nor known to TFDS"
        f"{nearest(name, known)} It takes: {', '.join(DATASETS)}, an "
        "image-classification set of TFDS, a folder with a folder of images "
        "per class, an .h5 file, or a .csv or .tsv file with the columns image "
        "and label"
    )
