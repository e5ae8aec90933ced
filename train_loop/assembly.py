"""Settings made into the parts of a run.

Only `Run` and these functions unpack settings. What they build takes plain
values.
"""

import contextlib
import json
import os
import pathlib
import random

import numpy as np
import tensorflow as tf

from resnet_layers import (
    VARIANTS,
    BatchNormalization,
    PaddedConv2D,
    WeightsError,
    fold_batch_norms,
    load_weights,
)
from train_loop import environment
from train_loop.classifier import Classifier
from train_loop.console import printable
from train_loop.data import batches, cache, check, duplicates, imagenet, sources
from train_loop.data.hdf5 import SUFFIXES as HDF5_SUFFIXES
from train_loop.data.service import check_service
from train_loop.data.split import content_hash
from train_loop.data.stored import (
    check_new,
    choose_splits,
    spelling_warnings,
)
from train_loop.data.transforms import Transforms, preprocessing_of
from train_loop.errors import UserError, check_choice, first_few
from train_loop.training.strategies import STRATEGIES, split_cpu

# How long a new run looks for images that it would train and evaluate on.
SECONDS_FOR_DUPLICATES = 10


def open_data(settings, workdir, workers):
    """Returns the `Data` that a run trains and evaluates on.

    Args:
      settings: settled `Settings`.
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
        left_out = check.describe_left_out(data, records)
        print(printable(f"{left_out}, named in {workdir.bad_images}."))
        check.check_not_empty(data)
    else:
        check_usable(refused)
    if is_new and workers.is_chief:
        _warn(duplicates.leak_warnings(data, SECONDS_FOR_DUPLICATES))
    for name, split in data.splits.items():
        if split.labels is not None:
            counts = check.count_labels(split, name)
            lines = check.balance_warnings(counts, data.class_names)
            _warn(f"{name}: {line}" for line in lines)
    return _cached(settings, workdir, data, workers)


def check_apart(workdir, dataset):
    """Raises UserError where a run would write among the images.

    From then on, its own folders would count as classes.

    Args:
      workdir: a `Workdir`.
      dataset: the name of a data set, of a folder perhaps; None for the run's
        own, or the default one.
    """
    if dataset in (None, *sources.DATASETS) or workdir.is_run:
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


def check_usable(refused):
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
    stored = sources.open_stored(
        settings.dataset, settings.data_dir, settings.manual_dir
    )
    _warn([*stored.warnings, *spelling_warnings(stored.class_names)])
    data = choose_splits(
        stored,
        settings.train_split,
        settings.eval_split,
        settings.validation_fraction,
    )
    if data.note:
        print(printable(f"{data.note}."))
    return data, stored.refused


def check_evaluated(settings, data):
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


def make_batching(settings):
    """Returns how training examples become batches, a `Batching`."""
    return batches.Batching(
        settings.batch_size,
        settings.seed,
        settings.augment_repeats,
        settings.data_service,
    )


def build_strategy(settings):
    """Returns the devices that a run computes on.

    Raises:
      UserError: they are not to be had, or cannot share a batch evenly, or
        several workers have no folder that they share.
    """
    if settings.strategy == "multi_worker" and settings.workdir is None:
        raise UserError(
            "--strategy=multi_worker needs a --workdir, the same for all "
            "workers, on a disk that they share"
        )
    if settings.virtual_devices:
        split_cpu(settings.virtual_devices)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    if "bfloat16" in settings.precision and environment.amx_was_masked():
        print(environment.AMX_NOTE)
    strategy = STRATEGIES[settings.strategy](settings.cluster)
    replicas, batch_size = strategy.num_replicas_in_sync, settings.batch_size
    pieces = replicas * settings.accumulate_steps
    if batch_size % pieces:
        below = batch_size // pieces * pieces
        sizes = [size for size in (below, below + pieces) if size]
        among = f"{replicas} replicas"
        if settings.accumulate_steps > 1:
            among += f" in {settings.accumulate_steps} pieces each"
        raise UserError(
            f"--batch_size={batch_size} does not divide over {among}; take "
            f"{' or '.join(map(str, sizes))}"
        )
    return strategy


def check_image_size(settings):
    """Raises UserError where the last stage would have less than a pixel."""
    with _seeded(0):
        reduction = VARIANTS[settings.model]().reduction
    if settings.image_size < reduction:
        raise UserError(
            f"--image_size={settings.image_size} is too small for "
            f"{settings.model}, which makes one pixel of {reduction}; take at "
            f"least {reduction}, or another --model"
        )


def check_memory(settings):
    """Raises UserError where not even the images of a step fit in memory."""
    size, batch_size = settings.image_size, settings.batch_size
    # As bytes, and as float32.
    needed = batch_size * size * size * 3 * (1 + 4)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise UserError(
            f"--batch_size={batch_size} images of --image_size={size} take "
            f"{needed / 1e9:,.0f} GB by themselves, and this machine has "
            f"{memory / 1e9:,.0f} GB of memory; take smaller ones, or fewer"
        )


def build_classifier(settings, class_names):
    """Returns the `Classifier`, its model with weights drawn from the seed."""
    with _seeded(settings.seed):
        model = VARIANTS[settings.model](
            num_classes=len(class_names),
            stochastic_depth=settings.stochastic_depth,
            norm=_choose_norm(settings),
            dtype=settings.precision,
        )
        size, preprocessing = settings.image_size, settings.preprocessing
        channels = len(preprocessing.normalization.mean)
        model.build((None, size, size, channels))
    model.remat = settings.remat
    for layer in model._flatten_layers():
        if isinstance(layer, PaddedConv2D):
            layer.kernel_products = settings.kernel_products
        if isinstance(layer, BatchNormalization):
            layer.fused = settings.fused_batch_norm
    freeze(settings, model)
    return Classifier(model, preprocessing, class_names)


def freeze(settings, model):
    """Freezes what stays as it is, in the first phase where there are two."""
    if settings.frozen_batch_norm:
        model.freeze_batch_norm()
    if settings.freeze != "none":
        check_choice("--freeze", settings.freeze, ["none", *model.parts])
        model.freeze(settings.freeze)


def thaw(settings, model):
    """Leaves frozen what stays so to the end."""
    # Where it is True already, Keras would do nothing.
    model.trainable = False
    model.trainable = True
    if settings.frozen_batch_norm:
        model.freeze_batch_norm()


def with_given_preprocessing(classifier, given):
    """Returns a classifier with its own preprocessing, but for what was given.

    Raises:
      UserError: images would be too small for it.
    """
    changes = given.preprocessing._asdict()
    changes = {name: v for name, v in changes.items() if v is not None}
    if not changes:
        return classifier
    preprocessing = classifier.preprocessing._replace(**changes)
    reduction = classifier.model.reduction
    if preprocessing.image_size < reduction:
        raise UserError(
            f"--image_size={preprocessing.image_size} is too small; this "
            f"model makes one pixel of {reduction}"
        )
    return Classifier(classifier.model, preprocessing, classifier.class_names)


def make_fast(settings, classifier):
    """Makes a classifier that is not trained any more as fast as is wanted.

    Args:
      settings: `Settings` without gaps.
      classifier: a `Classifier`; it is changed.
    """
    if settings.fold_batch_norm:
        fold_batch_norms(classifier.model)
    if settings.constant_weights:
        classifier.make_weights_constant()


def _choose_norm(settings):
    """Returns the norm of the variant, synchronized if that is wanted."""
    norm = VARIANTS[settings.model].arguments.get("norm", "batch")
    if not settings.synchronized_batch_norm:
        return norm
    norm = norm if isinstance(norm, dict) else {"kind": norm}
    if norm["kind"] != "batch":
        raise UserError(
            f"--synchronized_batch_norm is not for {settings.model}, which "
            f"has {norm['kind']} norm; leave it out"
        )
    return {**norm, "synchronized": True}


def start_from(path, settings, classifier, class_names):
    """Reads weights into a model, and says what comes with them.

    The classifier comes along where its classes are the same, as far as
    anybody knows.

    Args:
      path: of the weights.
      settings: settled `Settings`.
      classifier: the `Classifier` of the model.
      class_names: of the weights' classes, None if they are not known.
    """
    model = classifier.model
    new = [np.asarray(variable) for variable in model.head.variables]
    try:
        loaded = load_weights(
            model, path, replace_head=True, adapt_channels=True
        )
    except WeightsError as error:
        raise UserError(f"--weights={settings.weights}: {error}") from error
    report_notes(path, loaded)
    head = "with a new classifier"
    if loaded.head_used and class_names is None:
        head = (
            f"with its classifier, of as many classes ({model.num_classes}); "
            "which ones they are it does not say"
        )
    elif loaded.head_used:
        theirs, ours = map(
            imagenet.in_words, (class_names, classifier.class_names)
        )
        head = "with its classifier, of the same classes"
        if [*theirs] != [*ours]:
            for variable, values in zip(model.head.variables, new, strict=True):
                variable.assign(values)
            head = (
                "with a new classifier: that of the weights is for "
                f"{first_few(theirs)}"
            )
    texts = settings.texts()
    print(
        f"Starting from {path}, {head}; images are brought to "
        f"{settings.image_size} x {settings.image_size} "
        f"({settings.interpolation}, the middle {settings.crop_fraction:.3g} "
        f"in evaluation) and normalised as {texts['normalization']}"
    )


def report_notes(path, loaded):
    """Prints what `load_weights` had to change to read a file, if anything."""
    if loaded.notes:
        print(f"{path}: {'; '.join(loaded.notes)}.")


def warn_of_random_parts(settings):
    """Warns of parts that would stay as they were drawn."""
    frozen = {
        f"--freeze={settings.freeze}": settings.freeze != "none",
        "--frozen_batch_norm": settings.frozen_batch_norm,
    }
    _warn(
        f"{flag} without --weights: what is frozen is random; name weights to "
        "start from, such as --weights=imagenet"
        for flag, is_on in frozen.items()
        if is_on
    )


def _warn(lines):
    for line in lines:
        print(printable(f"warning: {line}"))


def _check_same(data, dataset, workers):
    """Raises UserError where workers would train on different images."""
    own = content_hash(json.dumps(data.contents))
    [others] = workers.sums(own != workers.text_of_chief(own))
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
        choice = cache.choose(data.splits.values())
        if settings.data_service:
            # Its workers read files, but not through functions of Python.
            is_hdf5 = settings.dataset.lower().endswith(HDF5_SUFFIXES)
            choice = "memory" if is_hdf5 else "none"

    def keep(name, split):
        with check.explained(split):
            return cache.CACHES[choice](split, workdir.cache / name, workers)

    return data.map(keep)


@contextlib.contextmanager
def _seeded(seed):
    """Draws initial weights from a seed, and leaves the caller's numbers be.

    Keras takes the seeds of initializers from Python's generator.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
