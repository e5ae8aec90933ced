"""A classifier made of weights alone, and of what comes with them."""

import contextlib
import pathlib

from resnet_layers import (
    VARIANTS,
    Normalization,
    WeightsError,
    load_weights,
)
from train_loop.assembly import build_classifier, report_notes
from train_loop.data import imagenet
from train_loop.errors import UserError, check_choice
from train_loop.recipes import OTHERS
from train_loop.settings import Settings
from train_loop.settling import find_given_weights, settle
from train_loop.shipping.shipment import CONTENTS
from train_loop.workdir import Workdir, read_json

# Owners on the Hugging Face hub.
HUBS = ("timm/", "keras/")


def pretrained_classifier(weights, model=None, class_names=None):
    """Returns the `Classifier` of a file, of "imagenet" or of "timm/NAME".

    Args:
      weights: what `--weights` takes, but a run.
      model: row of `VARIANTS`; by default what the weights say of themselves.
      class_names: by default those that are beside the weights, and else
        ImageNet's.

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
    names = class_names or beside.get("class_names") or imagenet.class_names()
    classifier = build_classifier(settings, imagenet.in_words(names))
    try:
        loaded = load_weights(classifier.model, found.path)
    except WeightsError as error:
        raise UserError(f"--weights={weights}: {error}") from error
    report_notes(found.path, loaded)
    return classifier


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
    return (
        source == "imagenet"
        or source.startswith(HUBS)
        or pathlib.Path(source).expanduser().is_file()
    )


def _read_beside(path):
    """Returns what files beside the weights tell: ours, or timm's."""
    if path.with_name(CONTENTS).is_file():
        contents = read_json(path.with_name(CONTENTS), "preprocessing")
        preprocessing = contents["preprocessing"]
        mean, stddev, bgr = preprocessing["normalization"].values()
        normalization = Normalization(tuple(mean), tuple(stddev), bgr)
        return {
            **contents,
            "preprocessing": {**preprocessing, "normalization": normalization},
        }
    config = path.with_name("config.json")
    if path.suffix != ".safetensors" or not config.is_file():
        return {}
    contents = read_json(config)
    return {"class_names": contents.get("label_names")}
