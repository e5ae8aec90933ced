"""Small trainers, batches for them, and their state."""

import random

import numpy as np
import tensorflow as tf

from resnet_layers import BatchNormalization, ResNet
from train_loop.training.optimizers import MomentumSGD
from train_loop.training.trainer import Trainer

BATCH_SIZE = 8
IMAGE_SHAPE = (8, 8, 3)
NUM_CLASSES = 4


def make_model(synchronized=False, dtype=None):
    """Returns a convolution with batch norm, and a classifier."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, 3, strides=2, dtype=dtype),
            BatchNormalization(synchronized=synchronized, dtype=dtype),
            tf.keras.layers.ReLU(dtype=dtype),
            tf.keras.layers.GlobalAveragePooling2D(dtype=dtype),
            tf.keras.layers.Dense(NUM_CLASSES, dtype="float32"),
        ]
    )


def make_model_without_norm():
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(NUM_CLASSES),
        ]
    )


def make_resnet(**options):
    return ResNet("basic", (1,), NUM_CLASSES, width=4, stem="small", **options)


def make_trainer(
    strategy, make=make_model, optimizer=MomentumSGD, rate=0.05, **options
):
    """Returns a trainer, always with the same weights."""
    random.seed(1)
    with strategy.scope():
        model = make()
        model.build((None, *IMAGE_SHAPE))
        optimizer = optimizer(rate)
    for variable in model.variables:
        # Blocks start as the identity, so that their kernels have no gradients.
        if variable.name == "gamma":
            variable.assign(tf.ones_like(variable))
    return Trainer(model, optimizer, strategy, **options)


def make_examples(steps=6):
    """Returns (images, labels), always the same."""
    numbers = np.random.default_rng(2)
    count = steps * BATCH_SIZE
    images = numbers.normal(size=(count, *IMAGE_SHAPE)).astype("float32")
    return images, numbers.integers(0, NUM_CLASSES, count)


def make_batches(strategy, *arrays, check=None):
    """Returns an iterator over distributed batches of examples.

    Args:
      strategy: a `tf.distribute.Strategy`.
      *arrays: of all examples, one row for each; `make_examples` if none.
      check: called with the number of every example as it is read.
    """
    arrays = arrays or make_examples()

    def read(number, *example):
        with tf.control_dependencies([check(number)] if check else []):
            return tf.nest.map_structure(tf.identity, example)

    examples = tf.data.Dataset.from_tensor_slices(arrays).enumerate()
    batches = examples.map(lambda number, example: read(number, *example))
    batches = batches.batch(
        BATCH_SIZE // strategy.num_replicas_in_sync, drop_remainder=True
    ).prefetch(2)
    return iter(
        strategy.distribute_datasets_from_function(lambda context: batches)
    )


def variables_of(trainer):
    return [*trainer.model.variables, *trainer.optimizer.variables]


def state_of(trainer):
    """Returns the values of model and optimizer, on all replicas of each."""
    local_results = trainer.strategy.experimental_local_results
    return [
        [value.numpy() for value in local_results(variable.value)]
        for variable in variables_of(trainer)
    ]


def start_again(trainer, start):
    """Restores a trainer's state and clears its metrics."""
    local_results = trainer.strategy.experimental_local_results
    for variable, values in zip(variables_of(trainer), start, strict=True):
        places = local_results(variable.value)
        for place, value in zip(places, values, strict=True):
            place.assign(value)
    trainer.results("train")


def assert_same(trainer, expected):
    """Compares the state of a trainer bitwise."""
    for variable, values, others in zip(
        variables_of(trainer), state_of(trainer), expected, strict=True
    ):
        np.testing.assert_array_equal(values, others, err_msg=variable.path)
