"""Nets of keras.applications, whole and shortened, and the files of them."""

import h5py
import tensorflow as tf
from keras.src.applications import resnet
from keras.src.legacy.saving import legacy_h5_format
from weight_nets import build, zero_kernels

# Our variant: their net.
APPLICATIONS = {
    "resnet50_keras": "ResNet50",
    "resnet101_keras": "ResNet101",
    "resnet152_keras": "ResNet152",
    "resnet50_v2": "ResNet50V2",
    "resnet101_v2": "ResNet101V2",
    "resnet152_v2": "ResNet152V2",
}


def make_application(name):
    """Returns keras.applications' own net for one of our variants."""
    with zero_kernels():
        return getattr(tf.keras.applications, APPLICATIONS[name])(
            weights=None,
            classes=7,
            classifier_activation=None,
            input_shape=(64, 64, 3),
        )


def make_short_application(name):
    """Returns the first two stages, of two blocks each, and a classifier."""
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


def build_short(name, **options):
    """Returns our net for `make_short_application`."""
    return build(name, **{"stage_sizes": (2, 2), **options})


def save_legacy(model, path):
    """Writes the layout of the files that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
