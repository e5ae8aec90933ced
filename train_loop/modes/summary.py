"""A summary of a model: what it costs, part by part."""

from dataclasses import replace

from resnet_layers import VARIANTS
from train_loop.builders.model import check_image_size
from train_loop.console import text_table
from train_loop.errors import UserError
from train_loop.evaluation import costs
from train_loop.recipes import OTHERS
from train_loop.resolve import settle
from train_loop.workdir import Workdir

# Stem of a net -> the size of images that it was made for, where that is
# another than the default.
SIZES = {"small": 32}
# What says for which images a model is meant.
SAYING = ("workdir", "dataset", "recipe", "weights")


def summarize(settings):
    """Prints what the model costs, at the size of the images."""
    settings = settle(suited(settings))
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
    print(text_table(costs.cost_table(model, size)))


def suited(given):
    """Returns the settings, of a model alone with the size that suits it."""
    if given.model is None or any(name in given.given for name in SAYING):
        return given
    stem = VARIANTS[given.model].arguments.get("stem")
    size = given.image_size or SIZES.get(stem if isinstance(stem, str) else "")
    return replace(given, recipe=OTHERS, image_size=size)


def _classes(workdir):
    """Returns the argument for as many classes as a run has, if one is named.

    Raises:
      UserError: it is none.
    """
    if workdir is None:
        return {}
    if not Workdir.of(workdir).is_run:
        raise UserError(
            f"{workdir} is not the folder of a run: it has no flags.txt"
        )
    names = Workdir.of(workdir).read_data()["class_names"]
    return {"num_classes": len(names)}
