"""Gradient checkpointing: the same results, and nothing updated twice."""

import numpy as np
import pytest
import tensorflow as tf
from layer_nets import normal
from tensorflow.python.eager import context

from resnet_layers import ResNet
from train_loop.training.strategies import mirrored


def net(width=8, stage_sizes=(1, 2), **options):
    """Returns a net that draws random numbers, and has all kinds of state."""
    model = ResNet(
        stage_sizes=stage_sizes,
        num_classes=3,
        width=width,
        stem="small",
        stochastic_depth=0.5,
        zero_last_gamma=False,
        seed=1,
        **options,
    )
    model.build((None, 8, 8, 3))
    return model


def step_of(model, strategy=None):
    """Returns gradients and state after two calls, as arrays."""
    strategy = strategy or tf.distribute.get_strategy()
    images = normal(4, 8, 8, 3)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    strategy.run(step)
    local = strategy.experimental_local_results
    gradients = [local(part) for part in strategy.run(step)]
    state = [
        local(variable.value) for variable in model.non_trainable_variables
    ]
    return [np.asarray(part) for parts in gradients + state for part in parts]


def assert_remat_changes_nothing(make, strategy=None):
    plain, again = make(), make()
    again.set_weights(plain.get_weights())
    again.remat = True
    for left, right in zip(
        step_of(plain, strategy), step_of(again, strategy), strict=True
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "mixed_bfloat16", "preactivation": True},
        {
            "block": "basic",
            "shortcut": "pooled_projection",
            "norm": "group",
            "width": 32,
        },
    ],
    ids=str,
)
def test_checkpointed_blocks_give_the_same_gradients_and_state(options):
    assert_remat_changes_nothing(lambda: net(**options))


@pytest.mark.slow
@pytest.mark.parametrize("synchronized", [False, True])
def test_checkpointed_blocks_give_the_same_on_replicas(synchronized):
    strategy = mirrored()
    norm = {"kind": "batch", "synchronized": synchronized}
    with strategy.scope():
        assert_remat_changes_nothing(
            lambda: net(norm=norm, stage_sizes=(2,)), strategy
        )


@pytest.mark.slow
def test_frozen_blocks_stay_as_they_are_when_checkpointed():
    def frozen():
        model = net()
        model.freeze("stage1")
        return model

    assert_remat_changes_nothing(frozen)


@pytest.mark.slow
def test_checkpointed_blocks_run_again():
    def num_convolutions(remat):
        model = net()
        model.remat = remat

        @tf.function
        def gradients(images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(images, training=True))
            return tape.gradient(loss, model.trainable_variables)

        # What TensorFlow leaves of the graph: it finds calls that are equal.
        context.enable_run_metadata()
        gradients(normal(4, 8, 8, 3))
        graphs = context.export_run_metadata().function_graphs
        context.disable_run_metadata()
        return sum(
            node.op.endswith("Conv2D")
            for graph in graphs
            for node in graph.post_optimization_graph.node
        )

    # Three in each of three blocks but the last, and two in shortcuts.
    assert num_convolutions(remat=True) == num_convolutions(remat=False) + 8


def test_net_for_inference_is_not_checkpointed():
    model = net()
    images = tf.constant(normal(4, 8, 8, 3))
    expected = model(images, training=False)
    model.remat = True
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=False)
    np.testing.assert_array_equal(logits, expected)
    assert tape.gradient(logits, images) is not None


def test_checkpointing_is_in_no_config():
    model = net()
    config = model.get_config()
    model.remat = True
    assert model.get_config() == config
