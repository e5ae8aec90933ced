"""Gradient checkpointing: same results, and no state is updated twice."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import normal
from tensorflow.python.eager import context

from resnet_layers import ResNet
from train_loop.training.strategies import mirrored

# All kinds of state, random numbers included; two blocks are checkpointed.
OPTIONS = {
    "stage_sizes": (1, 2),
    "num_classes": 3,
    "width": 8,
    "stem": "small",
    "stochastic_depth": 0.5,
    "zero_last_gamma": False,
    "seed": 1,
}


def make_model(**options):
    model = ResNet(**{**OPTIONS, **options})
    model.build((None, 8, 8, 3))
    return model


def gradients_and_state(model, strategy=None):
    """Returns gradients and state after two training steps, as arrays."""
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


def assert_results_are_identical(make, strategy=None):
    plain, checkpointed = make(), make()
    checkpointed.set_weights(plain.get_weights())
    checkpointed.gradient_checkpointing = True
    for expected, result in zip(
        gradients_and_state(plain, strategy),
        gradients_and_state(checkpointed, strategy),
        strict=True,
    ):
        np.testing.assert_array_equal(result, expected)


def make_half_frozen_model():
    model = make_model(dtype="mixed_bfloat16", preactivation=True)
    model.freeze("stage1")
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        make_half_frozen_model,
        lambda: make_model(
            block="basic",
            shortcut="pooled_projection",
            norm="group",
            width=32,
            stage_sizes=(2,),
        ),
    ],
    ids=["mixed_bfloat16, half frozen", "group norm"],
)
def test_checkpointed_gradients_and_state_are_identical(make):
    assert_results_are_identical(make)


@pytest.mark.slow
@pytest.mark.parametrize("synchronized", [False, True])
def test_checkpointed_results_are_identical_on_replicas(synchronized):
    strategy = mirrored()
    norm = {"kind": "batch", "synchronized": synchronized}
    with strategy.scope():
        assert_results_are_identical(
            lambda: make_model(norm=norm, stage_sizes=(2,), block="basic"),
            strategy,
        )


@pytest.mark.slow
def test_checkpointed_blocks_run_again():
    def num_convolutions(gradient_checkpointing):
        model = make_model()
        model.gradient_checkpointing = gradient_checkpointing

        @tf.function
        def gradients(images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(images, training=True))
            return tape.gradient(loss, model.trainable_variables)

        # The optimized graph, in which TensorFlow has merged equal calls.
        context.enable_run_metadata()
        gradients(normal(4, 8, 8, 3))
        graphs = context.export_run_metadata().function_graphs
        context.disable_run_metadata()
        return sum(
            node.op.endswith("Conv2D")
            for graph in graphs
            for node in graph.post_optimization_graph.node
        )

    # Three in each of two blocks, and two in shortcuts.
    assert num_convolutions(True) == num_convolutions(False) + 8


def test_inference_is_not_checkpointed():
    model = make_model()
    images = tf.constant(normal(4, 8, 8, 3))
    expected = model(images, training=False)
    model.gradient_checkpointing = True
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=False)
    np.testing.assert_array_equal(logits, expected)
    assert tape.gradient(logits, images) is not None


def test_gradient_checkpointing_is_not_in_the_config():
    model = ResNet(**OPTIONS)
    config = model.get_config()
    model.gradient_checkpointing = True
    assert model.get_config() == config


def test_remat_is_a_deprecated_name(tmp_path, recwarn):
    model = make_model()
    model.save(tmp_path / "model.keras")
    tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    assert not [each for each in recwarn if "remat" in str(each.message)]
    with pytest.warns(DeprecationWarning, match="Use ResNet.gradient_ch"):
        model.remat = True
    assert model.gradient_checkpointing
    with pytest.warns(DeprecationWarning, match="Use ResNet.gradient_ch"):
        assert model.remat
