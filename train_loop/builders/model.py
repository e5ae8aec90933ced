"""Settings -> a new classifier; a run or weights -> a trained one."""

import contextlib
import pathlib
import random

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
from train_loop.resolve import locate_weights, resolve
from train_loop.settings import Settings
from train_loop.training.checkpoints import Evaluations
from train_loop.workdir import Workdir, read_json

# What every format has beside its files, for programs.
DESCRIPTION = "classifier.json"


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
    model.remat = settings.gradient_checkpointing
    model.fast_paths = settings.fast_paths
    freeze(settings, model)
    return Classifier(model, preprocessing, class_names)


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


def freeze(settings, model):
    """Freezes what stays as it is, in the first phase where there are two."""
    if settings.frozen_batch_norm:
        model.freeze_batch_norm()
    if settings.freeze != "none":
        check_choice("--freeze", settings.freeze, ["none", *model.parts])
        model.freeze(settings.freeze)


def unfreeze(settings, model):
    """Leaves frozen what stays so to the end."""
    # Where it is True already, Keras would do nothing.
    model.trainable = False
    model.trainable = True
    if settings.frozen_batch_norm:
        model.freeze_batch_norm()


def load_initial_weights(path, settings, classifier, class_names):
    """Reads weights into a model, and says what comes with them.

    The head is used too where its classes are the same, or unknown.

    Args:
      path: of the weights.
      settings: resolved `Settings`.
      classifier: the `Classifier` of the model.
      class_names: of the weights' classes, None if they are not known.
    """
    model = classifier.model
    new = [np.asarray(variable) for variable in model.head.variables]
    loaded = _read_weights(
        model, settings.weights, path, replace_head=True, adapt_channels=True
    )
    head = "with a new classifier"
    if loaded.head_used and class_names is None:
        head = (
            f"with its classifier, of as many classes ({model.num_classes}); "
            "which ones they are it does not say"
        )
    elif loaded.head_used:
        theirs, ours = map(
            with_imagenet_words, (class_names, classifier.class_names)
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


def _read_weights(model, weights, path, **options):
    """Reads the file that `--weights` names; prints what had to be changed."""
    try:
        loaded = load_weights(model, path, **options)
    except WeightsError as error:
        raise UserError(f"--weights={weights}: {error}") from error
    if loaded.notes:
        print(f"{path}: {'; '.join(loaded.notes)}.")
    return loaded


def class_names_of(weights, path):
    """Returns the names of the classes of weights, None if unknown.

    Args:
      weights: what `--weights` takes.
      path: where they were found.
    """
    if weights == "imagenet":
        return imagenet_class_names()
    for folder in (path, *path.parents[:2]):
        workdir = Workdir(folder)
        if workdir.is_run and workdir.data.is_file():
            # Damaged, it is one of the reasons to start from weights.
            with contextlib.suppress(UserError):
                return workdir.read_data()["class_names"]
    return _read_description(path).get("class_names")


def warn_of_random_weights(settings):
    """Warns of parts that would stay as they were drawn."""
    frozen = {
        f"--freeze={settings.freeze}": settings.freeze != "none",
        "--frozen_batch_norm": settings.frozen_batch_norm,
    }
    print_warnings(
        f"{flag} without --weights: what is frozen is random; name weights to "
        "start from, such as --weights=imagenet"
        for flag, is_on in frozen.items()
        if is_on
    )


def load_classifier(
    source,
    model=None,
    class_names=None,
    step=None,
    averaged=True,
    data_names=None,
):
    """Returns the `Classifier` of a run, or of weights.

    Of a run, finished or not, it needs the folder only, not its data.
    ImageNet's classes are called by words, with the WordNet id behind.

    Args:
      source: the folder of a run; or a file of weights, "imagenet" or
        "timm/NAME", as `--weights` takes them.
      model: entry of `VARIANTS`, for weights that do not tell it themselves.
      class_names: of weights; by default those beside them, else ImageNet's
        if there are 1,000, else `data_names`.
      step: of a run, which checkpoint; "best" for that of the best evaluation;
        None for the last that can be read.
      averaged: take the averaged weights of a run that keeps some.
      data_names: of the classes of the data set that weights are measured on.

    Raises:
      UserError: there is no such run, it has no checkpoint yet, or the weights
        are of no use.
    """
    if is_weights(source):
        if step is not None:
            raise UserError(
                f"--checkpoint={step} is of a run, and {source} is a file of "
                "weights; leave it out"
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
    """Tells whether a name is that of weights, and not that of a run."""
    source = str(source)
    path = pathlib.Path(source).expanduser()
    return (
        source == "imagenet"
        or is_of_hub(source)
        or path.is_file()
        # A folder as the hub has it. That of a run has such a file as well.
        or (path.joinpath("config.json").is_file() and not Workdir(path).is_run)
    )


def existing_run(folder):
    """Returns the `Workdir` of a run that can be asked something."""
    workdir = Workdir.of(folder)
    if not workdir.is_run:
        raise UserError(
            f"{workdir} is not the folder of a run: it has no flags.txt"
        )
    if not workdir.has_checkpoint:
        raise UserError(f"{workdir} has no checkpoint yet; train it first")
    return workdir


def find_checkpoint(workdir, step, averaged=True):
    """Returns the step of a checkpoint that there is.

    Args:
      workdir: the `Workdir` of a run.
      step: of the checkpoint; "best" for that of the best evaluation, by
        --keep_best, or else by the accuracy of the weights that are taken;
        None for the last.
      averaged: whether these are the averaged ones, of a run that keeps some.

    Raises:
      UserError: there is none, or nothing tells which one is the best.
    """
    steps = workdir.steps
    kept = f"there are checkpoints of step {', '.join(map(str, steps))}"
    if step is None:
        return steps[-1]
    if step != "best":
        if step not in steps:
            raise UserError(
                f"{workdir} has no checkpoint of step {step}; {kept}"
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
            f"{workdir} has no record of an evaluation that would tell which "
            f"checkpoint is the best; name one: {kept} (--checkpoint=STEP)"
        )
    if best not in steps:
        raise UserError(
            f"{workdir} was best ({metric}) at step {best}, whose checkpoint "
            f"is not there any more; {kept} (--checkpoint=STEP). A run with "
            "--keep_best keeps the best one"
        )
    return best


def _pretrained_classifier(weights, model, class_names, data_names):
    """Returns the `Classifier` of weights; see `load_classifier`."""
    found = locate_weights(Settings(weights=weights, model=model))
    beside = _read_description(found.path)
    model = model or beside.get("model") or found.variant
    if model is None:
        raise UserError(
            f"--weights={weights} does not tell which model it is for; name "
            "the --model"
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
            f"The classes of {weights} have no names; they are taken to be "
            f"those of the data set, in its order: {first_few(data_names)}."
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
    """Returns what files beside the weights tell: ours, or of the hub."""
    if path.with_name(DESCRIPTION).is_file():
        contents = read_json(path.with_name(DESCRIPTION), "preprocessing")
        preprocessing = contents["preprocessing"]
        mean, stddev, bgr = preprocessing["normalization"].values()
        normalization = Normalization(tuple(mean), tuple(stddev), bgr)
        return {
            **contents,
            "preprocessing": {
                # Of exports from before there was a choice.
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
    """Returns the lines of --class_names, None where it is not given.

    Raises:
      UserError: it cannot be read, a name is empty or there twice, or it is
        given for a run.
    """
    path = settings.class_names
    if path is None:
        return None
    if settings.workdir is not None:
        raise UserError(
            f"--class_names={path}: cannot be combined with --workdir, whose "
            "run has names. Omit one of them."
        )
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"--class_names={path}: not readable ({reason}). Pass a text file "
            "with the name of a class on each line."
        ) from error
    # Not `splitlines`, for which a name may hold ends of lines.
    names = [name.strip() for name in text.rstrip("\n").split("\n")]
    seen = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            problem = "is there twice" if name else "is empty"
            raise UserError(
                f"--class_names={path}: line {number}, {name!r}, {problem}. "
                "Write the name of each class once."
            )
        seen.add(name)
    return names


def override_preprocessing(classifier, given):
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


def prepare_for_inference(settings, classifier):
    """Makes a classifier faster that is only for inference from now on.

    Args:
      settings: `Settings`, whose `fast_paths` may be None, for the default.
      classifier: a `Classifier`; it is changed.
    """
    if settings.fast_paths is False:
        classifier.model.fast_paths = False
    else:
        fold_batch_norms(classifier.model)
