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

# How long a new run looks for images that it would train and evaluate on.
SECONDS_FOR_DUPLICATES = 10


def open_data(settings, workdir, workers):
    """Returns the `Data` that a run trains and evaluates on.

    Args:
      settings: resolved `Settings`.
      workdir: the run's `Workdir`, for the list of broken images and for a
        cache on disk.
      workers: the `Workers` that train on it.

    Raises:
      UserError: it is not there, or cannot be used as it is.
    """
    if settings.data_service:
        check_service(settings.data_service, settings.cache)
    data, refused = open_whole_data(settings)
    _check_same(data, settings.dataset, workers)
    is_new = not (workdir.is_run and workdir.data.is_file())
    if is_new:
        check_new(data, settings.dataset)
    else:
        difference = data.difference(workdir.read_data())
        if difference:
            # It would evaluate on some that it was trained on.
            raise UserError(
                f"the images of {settings.dataset} are not those that "
                f"{workdir} began with: {difference}; start a new run, from "
                f"the weights of this one if you like: --weights={workdir}"
            )
    if settings.skip_bad_images:
        records = check.find_broken_once(
            data, refused, workdir.bad_images, workers
        )
        data = check.without_broken(data, records)
        left_out = check.describe_skipped(data, records)
        print(printable(f"{left_out}, named in {workdir.bad_images}."))
        check.check_not_empty(data)
    else:
        check_none_rejected(refused)
    if is_new and workers.is_chief:
        print_warnings(check.leak_warnings(data, SECONDS_FOR_DUPLICATES))
    for name, split in data.splits.items():
        if split.labels is not None:
            counts = check.count_labels(split, name)
            lines = check.balance_warnings(counts, data.class_names)
            print_warnings(f"{name}: {line}" for line in lines)
    return _cached(settings, workdir, data, workers)


def check_outside_of_images(workdir, dataset):
    """Raises UserError where a run would write among the images.

    From then on, its own folders would count as classes.

    Args:
      workdir: a `Workdir`.
      dataset: the name of a data set, of a folder perhaps; None for the run's
        own, or the default one.
    """
    if dataset in (None, *datasets.DATASETS) or workdir.is_run:
        return
    images = pathlib.Path(dataset).expanduser()
    if not images.is_dir():
        return
    path, images = workdir.path.resolve(), images.resolve()
    if path == images or images in path.parents:
        raise UserError(
            f"--workdir={workdir} is in the folder of the images, {dataset}, "
            "where each folder is a class; name a --workdir outside of it"
        )


def check_none_rejected(refused):
    """Raises UserError where there are files that are of no use.

    Args:
      refused: {path: reason} of these.
    """
    if refused:
        name, reason = next(iter(refused.items()))
        others = (
            f" (and {len(refused) - 1} like it)" if len(refused) > 1 else ""
        )
        raise UserError(
            f"{name} {reason}{others}; mend it, or leave such images out with "
            "--skip_bad_images"
        )


def open_whole_data(settings):
    """Returns all `Data`, and {path: reason} of files that are of no use."""
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
    """Raises UserError where evaluations decide, and there are none."""
    deciding = {
        f"--keep_best={settings.keep_best}": settings.keep_best != "none",
        f"--early_stopping={settings.early_stopping}": (
            settings.early_stopping is not None
        ),
    }
    for flag, is_on in deciding.items():
        if is_on and data.evaluation is None:
            raise UserError(
                f"{flag} needs images to evaluate on, and "
                "--validation_fraction=0 keeps none; leave one of them out"
            )


def make_transforms(settings, data):
    """Returns what is done to the images, `Transforms`."""
    return Transforms(
        preprocessing_of(data.train, settings.preprocessing),
        settings.augment,
        len(data.class_names),
    )


def embedding_facts(settings):
    """Returns what embeddings follow from, beside images and weights."""
    texts, preprocessing = settings.texts(), settings.preprocessing
    return [texts[n] for n in ("model", "precision", *preprocessing._fields)]


def make_batching(settings):
    """Returns how training examples become batches, a `Batching`."""
    return batches.Batching(
        settings.batch_size,
        settings.seed,
        settings.augment_repeats,
        settings.data_service,
    )


def check_service(address, cache):
    """Raises UserError where the service cannot be used.

    TensorFlow would wait for ever.

    Args:
      address: such as grpc://host:5050.
      cache: row of `CACHES` that the examples are kept in.
    """
    parts = urllib.parse.urlsplit(address)
    try:
        if parts.scheme != "grpc":
            raise ValueError("it must begin with grpc://")
        place = (parts.hostname, parts.port)
        socket.create_connection(place, timeout=10).close()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--data_service={address} cannot be reached ({error}); start its "
            "dispatcher, or leave the flag out"
        ) from error
    if cache == "disk":
        raise UserError(
            "--cache=disk is read by this process only, not by the workers of "
            f"--data_service={address}; take --cache=none or memory"
        )


def _check_same(data, dataset, workers):
    """Raises UserError where workers would train on different images."""
    own = content_hash(json.dumps(data.contents))
    [others] = workers.sums(own != workers.text_from_chief(own))
    if others:
        raise UserError(
            f"{others:.0f} of {workers.count} workers find other images or "
            f"classes in {dataset} than the first one; all of them need the "
            "same, by name and class"
        )


def _cached(settings, workdir, data, workers):
    """Returns the data with their files where --cache wants them."""
    choice = settings.cache
    if choice == "auto":
        choice = cache.choose_cache(data.splits.values())
        if settings.data_service:
            # Its workers read files, but not through functions of Python.
            is_hdf5 = settings.dataset.lower().endswith(HDF5_SUFFIXES)
            choice = "memory" if is_hdf5 else "none"

    def keep(name, split):
        with check.explained(split):
            return cache.CACHES[choice](split, workdir.cache / name, workers)

    return data.map(keep)
