"""Settings -> a new classifier; a run or weights -> a trained one."""

import contextlib
import os
import pathlib
import random
from collections.abc import Sequence

import numpy as np

from resnet_layers import (
    VARIANTS,
    Normalization,
    WeightsError,
    fold_batch_norms,
    is_of_hub,
    load_weights,
    read_config,
    read_num_classes,
)
from resnet_layers.weights.files import CHECKPOINT
from train_loop.console import print_warnings
from train_loop.data.tfds import imagenet_class_names, with_imagenet_words
from train_loop.errors import UserError, check_choice, first_few
from train_loop.prediction.classifier import Classifier
from train_loop.recipes import GENERIC
from train_loop.resolve import locate_weights, resolve, weights_error
from train_loop.settings import Settings
from train_loop.training.checkpoints import Evaluations
from train_loop.workdir import Workdir, read_json

# Each export has this file: classes and preprocessing, for programs.
DESCRIPTION = "classifier.json"


def build_classifier(settings, class_names):
    """Returns a `Classifier` with random weights from the seed."""
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
    model.gradient_checkpointing = settings.gradient_checkpointing
    model.fast_paths = settings.fast_paths
    freeze(settings, model)
    return Classifier(model, preprocessing, class_names)


def _choose_norm(settings):
    """Returns the norm of the variant, synchronized if the flag says so."""
    norm = VARIANTS[settings.model].arguments.get("norm", "batch")
    if not settings.synchronized_batch_norm:
        return norm
    norm = norm if isinstance(norm, dict) else {"kind": norm}
    if norm["kind"] != "batch":
        raise UserError(
            "--synchronized_batch_norm: requires batch norm, and "
            f"--model={settings.model} has {norm['kind']} norm. Remove the "
            "flag."
        )
    return {**norm, "synchronized": True}


