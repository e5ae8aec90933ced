"""Small models and layers, and helpers of the library's tests."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers import VARIANTS, ResNet


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def small_resnet(**options):
    options = {"stage_sizes": (1, 2), "width": 8, "num_classes": 5, **options}
    return ResNet(**options)


def small_variant(variant, **options):
    """Returns a variant with three blocks in two stages."""
    options = {
        "stage_sizes": (2, 1),
        "num_classes": 5,
        "width": 16,
        **options,
    }
    return VARIANTS[variant](**options)


def scramble(layer, seed=5):
    """Assigns different values to all weights, statistics included.

    Kernels preserve the scale of activations, so that nothing saturates.
    """
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        if len(weight.shape) > 1:
            fan_in = np.prod(weight.shape[:-1])
            value = random.normal(size=weight.shape) / np.sqrt(fan_in)
        else:
            value = random.uniform(0.1, 1.0, weight.shape)
        weight.assign(value)


def unfreeze(layer):
    # Keras ignores an assignment of the current value, for sublayers too.
    layer.trainable = False
    layer.trainable = True


class Shared(NamedTuple):
    """A scrambled layer that no test changes, with its outputs for `images`.

    `model` is a functional model of the layer alone, `symbolic` its output.
    """

    layer: tf.keras.Layer
    model: tf.keras.Model
    symbolic: tf.keras.KerasTensor
    outputs: tf.Tensor


def share(layer, images):
    inputs = tf.keras.Input(images.shape[1:])
    symbolic = layer(inputs)
    model = tf.keras.Model(inputs, symbolic)
    scramble(layer)
    return Shared(layer, model, symbolic, layer(images))


def assert_same_weights(layer, other):
    for mine, theirs in zip(layer.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


def assert_close(values, expected, tolerance=1e-5):
    """Compares relative to the largest value; small ones may be rounding."""
    values, expected = np.asarray(values), np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance * scale)


def has_no_effect(model, variable):
    """Returns whether a batch norm cancels a bias.

    Its gradient is only rounding, zero on one processor and not on another.
    keras.applications has such biases, and so have our variants of its models.
    The bias of the stem has an effect, because its pooling pads with zeros.
    """
    return (
        model.preactivation
        and variable.name == "bias"
        and "_block" in variable.path
        and "conv" in variable.path
    )


def gradients_of_a_class(model, images):
    """Returns (gradients, trainable variables) of a log-likelihood."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = tf.reduce_sum(tf.nn.log_softmax(outputs)[:, 0])
    return tape.gradient(loss, variables), variables
