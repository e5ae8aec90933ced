"""Models of keras.applications, whole and shortened, and their files."""

import functools

import h5py
import tensorflow as tf
from keras.src.applications import resnet
from keras.src.legacy.saving import legacy_h5_format
from weight_models import assign_random, build, zero_kernels

# Variant -> model of keras.applications.
APPLICATIONS = {
    "resnet50_keras": "ResNet50",
    "resnet101_keras": "ResNet101",
    "resnet152_keras": "ResNet152",
    "resnet50_v2": "ResNet50V2",
    "resnet101_v2": "ResNet101V2",
    "resnet152_v2": "ResNet152V2",
}


def make_application(name):
    """Returns the model of keras.applications for a variant."""
    with zero_kernels():
        return getattr(tf.keras.applications, APPLICATIONS[name])(
            weights=None,
            classes=7,
            classifier_activation=None,
            input_shape=(64, 64, 3),
        )


@functools.cache
def make_short_application(name):
    """Returns its first two stages with two blocks each, and a classifier.

    Every call returns the same object.
    """
    v2 = name.endswith("v2")
    stack = resnet.stack_residual_blocks_v1
    # The last stage of v2 has no stride.
    strides = (1, 2)
    if v2:
        stack, strides = resnet.stack_residual_blocks_v2, (2, 1)

    def stack_both(x):
        x = stack(x, 64, 2, stride1=strides[0], name="conv2")
        return stack(x, 128, 2, stride1=strides[1], name="conv3")

    with zero_kernels():
        return resnet.ResNet(
            stack_both,
            preact=v2,
            use_bias=True,
            weights=None,
            classes=7,
            classifier_activation=None,
            input_shape=(64, 64, 3),
        )


@functools.cache
def _build_short(name, **options):
    return build(name, **{"stage_sizes": (2, 2), **options})


def build_short(name, **options):
    """Returns the `ResNet` for `make_short_application`, with random weights.

    For the same arguments it is the same object, with its weights reset.
    """
    model = _build_short(name, **options)
    assign_random(model, seed=9)
    return model


def save_legacy(model, path):
    """Writes the HDF5 format that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
