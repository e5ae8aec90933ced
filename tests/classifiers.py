"""Small classifiers whose predictions depend on all of their parts."""

import numpy as np

from resnet_layers import (
    NORMALIZATIONS,
    Normalization,
    Preprocessing,
    ResNet,
)
from train_loop.prediction.classifier import Classifier

NAMES = ("ape", "bee", "cat", "dog", "elk", "fox")
# Each number differs, so that a wrong order changes the predictions.
GREY = Normalization((120.0,), (60.0,))
BGR = Normalization((90.0, 120.0, 150.0), (40.0, 60.0, 90.0), bgr=True)
SMALL = {"block": "basic", "stage_sizes": (1, 1), "width": 8, "stem": "small"}


def small_classifier(
    normalization=NORMALIZATIONS["imagenet"],
    image_size=16,
    dtype="float32",
    **options,
):
    """Returns a `Classifier` with random weights and statistics."""
    model = ResNet(
        num_classes=len(NAMES),
        dtype=dtype,
        **{"name": "small", **SMALL, **options},
    )
    channels = len(normalization.mean)
    model.build((None, image_size, image_size, channels))
    random = np.random.default_rng(3)
    for variable in model.weights:
        value = random.normal(size=variable.shape)
        if variable.name == "kernel":
            value *= np.sqrt(2 / np.prod(variable.shape[:-1]))
        elif variable.name in ("gamma", "moving_variance"):
            value = 1.0 + np.abs(0.3 * value)
        else:
            value *= 0.3
        variable.assign(value.astype("float32"))
    # Scaled, so that no class has a probability of 1.
    kernel = model.stem.convs[0].kernel
    kernel.assign(kernel / 60 * normalization.stddev[0])
    return Classifier(
        model,
        Preprocessing(normalization, image_size, 0.8, "bilinear", True),
        NAMES,
    )


def random_pixels(count, size=16):
    """Returns uint8 [count, size, size, 3]."""
    random = np.random.default_rng(4)
    return random.integers(0, 256, (count, size, size, 3), "uint8")
