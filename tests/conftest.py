"""Every test sees two logical CPUs, so that replicas are real."""

import functools
import gc
import os
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state

from resnet_layers import VARIANTS
from train_loop.strategies import mirrored, split_cpu

split_cpu(2)
tf.random.set_seed(7)


def pytest_collection_finish():
    """Spares the garbage collector what importing has made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    """Gives every test the same random numbers, whatever ran before it.

    Keras takes its initializers' seeds from Python's. TensorFlow's own seed is
    left alone: what is under test draws without state, and setting the seed
    throws away all of TensorFlow's kernels, a quarter of many a test's time.
    """
    random.seed(7)
    np.random.seed(7)


@pytest.fixture(scope="session")
def images():
    """Returns float32 [4, 32, 32, 3] with zero mean and unit variance."""
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("f4")
    images.flags.writeable = False
    return images


@pytest.fixture(scope="session")
def count_parameters():
    """Returns a function: name of a variant -> number of its parameters.

    Each is built once for all tests, and its weights get shapes, but no
    numbers: a tenth of the time, and no memory.
    """

    @functools.cache
    def count(name):
        with tf.keras.StatelessScope(initialize_variables=False):
            model = VARIANTS[name]()
            model.build((None, 224, 224, 3))
        # Else the end of the next scope would give them numbers.
        global_state.set_global_attribute("uninitialized_variables", [])
        return sum(v.shape.num_elements() for v in model.trainable_variables)

    return count


@pytest.fixture(scope="session")
def one_device():
    return tf.distribute.OneDeviceStrategy("/CPU:0")


@pytest.fixture(scope="session")
def two_replicas():
    strategy = mirrored()
    assert strategy.num_replicas_in_sync == 2
    return strategy
