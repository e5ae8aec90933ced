"""Nets for tests of weights, what they hold, and the files made of them."""

import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import VARIANTS, ResNet, WeightsError, load_weights


def pictures(side=64):
    random = np.random.default_rng(0)
    return random.normal(size=(2, side, side, 3)).astype("float32")


@contextlib.contextmanager
def zero_kernels():
    """Lets kernels start at zero: to draw them takes half of building a net.

    Those that matter here are overwritten; where not, a zero is no less wrong.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.keras.initializers.VarianceScaling,
            "__call__",
            lambda self, shape, dtype=None: tf.zeros(shape, dtype),
        )
        yield


def randomize(shapes, seed=1):
    """Returns {name: random array}, so that nothing hides behind a zero.

    Of the size that keeps activations near one; variances are positive.
    """
    random = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        # Uniform, of zero mean and unit variance: normal numbers take longer.
        value = random.random(shape, "float32")
        value -= 0.5
        value *= np.sqrt(12)
        if len(shape) > 1:
            fan_in = np.prod(shape) / max(shape[0], shape[-1])
            value /= np.sqrt(fan_in)
        elif "var" in name:
            value = 1 + value / 4
        elif "gamma" in name or name.endswith("weight"):
            value = 0.7 + value / 10
        else:
            value /= 10
        values[name] = value
    return values


def assign_random(model, seed=1):
    shapes = {w.path: tuple(w.shape) for w in model.weights}
    values = randomize(shapes, seed)
    for weight in model.weights:
        weight.assign(values[weight.path])


def build(name, **options):
    with zero_kernels():
        model = VARIANTS[name](**{"num_classes": 7, **options})
        model.build((None, 64, 64, 3))
    return model


@functools.cache
def build_small(seed, **options):
    with zero_kernels():
        model = ResNet(
            **{
                "stage_sizes": (2, 1),
                "width": 8,
                "stem": "small",
                "num_classes": 7,
                **options,
            }
        )
        model.build((None, 16, 16, 3))
    return model


def small(seed=1, **options):
    """Returns a small built model with random weights.

    For the same arguments it is the same one, with the same weights again.
    """
    model = build_small(seed, **options)
    assign_random(model, seed)
    return model


def save_keras(model, folder):
    model.save(folder / "model.keras")
    return folder / "model.keras"


def save_inside_another(model, folder):
    """Writes a model in which the net is one of the layers."""
    inputs = tf.keras.Input([16, 16, 3])
    logits = model(tf.keras.layers.Rescaling(1 / 255)(inputs))
    return save_keras(tf.keras.Model(inputs, logits), folder)


def save_h5_inside_another(model, folder):
    inputs = tf.keras.Input([16, 16, 3])
    return save_weights_h5(tf.keras.Model(inputs, model(inputs)), folder)


def save_weights_h5(model, folder):
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5"


def save_compiled_h5(model, folder):
    """Writes what `ModelCheckpoint` does in `fit`."""
    with zero_kernels():
        copy = ResNet.from_config(model.get_config())
        copy.build((None, 16, 16, 3))
    copy.set_weights(model.get_weights())
    copy.compile("adam", "mse")
    copy.optimizer.build(copy.trainable_variables)
    return save_weights_h5(copy, folder)


def save_run(model, folder, step=9):
    # Here, so that the library's tests need the trainer for these files only.
    from train_loop.training.checkpoints import Checkpoints

    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    Checkpoints(folder / "checkpoints", model, optimizer).save(step)
    return folder


# A way to write for each of the ways in which our own files are read.
READ_APART = (save_keras, save_weights_h5, save_run)
# All ways: a model and a folder -> the path of what is written there.
OWN_WAYS = (
    *READ_APART,
    save_inside_another,
    save_h5_inside_another,
    save_compiled_h5,
)


def assert_same_weights(model, other):
    """Of all but the classifiers."""
    values = {w.path.partition("/")[2]: np.array(w) for w in other.weights}
    for weight in model.weights:
        name = weight.path.partition("/")[2]
        if not name.startswith("head"):
            np.testing.assert_array_equal(weight, values[name], err_msg=name)


def assert_same_logits(logits, expected):
    """At most a ten-thousandth of the spread apart."""
    logits, expected = np.asarray(logits), np.asarray(expected)
    spread = expected.max() - expected.min()
    assert spread > 0.01
    assert np.all(np.isfinite(expected))
    assert np.abs(logits - expected).max() <= 1e-4 * spread


def assert_refused(model, path, expected):
    """In one line, and the model stays as it was."""
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    [line] = str(error.value).splitlines()
    assert str(path) in line
    assert expected in line
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
