"""Every test sees two logical CPUs, so that replicas are real."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

from train_loop.strategies import mirrored, split_cpu

split_cpu(2)


@pytest.fixture(autouse=True)
def seed():
    """Gives every test the same random numbers, whatever ran before it."""
    tf.keras.utils.set_random_seed(7)


@pytest.fixture
def images():
    """Returns float32 [4, 32, 32, 3] with zero mean and unit variance."""
    return np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("f4")


@pytest.fixture(scope="session")
def one_device():
    return tf.distribute.OneDeviceStrategy("/CPU:0")


@pytest.fixture(scope="session")
def two_replicas():
    strategy = mirrored()
    assert strategy.num_replicas_in_sync == 2
    return strategy
