"""Settings -> the data that a run trains and evaluates on."""

import json
import pathlib
import socket
import urllib.parse

from train_loop.console import print_warnings, printable
from train_loop.data import batches, cache, check, datasets
from train_loop.data.datasets import check_new, choose_splits, spelling_warnings
from train_loop.data.hdf5 import HDF5_SUFFIXES
from train_loop.data.split import content_hash
from train_loop.data.transforms import Transforms, preprocessing_of
from train_loop.errors import UserError

# How long a new run searches for training images that are also in evaluation.
SECONDS_FOR_DUPLICATES = 10


def open_data(settings, workdir, workers):
    """Returns the `Data` that a run trains and evaluates on.

    Args:
      settings: resolved `Settings`.
      workdir: the run's `Workdir`, for the list of broken images and for a
        cache on disk.
      workers: the `Workers` that train together.

    Raises:
      UserError: the dataset is missing, invalid, or not the one of the run.
    """
    if settings.data_service:
        check_service(settings.data_service, settings.cache)
    data, rejected = open_whole_data(settings)
    _check_same(data, settings.dataset, workers)
    is_new = not (workdir.is_run and workdir.data.is_file())
    if is_new:
        check_new(data, settings.dataset)
    else:
        difference = data.difference(workdir.read_data())
        if difference:
            # The run would evaluate on images that it was trained on.
            raise UserError(
                f"--dataset={settings.dataset}: must have the images that "
                f"{workdir} began with ({difference}). Restore them, or start "
                f"a new run from its weights with --weights={workdir}."
            )
    if settings.skip_bad_images:
        records = check.find_broken_once(
            data, rejected, workdir.bad_images, workers
        )
        data = check.without_broken(data, records)
        skipped = check.describe_skipped(data, records)
        print(printable(f"{skipped}, listed in {workdir.bad_images}."))
        check.check_not_empty(data)
    else:
        check_none_rejected(rejected)
    if is_new and workers.is_chief:
        print_warnings(check.leak_warnings(data, SECONDS_FOR_DUPLICATES))
    for name, split in data.splits.items():
        if split.labels is not None:
            counts = check.count_labels(split, name)
            lines = check.balance_warnings(counts, data.class_names)
            print_warnings(f"{name}: {line}" for line in lines)
    return _cached(settings, workdir, data, workers)


def check_outside_of_images(workdir, dataset):
    """Raises UserError if a run would write into the folder of its images.

    Its own folders would then count as classes.

    Args:
      workdir: a `Workdir`.
      dataset: name of a dataset or path of a folder; None for that of the run
        or the default.
    """
    if dataset in (None, *datasets.DATASETS) or workdir.is_run:
        return
    images = pathlib.Path(dataset).expanduser()
    if not images.is_dir():
        return
    path, images = workdir.path.resolve(), images.resolve()
    if path == images or images in path.parents:
        raise UserError(
            f"--workdir={workdir}: must be outside of --dataset={dataset}, "
            "where each folder is a class. Pass another --workdir."
        )


def check_none_rejected(rejected):
    """Raises UserError if there are unusable files.

    Args:
      rejected: {path: reason}.
    """
    if rejected:
        name, reason = next(iter(rejected.items()))
        others = ""
        if len(rejected) > 1:
            others = f" ({len(rejected) - 1} others are invalid too)"
        raise UserError(
            f"{name}: {reason}{others}. Fix or remove it, or pass "
            "--skip_bad_images."
        )


def open_whole_data(settings):
    """Returns all `Data`, and {path: reason} of unusable files."""
    stored = datasets.open_dataset(
        settings.dataset, settings.data_dir, settings.manual_dir
    )
    print_warnings([*stored.warnings, *spelling_warnings(stored.class_names)])
    data = choose_splits(
        stored,
        settings.train_split,
        settings.eval_split,
        settings.validation_fraction,
    )
    if data.note:
        print(printable(f"{data.note}."))
    return data, stored.rejected


def check_has_evaluation(settings, data):
    """Raises UserError if flags require evaluations and there are none."""
    requiring = {
        f"--keep_best={settings.keep_best}": settings.keep_best != "none",
        f"--early_stopping={settings.early_stopping}": (
            settings.early_stopping is not None
        ),
    }
    for flag, is_on in requiring.items():
        if is_on and data.evaluation is None:
            raise UserError(
                f"{flag}: requires an evaluation split, and "
                "--validation_fraction=0 leaves none. Remove one of the two."
            )


def make_transforms(settings, data):
    """Returns the `Transforms` of the images."""
    return Transforms(
        preprocessing_of(data.train, settings.preprocessing),
        settings.augment,
        len(data.class_names),
    )


def embedding_facts(settings):
    """Returns the settings that embeddings depend on."""
    texts, preprocessing = settings.texts(), settings.preprocessing
    return [texts[n] for n in ("model", "precision", *preprocessing._fields)]


def make_batching(settings):
    """Returns the `Batching`: how training examples become batches."""
    return batches.Batching(
        settings.batch_size,
        settings.seed,
        settings.augment_repeats,
        settings.data_service,
    )


def check_service(address, cache):
    """Raises UserError if the data service is not usable.

    TensorFlow would wait forever.

    Args:
      address: such as grpc://host:5050.
      cache: entry of `CACHES`.
    """
    parts = urllib.parse.urlsplit(address)
    try:
        if parts.scheme != "grpc":
            raise ValueError("it must begin with grpc://")
        place = (parts.hostname, parts.port)
        socket.create_connection(place, timeout=10).close()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--data_service={address}: not reachable ({error}). Start its "
            "dispatcher, or remove the flag."
        ) from error
    if cache == "disk":
        raise UserError(
            "--cache=disk: cannot be combined with "
            f"--data_service={address}, whose workers cannot read it. Use "
            "--cache=none or --cache=memory."
        )


def _check_same(data, dataset, workers):
    """Raises UserError if workers would train on different images."""
    own = content_hash(json.dumps(data.contents))
    [others] = workers.sums(own != workers.text_from_chief(own))
    if others:
        raise UserError(
            f"--dataset={dataset}: {others:.0f} of {workers.count} workers "
            "have other images or classes than the first worker. Give all "
            "workers the same files and class folders."
        )


def _cached(settings, workdir, data, workers):
    """Returns the data, cached as --cache says."""
    choice = settings.cache
    if choice == "auto":
        choice = cache.choose_cache(data.splits.values())
        if settings.data_service:
            # Its workers can read files, but cannot call Python functions.
            is_hdf5 = settings.dataset.lower().endswith(HDF5_SUFFIXES)
            choice = "memory" if is_hdf5 else "none"

    def keep(name, split):
        with check.explained(split):
            return cache.CACHES[choice](split, workdir.cache / name, workers)

    return data.map(keep)
