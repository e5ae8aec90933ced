"""Summary of a model: its size and its work, part by part."""

from dataclasses import replace

from resnet_layers import VARIANTS
from train_loop.builders.model import check_image_size
from train_loop.console import text_table
from train_loop.errors import UserError
from train_loop.evaluation.model_costs import cost_table
from train_loop.recipes import OTHERS
from train_loop.resolve import settle
from train_loop.workdir import Workdir

# Stem of a network -> the image size that it was made for, where that is not
# the default.
STEM_IMAGE_SIZES = {"small": 32}
# Settings that decide the image size.
IMAGE_SIZE_SETTINGS = ("workdir", "dataset", "recipe", "weights")


def summarize(settings):
    """Prints parameters, multiply-adds and activations of a model's parts."""
    settings = settle(_with_image_size(settings))
    check_image_size(settings)
    model = VARIANTS[settings.model](
        dtype=settings.precision, **_classes(settings.workdir)
    )
    size = settings.image_size
    model.build((None, size, size, settings.channels))
    print(
        f"{settings.model}, {model.num_classes} classes, {size} x {size}, "
        f"{settings.precision}; multiply-adds and activations are for one image"
    )
    print(text_table(cost_table(model, size)))


def _with_image_size(given):
    """Returns the settings; of a model alone, with its image size."""
    if given.model is None or any(
        name in given.given for name in IMAGE_SIZE_SETTINGS
    ):
        return given
    stem = VARIANTS[given.model].arguments.get("stem")
    size = given.image_size or STEM_IMAGE_SIZES.get(
        stem if isinstance(stem, str) else ""
    )
    return replace(given, recipe=OTHERS, image_size=size)


def _classes(workdir):
    """Returns the argument `num_classes` of a run's model, if there is a run.

    Raises:
      UserError: the folder is not a run.
    """
    if workdir is None:
        return {}
    if not Workdir.of(workdir).is_run:
        raise UserError(
            f"{workdir} is not the folder of a run: it has no flags.txt"
        )
    names = Workdir.of(workdir).read_data()["class_names"]
    return {"num_classes": len(names)}