@contextlib.contextmanager
def _seeded(seed):
    """Seeds initial weights; restores Python's random state at the end.

    Keras draws the seeds of initializers from Python's generator.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def check_image_size(settings):
    """Raises UserError if the last stage would have less than one pixel."""
    with _seeded(0):
        reduction = VARIANTS[settings.model]().reduction
    if settings.image_size < reduction:
        raise UserError(
            f"--image_size={settings.image_size}: must be at least {reduction} "
            f"for {settings.model}. Pass --image_size={reduction} or more, or "
            "another --model."
        )


def freeze(settings, model):
    """Freezes layers after the settings, for the first phase of two."""
    if settings.frozen_batch_norm:
        model.freeze_batch_norm()
    if settings.freeze != "none":
        check_choice("--freeze", settings.freeze, ["none", *model.parts])
        model.freeze(settings.freeze)


def unfreeze(settings, model):
    """Unfreezes all layers but those that stay frozen to the end."""
    # Keras does nothing if it is True already.
    model.trainable = False
    model.trainable = True
    if settings.frozen_batch_norm:
        model.freeze_batch_norm()


def load_initial_weights(path, settings, classifier, class_names):
    """Loads initial weights into a model and prints a summary.

    Loads the head too if its classes are known to be the same.

    Args:
      path: of the weights.
      settings: resolved `Settings`.
      classifier: the `Classifier` of the model.
      class_names: of the weights; [] if unknown.
    """
    model = classifier.model
    new = [np.asarray(variable) for variable in model.head.variables]
    loaded = _read_weights(
        model, settings.weights, path, replace_head=True, adapt_channels=True
    )
    head = "new classification head"
    if loaded.head_used:
        weights_names, own_names = map(
            with_imagenet_words, (class_names, classifier.class_names)
        )
        if [*weights_names] == [*own_names]:
            head = "its own classification head (same classes)"
        else:
            for variable, values in zip(model.head.variables, new, strict=True):
                variable.assign(values)
            reason = "classes without names"
            if weights_names:
                reason = f"other classes: {first_few(weights_names)}"
            head = f"new classification head (the weights have {reason})"
    texts = settings.texts()
    print(
        f"Starting from {path}: {head}; images resized to "
        f"{settings.image_size} x {settings.image_size} "
        f"({settings.interpolation}, center crop of "
        f"{settings.crop_fraction:.3g} in evaluation), normalization "
        f"{texts['normalization']}."
    )


def _read_weights(model, weights, path, **options):
    """Loads the weights of `--weights`; prints what had to be converted."""
    try:
        loaded = load_weights(model, path, **options)
    except WeightsError as error:
        raise weights_error(weights, error) from error
    if loaded.notes:
        print(f"{path}: {'; '.join(loaded.notes)}.")
    return loaded


def class_names_of(weights, path):
    """Returns the names of the classes of weights, [] if unknown.

    1,000 classes without names are those of ImageNet.

    Args:
      weights: value of `--weights`.
      path: where they were found.
    """
    thousand = imagenet_class_names()
    if weights == "imagenet":
        return thousand
    for folder in (path, *path.parents[:2]):
        workdir = Workdir(folder)
        if workdir.is_run and workdir.data.is_file():
            # A damaged run is a reason to start from its weights.
            with contextlib.suppress(UserError):
                return workdir.read_data()["class_names"]
    names = _read_description(path).get("class_names")
    if not names and read_num_classes(path) == len(thousand):
        return thousand
    return names or []


def warn_of_random_weights(settings):
    """Warns of frozen parts with random weights."""
    frozen = {
        f"--freeze={settings.freeze}": settings.freeze != "none",
        "--frozen_batch_norm": settings.frozen_batch_norm,
    }
    print_warnings(
        f"{flag}: freezes random weights. Pass weights to start from, such as "
        "--weights=imagenet."
        for flag, is_on in frozen.items()
        if is_on
    )


def load_classifier(
    source: str | os.PathLike[str],
    model: str | None = None,
    class_names: Sequence[str] | None = None,
    step: int | str | None = None,
    averaged: bool = True,
    data_names: Sequence[str] | None = None,
) -> Classifier:
    """Loads the `Classifier` of a run or of weights.

    A run needs only its folder, not its data, and need not be finished. The
    classes of ImageNet have names such as "goldfish (n01443537)".

    Args:
      source: folder of a run; or weights as in `--weights`: a file, a folder
        of timm or Keras Hub, "imagenet", "timm/NAME" or "keras/NAME".
      model: entry of `VARIANTS` for weights that do not specify their model.
      class_names: list of class names for weights. The default is the names
        stored with the weights, the names of ImageNet for 1,000 classes, or
        `data_names`.
      step: step of a run's checkpoint; "best" for the best evaluation; None for
        the last readable checkpoint.
      averaged: whether to load averaged weights if the run has them.
      data_names: class names of the data set to evaluate weights on.

    Returns:
      A `Classifier`.

    Raises:
      UserError: the run is not found or has no checkpoint, the weights cannot
        be used, or the class names are unknown.

    Example:
      ```python
      from train_loop import load_classifier

      classifier = load_classifier("runs/pets", step="best")
      [prediction] = classifier("cat.jpg", top_k=3)
      for class_name, probability in prediction:
          print(f"{class_name}: {probability:.1%}")

      classifier = load_classifier("imagenet", model="resnet50")
      ```
    """
    if is_weights(source):
        if step is not None:
            raise UserError(
                f"--checkpoint={step}: requires a run, and {source} is a file "
                "of weights. Remove --checkpoint."
            )
        return _pretrained_classifier(
            str(source), model, class_names, data_names
        )
    workdir = existing_run(source)
    settings = Settings.read(workdir.flags)
    names = workdir.read_data()["class_names"]
    classifier = build_classifier(settings, with_imagenet_words(names))
    path = workdir.path
    if step is not None:
        step = find_checkpoint(workdir, step, averaged)
        path = workdir.checkpoints / CHECKPOINT.format(step)
    try:
        load_weights(classifier.model, path, averaged=averaged)
    except WeightsError as error:
        raise UserError(str(error)) from error
    return classifier


def is_weights(source):
    """Returns whether a name or path is that of weights, not of a run."""
    source = str(source)
    path = pathlib.Path(source).expanduser()
    return (
        source == "imagenet"
        or is_of_hub(source)
        or path.is_file()
        # A folder as on the Hugging Face Hub; a run has that file as well.
        or (path.joinpath("config.json").is_file() and not Workdir(path).is_run)
    )


def existing_run(folder):
    """Returns the `Workdir` of a run with a checkpoint."""
    workdir = Workdir.of(folder)
    if not workdir.is_run:
        raise UserError(
            f"{workdir}: not an existing run (no flags.txt), and no file of "
            "weights. Check the path."
        )
    if not workdir.has_checkpoint:
        raise UserError(
            f"{workdir}: has no checkpoint yet. Train the run first."
        )
    return workdir


def find_checkpoint(workdir, step, averaged=True):
    """Returns the step of an existing checkpoint.

    Args:
      workdir: the `Workdir` of a run.
      step: of the checkpoint; "best" for that of the best evaluation, by
        --keep_best, or else by the accuracy of the weights in use; None for
        the last.
      averaged: whether averaged weights are used, if the run has them.

    Raises:
      UserError: it does not exist, or the best one is unknown.
    """
    steps = workdir.steps
    available = f"Pass one of {', '.join(map(str, steps))}."
    if step is None:
        return steps[-1]
    if step != "best":
        if step not in steps:
            raise UserError(
                f"--checkpoint={step}: not found in {workdir}. {available}"
            )
        return step
    settings = Settings.read(workdir.flags)
    metric = settings.keep_best
    if metric in (None, "none"):
        has_average = averaged and settings.weight_average not in (None, "none")
        metric = (
            f"{settings.weight_average}_accuracy" if has_average else "accuracy"
        )
    best = Evaluations(workdir.metrics, metric).best_step()
    if best is None:
        raise UserError(
            f"--checkpoint=best: requires an evaluation with {metric}, and "
            f"{workdir} has none. {available}"
        )
    if best not in steps:
        raise UserError(
            f"--checkpoint=best: {workdir} has the best {metric} at step "
            f"{best}, but that checkpoint is deleted. {available} Use "
            "--keep_best in training to keep the best one."
        )
    return best


def _pretrained_classifier(weights, model, class_names, data_names):
    """Returns the `Classifier` of weights; see `load_classifier`."""
    found = locate_weights(Settings(weights=weights, model=model))
    beside = _read_description(found.path)
    model = model or beside.get("model") or found.variant
    if model is None:
        raise UserError(
            f"--weights={weights}: does not contain the name of its model. "
            "Pass --model."
        )
    check_choice("--model", model, VARIANTS)
    settings = resolve(
        Settings(
            weights=weights,
            recipe=GENERIC,
            model=model,
            **beside.get("preprocessing", {}),
        )
    )
    names = _choose_class_names(
        weights,
        read_num_classes(found.path),
        class_names or beside.get("class_names"),
        data_names,
    )
    classifier = build_classifier(settings, with_imagenet_words(names))
    _read_weights(classifier.model, weights, found.path)
    return classifier


def _choose_class_names(weights, count, names, data_names):
    """Returns the names of the classes; `count` is None if unknown."""
    thousand = imagenet_class_names()
    if names is None and count in (None, len(thousand)):
        names = thousand
    if names is None and count == len(data_names or ()):
        print(
            f"The classes of {weights} have no names. Using those of the "
            f"dataset, in its order: {first_few(data_names)}."
        )
        names = data_names
    if names is None:
        raise UserError(
            f"--weights={weights}: {count} classes without names. Pass them "
            "with --class_names=FILE, one on each line."
        )
    if count not in (None, len(names)):
        raise UserError(
            f"--weights={weights}: {count} classes, and {len(names)} names. "
            "Pass as many with --class_names=FILE, one on each line."
        )
    return names


def _read_description(path):
    """Returns the description beside weights: of an export or of the Hub."""
    if path.with_name(DESCRIPTION).is_file():
        contents = read_json(path.with_name(DESCRIPTION), "preprocessing")
        preprocessing = contents["preprocessing"]
        mean, stddev, bgr = preprocessing["normalization"].values()
        normalization = Normalization(tuple(mean), tuple(stddev), bgr)
        return {
            **contents,
            "preprocessing": {
                # Exports of earlier versions do not have it.
                "exif_orientation": False,
                **preprocessing,
                "normalization": normalization,
            },
        }
    try:
        return {"class_names": read_config(path.parent).class_names}
    except WeightsError as error:
        raise UserError(str(error)) from error


def read_class_names(settings):
    """Returns the lines of --class_names; None if it is not set.

    Raises:
      UserError: the file is unreadable, a name is empty or not unique, or
        --workdir is set too.
    """
    path = settings.class_names
    if path is None:
        return None
    if settings.workdir is not None:
        raise UserError(
            f"--class_names={path}: cannot be combined with --workdir, whose "
            "run has names. Remove one of the two."
        )
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"--class_names={path}: not readable ({reason}). Pass a text file "
            "with the name of a class on each line."
        ) from error
    # Not `splitlines`: it also splits at characters that a name may contain.
    names = [name.strip() for name in text.rstrip("\n").split("\n")]
    seen = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            problem = "is not unique" if name else "is empty"
            raise UserError(
                f"--class_names={path}: line {number}, {name!r}, {problem}. "
                "Write the name of each class once."
            )
        seen.add(name)
    return names


def override_preprocessing(classifier, explicit):
    """Returns a classifier with explicit settings in its preprocessing.

    Raises:
      UserError: images would be too small for the model.
    """
    changes = explicit.preprocessing._asdict()
    changes = {name: v for name, v in changes.items() if v is not None}
    if not changes:
        return classifier
    preprocessing = classifier.preprocessing._replace(**changes)
    reduction = classifier.model.reduction
    if preprocessing.image_size < reduction:
        raise UserError(
            f"--image_size={preprocessing.image_size}: must be at least "
            f"{reduction} for this model. Pass --image_size={reduction} or "
            "more."
        )
    return Classifier(classifier.model, preprocessing, classifier.class_names)


def prepare_for_inference(settings, classifier):
    """Optimizes a classifier in place for inference.

    Args:
      settings: `Settings`; `fast_paths` may be None for the default.
      classifier: a `Classifier`, which is not for training afterwards.
    """
    if settings.fast_paths is False:
        classifier.model.fast_paths = False
    else:
        fold_batch_norms(classifier.model)
