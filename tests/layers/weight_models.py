"""Models for tests of weights, their random values, and their files."""

import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import VARIANTS, ResNet, WeightsError, load_weights


def random_images(side=64):
    random = np.random.default_rng(0)
    return random.normal(size=(2, side, side, 3)).astype("float32")


@contextlib.contextmanager
def zero_kernels():
    """Initializes kernels to zero: random ones take half the time of building.

    Tests overwrite the kernels that matter.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.keras.initializers.VarianceScaling,
            "__call__",
            lambda self, shape, dtype=None: tf.zeros(shape, dtype),
        )
        yield


def randomize(shapes, seed=1):
    """Returns {name: random array}, without any zeros.

    The scale keeps activations near one. Variances are positive.
    """
    random = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        # Uniform with mean 0 and variance 1: normal numbers take longer.
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

    For the same arguments it is the same object, with its weights reset.
    """
    model = build_small(seed, **options)
    assign_random(model, seed)
    return model


def save_keras(model, folder):
    model.save(folder / "model.keras")
    return folder / "model.keras"


def save_nested_keras(model, folder):
    """Saves a model that contains the `ResNet` as a layer."""
    inputs = tf.keras.Input([16, 16, 3])
    logits = model(tf.keras.layers.Rescaling(1 / 255)(inputs))
    return save_keras(tf.keras.Model(inputs, logits), folder)


def save_nested_h5(model, folder):
    inputs = tf.keras.Input([16, 16, 3])
    return save_weights_h5(tf.keras.Model(inputs, model(inputs)), folder)


def save_weights_h5(model, folder):
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5"


def save_compiled_h5(model, folder):
    """Saves the weights of a compiled model, as `ModelCheckpoint` does."""
    with zero_kernels():
        copy = ResNet.from_config(model.get_config())
        copy.build((None, 16, 16, 3))
    copy.set_weights(model.get_weights())
    copy.compile("adam", "mse")
    copy.optimizer.build(copy.trainable_variables)
    return save_weights_h5(copy, folder)


def save_run(model, folder, step=9):
    # Imported here: no other test of the library needs the trainer.
    from train_loop.training.checkpoints import Checkpoints

    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    Checkpoints(folder / "checkpoints", model, optimizer).save(step)
    return folder


# One format for each reader of this library's files.
OWN_READERS = (save_keras, save_weights_h5, save_run)
# All formats: (model, folder) -> path of the file or run.
OWN_FORMATS = (
    *OWN_READERS,
    save_nested_keras,
    save_nested_h5,
    save_compiled_h5,
)


def assert_same_weights(model, other):
    """Compares all weights but those of the classifiers."""
    values = {w.path.partition("/")[2]: np.array(w) for w in other.weights}
    for weight in model.weights:
        name = weight.path.partition("/")[2]
        if not name.startswith("head"):
            np.testing.assert_array_equal(weight, values[name], err_msg=name)


def assert_same_logits(logits, expected):
    """Compares logits: differences up to 1e-4 of their range."""
    logits, expected = np.asarray(logits), np.asarray(expected)
    value_range = expected.max() - expected.min()
    assert value_range > 0.01
    assert np.all(np.isfinite(expected))
    assert np.abs(logits - expected).max() <= 1e-4 * value_range


def assert_load_fails(model, path, expected):
    """Expects a one-line error, and an unchanged model."""
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    [line] = str(error.value).splitlines()
    assert str(path) in line
    assert expected in line
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
