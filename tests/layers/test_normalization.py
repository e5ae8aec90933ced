"""Batch norm against Keras's layer."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import assert_close

from resnet_layers import BatchNormalization

NEEDS_RENORM = pytest.mark.skipif(
    not hasattr(tf.keras.layers.BatchNormalization(), "renorm"),
    reason="Keras renormalizes from version 3.14 on.",
)


def make_pair(dtype="float32", shape=(None, None, None, 6), **options):
    """Returns our layer and Keras's, with the same random weights."""
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": dtype, **options}
    ours = BatchNormalization(**options)
    theirs = tf.keras.layers.BatchNormalization(**options)
    random = np.random.default_rng(3)
    for layer in (ours, theirs):
        layer.build(shape)
    for weight, other in zip(ours.weights, theirs.weights, strict=True):
        value = random.uniform(0.5, 1.5, weight.shape)
        weight.assign(value)
        other.assign(value)
    return ours, theirs


def make_inputs(shape=(5, 7, 3, 6), dtype="float32"):
    values = np.random.default_rng(4).normal(2.0, 3.0, shape)
    return tf.cast(values, dtype)


def call_with_gradients(layer, inputs, training):
    variables = [inputs, *layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        loss = tf.reduce_sum(tf.sin(tf.cast(outputs, "float32")))
    return outputs, tape.gradient(loss, variables)


def assert_same(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = (tf.cast(tensor, "float32") for tensor in (mine, other))
        assert_close(mine, other, tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"center": False}, {"scale": False}, {"trainable": False}],
    ids=str,
)
def test_fused_kernel_matches_keras(training, options):
    ours, theirs = make_pair(**options)
    inputs = make_inputs()
    assert ours.runs_fused(inputs)
    outputs, gradients = call_with_gradients(ours, inputs, training)
    expected, expected_gradients = call_with_gradients(theirs, inputs, training)
    assert_same([outputs], [expected], 1e-5)
    assert_same(gradients, expected_gradients, 1e-5)
    assert_same(ours.weights, theirs.weights, 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_fused_kernel_agrees_within_bfloat16_rounding(training):
    ours, theirs = make_pair("mixed_bfloat16")
    inputs = make_inputs(dtype="bfloat16")
    assert ours.runs_fused(inputs)
    outputs = ours(inputs, training=training)
    expected = theirs(inputs, training=training)
    assert outputs.dtype == expected.dtype == tf.bfloat16
    assert_same([outputs], [expected], 2**-8)
    assert_same(ours.weights, theirs.weights, 1e-5)


def test_fused_kernel_can_be_disabled():
    ours, theirs = make_pair()
    ours.fused = False
    inputs = make_inputs()
    assert not ours.runs_fused(inputs)
    outputs = ours(inputs, training=True)
    np.testing.assert_array_equal(outputs, theirs(inputs, training=True))
    assert "fused" not in ours.get_config()


def test_moving_statistics_match_numpy():
    layer = BatchNormalization(momentum=0.9)
    inputs = make_inputs()
    layer(inputs, training=True)
    pixels = inputs.numpy().reshape(-1, 6)
    assert_close(layer.moving_mean, 0.1 * pixels.mean(0))
    assert_close(layer.moving_variance, 0.9 + 0.1 * pixels.var(0))


def test_epsilon_is_not_raised():
    layer = BatchNormalization(epsilon=1e-6)
    inputs = 1e-3 * make_inputs()
    values = inputs.numpy()
    expected = (values - values.mean((0, 1, 2))) / np.sqrt(
        values.var((0, 1, 2)) + 1e-6
    )
    assert_close(layer(inputs, training=True), expected, 1e-4)


@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({}, (8, 6), "float32"),
        ({}, (4, 5, 6), "float32"),
        ({"axis": 1}, (4, 6, 5, 3), "float32"),
        ({"synchronized": True}, (4, 5, 3, 6), "float32"),
        ({"dtype": "float64"}, (4, 5, 3, 6), "float64"),
        pytest.param(
            {"renorm": True}, (4, 5, 3, 6), "float32", marks=NEEDS_RENORM
        ),
        ({"dtype": "bfloat16"}, (4, 5, 3, 6), "bfloat16"),
        ({"dtype": "float16"}, (4, 5, 3, 6), "float16"),
    ],
    ids=str,
)
def test_other_inputs_go_through_keras(options, shape, dtype):
    build_shape = (None, *shape[1:])
    ours, theirs = make_pair(shape=build_shape, **options)
    inputs = make_inputs(shape, dtype)
    assert not ours.runs_fused(inputs)
    outputs = ours(inputs, training=True)
    np.testing.assert_array_equal(outputs, theirs(inputs, training=True))
    for weight, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_graph_contains_the_fused_kernel():
    layer = BatchNormalization()
    function = tf.function(lambda x: layer(x, training=True))
    graph = function.get_concrete_function(
        tf.TensorSpec([None, None, None, 6])
    ).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "FusedBatchNormV3" in operations
    assert "SquaredDifference" not in operations
