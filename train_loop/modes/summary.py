"""A summary of a model: what it costs, part by part."""

from resnet_layers import VARIANTS
from train_loop.assembly import check_image_size
from train_loop.evaluation import costs
from train_loop.settling import settle
from train_loop.training.reports import table


def summarize(settings):
    """Prints what the model costs, at the size of the images."""
    settings = settle(settings)
    check_image_size(settings)
    model = VARIANTS[settings.model](dtype=settings.precision)
    size = settings.image_size
    model.build((None, size, size, 3))
    print(
        f"{settings.model}, {model.num_classes} classes, {size} x {size}, "
        f"{settings.precision}; multiply-adds and activations are for one image"
    )
    print(table(costs.table(model, size)))
