"""A classifier made of weights alone, and of what comes with them."""

import contextlib
import pathlib

from resnet_layers import (
    VARIANTS,
    Normalization,
    WeightsError,
    is_of_hub,
    load_weights,
    read_num_classes,
)
from train_loop.assembly import build_classifier, report_notes
from train_loop.data import imagenet
from train_loop.errors import UserError, check_choice, first_few
from train_loop.recipes import OTHERS
from train_loop.settings import Settings
from train_loop.settling import find_given_weights, settle
from train_loop.shipping.shipment import CONTENTS
from train_loop.workdir import Workdir, read_json


def pretrained_classifier(
    weights, model=None, class_names=None, data_names=None
):
    """Returns the `Classifier` of a file, of "imagenet" or of "timm/NAME".

    Args:
      weights: what `--weights` takes, but a run.
      model: row of `VARIANTS`; by default what the weights say of themselves.
      class_names: by default those that are beside the weights, else ImageNet's
        for 1,000 classes, else `data_names`.
      data_names: of the classes of the data set that it is for, if any.

    Raises:
      UserError: the weights are not to be had, or of another model, or do not
        tell of which.
    """
    found = find_given_weights(Settings(weights=weights, model=model))
    beside = _read_beside(found.path)
    model = model or beside.get("model") or found.variant
    if model is None:
        raise UserError(
            f"--weights={weights} does not tell which model it is for; name "
            "the --model"
        )
    check_choice("--model", model, VARIANTS)
    settings = settle(
        Settings(
            weights=weights,
            recipe=OTHERS,
            model=model,
            **beside.get("preprocessing", {}),
        )
    )
    names = _names_for(
        weights,
        read_num_classes(found.path),
        class_names or beside.get("class_names"),
        data_names,
    )
    classifier = build_classifier(settings, imagenet.in_words(names))
    try:
        loaded = load_weights(classifier.model, found.path)
    except WeightsError as error:
        raise UserError(f"--weights={weights}: {error}") from error
    report_notes(found.path, loaded)
    return classifier


def given_class_names(settings):
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


def _names_for(weights, count, names, data_names):
    """Returns the names of the classes of weights.

    Args:
      weights: what `--weights` takes.
      count: how many there are; None if that is not known.
      names: known ones, or None.
      data_names: of the data set that the weights are measured on, or None.

    Raises:
      UserError: they are not known, or not as many.
    """
    thousand = imagenet.class_names()
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


def class_names_of(weights, path):
    """Returns the names of the classes of weights, None where nobody knows.

    Args:
      weights: what `--weights` takes.
      path: where they were found.
    """
    if weights == "imagenet":
        return imagenet.class_names()
    for folder in (path, *path.parents[:2]):
        workdir = Workdir(folder)
        if workdir.is_run and workdir.data.is_file():
            # Damaged, it is one of the reasons to start from weights.
            with contextlib.suppress(UserError):
                return workdir.read_data()["class_names"]
    return _read_beside(path).get("class_names")


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


def _read_beside(path):
    """Returns what files beside the weights tell: ours, or of the hub."""
    if path.with_name(CONTENTS).is_file():
        contents = read_json(path.with_name(CONTENTS), "preprocessing")
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
    config = path.with_name("config.json")
    if not config.is_file():
        return {}
    contents = read_json(config)
    names = contents.get("label_names")
    # As transformers has them.
    numbered = contents.get("id2label")
    if names is None and isinstance(numbered, dict):
        names = [numbered.get(str(number)) for number in range(len(numbered))]
        names = None if None in names else names
    return {"class_names": names}
