"""The way of gradients to the weights: summed once, and before all else."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from small_trainers import make_batches, make_trainer

from train_loop.training.optimizers import MomentumSGD
from train_loop.training.update import reduce_and_apply, skip_own_reduction

SGD = tf.keras.optimizers.SGD
AdamW = tf.keras.optimizers.AdamW
OPTIMIZERS = {
    "ours": functools.partial(MomentumSGD, 0.1, l2=0.01),
    "sgd": functools.partial(SGD, 0.1, momentum=0.9),
    "adamw": functools.partial(AdamW, 0.1, weight_decay=0.1),
    "average": functools.partial(SGD, 0.1, use_ema=True, ema_momentum=0.5),
}
CLIPPED = {
    "norm": functools.partial(SGD, 0.1, clipnorm=0.5),
    "global_norm": functools.partial(SGD, 0.1, global_clipnorm=0.5),
    "value": functools.partial(SGD, 0.1, clipvalue=0.5),
}
STEPS = 3


def ours(optimizer, gradients):
    """Returns the norm, and updates as the trainer does."""
    return reduce_and_apply(optimizer, gradients)


def kerass(optimizer, gradients):
    """Updates as Keras does."""
    optimizer.apply(gradients)
    return tf.constant(0.0)


def numbers(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def take_steps(strategy, make, update, scale=1.0):
    """Returns (all variables on all replicas, norms) after some steps.

    The gradients of all replicas together are the same however many there are.
    """
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        variables = [
            tf.Variable(numbers(1, (3, 2))),
            tf.Variable(numbers(2, (2,))),
        ]
        optimizer = make()
        optimizer.build(variables)
    if update is ours:
        skip_own_reduction(optimizer)

    @tf.function
    def step(gradients):
        return strategy.run(
            lambda share: update(
                optimizer, [tf.reduce_sum(part, axis=0) for part in share]
            ),
            args=(gradients,),
        )

    norms = []
    for number in range(STEPS):
        # A row for each of two halves of the batch.
        halves = [
            scale * numbers((number, index), (2, *variable.shape))
            for index, variable in enumerate(variables)
        ]
        gradients = strategy.experimental_distribute_values_from_function(
            lambda context, halves=halves: [
                tf.constant(half)
                if replicas == 1
                else tf.constant(half[context.replica_id_in_sync_group][None])
                for half in halves
            ]
        )
        norms.append(strategy.experimental_local_results(step(gradients)))
    held = [*variables, *(v.value for v in optimizer.variables)]
    values = [
        [value.numpy() for value in strategy.experimental_local_results(v)]
        for v in held
    ]
    return values, np.array(norms)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_updates_are_kerass_own_bit_by_bit(
    one_device, two_replicas, optimizer, replicas
):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    make = OPTIMIZERS[optimizer]
    values, _ = take_steps(strategy, make, ours)
    expected, _ = take_steps(strategy, make, kerass)
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("optimizer", CLIPPED)
def test_clipping_looks_at_the_sum(one_device, two_replicas, optimizer):
    make = CLIPPED[optimizer]
    expected, _ = take_steps(one_device, make, ours)
    values, _ = take_steps(two_replicas, make, ours)
    for value, other in zip(values, expected, strict=True):
        for on_replica in value:
            np.testing.assert_allclose(on_replica, other[0], atol=1e-6)


def test_norm_is_that_of_the_sum(one_device, two_replicas):
    expected = [
        np.sqrt(
            sum(
                np.square(numbers((step, index), (2, *shape)).sum(0)).sum()
                for index, shape in enumerate([(3, 2), (2,)])
            )
        )
        for step in range(STEPS)
    ]
    for strategy in (one_device, two_replicas):
        _, norms = take_steps(strategy, OPTIMIZERS["ours"], ours)
        for of_replica in norms.T:
            np.testing.assert_allclose(of_replica, expected, rtol=1e-5)


def test_one_infinite_gradient_shows_on_all_replicas(two_replicas):
    _, norms = take_steps(two_replicas, OPTIMIZERS["sgd"], ours, np.inf)
    assert not np.isfinite(norms).any()


def test_gradients_cross_the_network_once():
    name = "sum_over_replicas"

    def add(values):
        with tf.name_scope(name):
            return tf.add_n(values)

    # Every sum over the replicas goes through here, whoever asks for it.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(
            accumulation_fn=add
        ),
    )
    trainer = make_trainer(strategy)
    function = trainer.train.get_concrete_function(
        make_batches(strategy), tf.constant(1)
    )
    graph = function.graph.as_graph_def()
    of_functions = [f.node_def for f in graph.library.function]
    sums = [
        node
        for nodes in [graph.node, *of_functions]
        for node in nodes
        if node.op == "AddN" and name in node.name
    ]
    assert len(sums) == len(trainer.model.trainable_variables)
