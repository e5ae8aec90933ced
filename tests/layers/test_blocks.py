"""Blocks: shapes, shortcuts, strides and initial values."""

import random
import re

import h5py
import numpy as np
import pytest
import tensorflow as tf
from small_models import assert_close, normal

from resnet_layers import (
    BasicBlock,
    BottleneckBlock,
    PaddedConv2D,
    SqueezeExcitation,
    StochasticDepth,
)

BLOCKS = [BasicBlock, BottleneckBlock]


@pytest.mark.parametrize("block_class", BLOCKS)
def test_block_starts_as_identity(block_class, images):
    block = block_class(filters=8)
    inputs = tf.nn.relu(np.tile(images, 11)[..., : block.out_channels])
    np.testing.assert_array_equal(block(inputs, training=True), inputs)
    assert not block.projects


@pytest.mark.parametrize("block_class", BLOCKS)
def test_block_without_zero_gamma_is_not_the_identity(block_class, images):
    block = block_class(filters=8, zero_last_gamma=False)
    inputs = tf.nn.relu(np.tile(images, 11)[..., : block.out_channels])
    difference = tf.abs(block(inputs, training=True) - inputs)
    assert float(tf.reduce_max(difference)) > 0.1


@pytest.mark.parametrize("block_class", BLOCKS)
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("side", [8, 7])
def test_shortcut_is_projected_where_shapes_differ(block_class, strides, side):
    block = block_class(filters=4, strides=strides)
    inputs = normal(2, side, side, 3)
    outputs = block(inputs)
    expected = (2, -(-side // strides), -(-side // strides), block.out_channels)
    assert outputs.shape == expected
    assert block.compute_output_shape(inputs.shape) == expected
    assert block(tf.keras.Input(inputs.shape[1:])).shape == (
        None,
        *expected[1:],
    )
    assert block.projects


def test_stride_site_moves_the_stride():
    later = BottleneckBlock(4, strides=2)
    first = BottleneckBlock(4, strides=2, stride_site="1x1")
    assert (later.conv1.strides, later.conv2.strides) == ((1, 1), (2, 2))
    assert (first.conv1.strides, first.conv2.strides) == ((2, 2), (1, 1))
    for block in (later, first):
        assert block(tf.zeros([1, 8, 8, 3])).shape == (1, 4, 4, 16)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("side", [8, 9])
def test_strided_convolution_pads_symmetrically(kernel_size, side):
    layer = PaddedConv2D(5, kernel_size, strides=2)
    inputs = np.random.default_rng(0).normal(size=(1, side, side, 2))
    outputs = layer(inputs.astype("float32"))
    margin = (kernel_size - 1) // 2
    padded = np.pad(inputs, [(0, 0), (margin,) * 2, (margin,) * 2, (0, 0)])
    rows = range(0, side + 2 * margin - kernel_size + 1, 2)
    kernel = np.asarray(layer.kernel)
    expected = np.array(
        [
            [
                np.einsum(
                    "ijc,ijcf->f",
                    padded[0, row : row + kernel_size, col : col + kernel_size],
                    kernel,
                )
                for col in rows
            ]
            for row in rows
        ]
    )
    assert_close(outputs[0], expected)
    assert layer.compute_output_shape(inputs.shape) == outputs.shape


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: BasicBlock(4, stride_site="1x1"), "'stride_site': '1x1'"),
        (
            lambda: BottleneckBlock(4, base_width=8),
            "filters=4, base_width=8, first",
        ),
        (lambda: BasicBlock(4, strides=2, dilation=3), "(2, 2) and dilation"),
    ],
)
def test_incompatible_arguments_are_reported(make, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        make()


@pytest.mark.parametrize("block_class", BLOCKS)
def test_gradient_reaches_every_weight(block_class, images):
    block = block_class(filters=4, strides=2, zero_last_gamma=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(images, training=True) ** 2)
    gradients = tape.gradient(loss, block.trainable_variables)
    sizes = [float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients]
    # Neither zero nor only rounding.
    assert min(sizes) > 1e-5 * max(sizes)


def test_zero_padding_shortcut_has_no_weights():
    block = BasicBlock(6, strides=2, shortcut="zero_padding")
    inputs = tf.nn.relu(normal(2, 8, 8, 3))
    outputs = block(inputs, training=True).numpy()
    assert not block.projects
    # With a zero last gamma, the output is the shortcut alone.
    np.testing.assert_array_equal(outputs[..., 1:4], inputs[:, ::2, ::2])
    assert not np.any(outputs[..., [0, 4, 5]])


@pytest.mark.parametrize("block_class", BLOCKS)
def test_zero_padding_cannot_remove_channels(block_class):
    block = block_class(2, shortcut="zero_padding")
    channels = block.out_channels + 1
    with pytest.raises(ValueError, match="zero_padding.*at most ") as error:
        block.build((None, 8, 8, channels))
    assert f"(None, 8, 8, {channels})" in str(error.value)
    block.build((None, 8, 8, channels - 1))


@pytest.mark.parametrize("side", [8, 7])
def test_pooled_projection_averages_what_the_stride_skips(side):
    block = BasicBlock(4, strides=2, shortcut="pooled_projection")
    inputs = np.random.default_rng(0).normal(size=(1, side, side, 3))
    outputs = block(inputs.astype("f4"), training=False).numpy()
    pooled = np.array(
        [
            [
                inputs[0, row : row + 2, col : col + 2].mean((0, 1))
                for col in range(0, side, 2)
            ]
            for row in range(0, side, 2)
        ]
    )
    kernel = np.asarray(block.projection_conv.kernel)[0, 0]
    expected = np.maximum(pooled @ kernel / np.sqrt(1 + 1e-5), 0)
    assert_close(outputs[0], expected)


@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_pooled_projection_pools_where_dilation_replaces_the_stride(dilation):
    block = BasicBlock(
        4,
        dilation=2 * dilation,
        first_dilation=dilation,
        shortcut="pooled_projection",
    )
    inputs = np.random.default_rng(0).normal(size=(1, 7, 6, 3))
    outputs = block(inputs.astype("f4"), training=False).numpy()
    pooled = np.array(
        [
            [
                inputs[
                    0,
                    row : row + dilation + 1 : dilation,
                    col : col + dilation + 1 : dilation,
                ].mean((0, 1))
                for col in range(6)
            ]
            for row in range(7)
        ]
    )
    kernel = np.asarray(block.projection_conv.kernel)[0, 0]
    expected = np.maximum(pooled @ kernel / np.sqrt(1 + 1e-5), 0)
    assert_close(outputs[0], expected)


def test_groups_are_independent():
    block = BottleneckBlock(64, groups=4, base_width=16)
    inputs = np.random.default_rng(0).normal(size=(1, 5, 5, 64)).astype("f4")
    block.conv2.build(inputs.shape)
    outputs = block.conv2(inputs).numpy()
    assert block.conv2.kernel.shape == (3, 3, 16, 64)
    inputs[..., 16:32] += 1
    changed = np.any(block.conv2(inputs).numpy() != outputs, axis=(0, 1, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), range(16, 32))


@pytest.mark.parametrize("strides", [1, 2])
def test_groups_match_separate_convolutions(strides):
    layer = PaddedConv2D(24, 3, strides, groups=4)
    inputs = tf.constant(normal(2, 9, 9, 16))
    layer.build(inputs.shape)
    kernel = tf.convert_to_tensor(layer.kernel)

    def separate(inputs):
        margins = [[0, 0], [1, 1], [1, 1], [0, 0]]
        return tf.concat(
            [
                tf.nn.conv2d(tf.pad(part, margins), weights, strides, "VALID")
                for part, weights in zip(
                    tf.split(inputs, 4, -1),
                    tf.split(kernel, 4, -1),
                    strict=True,
                )
            ],
            -1,
        )

    results = []
    for function, weights in ((layer, layer.kernel.value), (separate, kernel)):
        with tf.GradientTape() as tape:
            tape.watch([inputs, weights])
            outputs = function(inputs)
            loss = tf.reduce_sum(tf.sin(outputs))
        results.append([outputs, *tape.gradient(loss, [inputs, weights])])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected)


def test_preactivation_shortcut_is_the_identity():
    block = BottleneckBlock(4, strides=2, preactivation=True)
    inputs = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype("f4")
    block.build(inputs.shape)
    block.conv3.kernel.assign(tf.zeros_like(block.conv3.kernel))
    np.testing.assert_array_equal(block(inputs), inputs[:, ::2, ::2])
    assert block.conv3.use_bias
    assert not BottleneckBlock(
        4, preactivation=True, use_bias=False
    ).conv3.use_bias


def test_squeeze_excitation_matches_its_formula():
    layer = SqueezeExcitation(ratio=1 / 4)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4, 32)).astype("f4")
    outputs = layer(inputs)
    squeeze, squeeze_bias, excite, excite_bias = map(np.asarray, layer.weights)
    assert squeeze.shape == (32, 8)
    hidden = np.maximum(inputs.mean((1, 2)) @ squeeze + squeeze_bias, 0)
    scale = 1 / (1 + np.exp(-(hidden @ excite + excite_bias)))
    expected = inputs * scale[:, None, None]
    assert_close(outputs, expected)


def test_stochastic_depth_drops_examples_and_keeps_the_mean():
    layer = StochasticDepth(0.25, seed=3)
    inputs = tf.ones([4000, 2, 2, 1])
    outputs = layer(inputs, training=True).numpy()
    per_example = outputs.reshape(4000, 4)
    assert set(np.unique(outputs)) == {0.0, np.float32(1 / 0.75)}
    assert np.all(per_example == per_example[:, :1])
    assert outputs.mean() == pytest.approx(1, abs=0.03)
    assert np.any(layer(inputs, training=True) != outputs)
    np.testing.assert_array_equal(layer(inputs, training=False), inputs)


@pytest.mark.parametrize("block_class", [None, *BLOCKS])
@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_stochastic_depth_drops_nothing(block_class, when, images):
    def make(**kwargs):
        if block_class is None:
            return StochasticDepth(0.5, **kwargs)
        return block_class(
            4, stochastic_depth=0.5, zero_last_gamma=False, **kwargs
        )

    layer = make(trainable=when == "after")
    layer.build(images.shape)
    if when == "after":
        layer.trainable = False
    drop = layer if block_class is None else layer.drop
    assert not drop.trainable
    expected = layer(images, training=False)
    np.testing.assert_array_equal(layer(images, training=True), expected)
    assert drop.seed_generator.state.numpy()[1] == 0


def test_stochastic_depth_has_no_weights():
    layer = StochasticDepth(0.5, seed=3)
    layer.build((None, 1))
    assert not layer.weights
    [state] = layer.variables
    np.testing.assert_array_equal(state, [3, 0])


def test_stochastic_depth_loads_files_of_version_0_1_0(tmp_path):
    # There, the counter was a weight.
    inputs = tf.keras.Input([1])
    model = tf.keras.Model(inputs, StochasticDepth(0.5)(inputs))
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        file["layers/stochastic_depth/vars/0"] = np.int64(7)
    model.load_weights(tmp_path / "model.weights.h5")


def test_default_seed_is_drawn_as_in_keras():
    # From Python's generator, which programs seed.
    seeds = []
    for start in (1, 1, 2):
        random.seed(start)
        layer = StochasticDepth(0.5)
        layer.build((None, 1))
        random.seed(start)
        expected = tf.keras.random.SeedGenerator().state
        np.testing.assert_array_equal(layer.variables[0], expected)
        seeds.append(int(expected.numpy()[0]))
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("block_class", BLOCKS)
def test_block_passes_its_seed_to_stochastic_depth(block_class):
    block = block_class(4, stochastic_depth=0.5, seed=3)
    inputs = normal(64, 2, 2, block.out_channels)
    expected = StochasticDepth(0.5, seed=3)(inputs, training=True)
    block.build(inputs.shape)
    np.testing.assert_array_equal(block.drop(inputs, training=True), expected)


def test_stochastic_depth_differs_between_replicas(two_replicas):
    with two_replicas.scope():
        layer = StochasticDepth(0.5, seed=3)
        layer.build([None, 1])

    @tf.function
    def draw():
        return two_replicas.run(lambda: layer(tf.ones([64, 1]), training=True))

    first, second = two_replicas.experimental_local_results(draw())
    assert np.any(first != second)
    again, _ = two_replicas.experimental_local_results(draw())
    assert np.any(first != again)


@pytest.mark.parametrize("block_class", BLOCKS)
@pytest.mark.parametrize("antialias", [None, "average", "blur"])
@pytest.mark.parametrize("strides", [(2, 1), (1, 3)])
def test_strides_can_differ_for_height_and_width(
    block_class, antialias, strides
):
    block = block_class(
        4, strides, antialias=antialias, shortcut="pooled_projection"
    )
    inputs = normal(2, 8, 9, 3)
    outputs = block(inputs)
    rows, columns = strides
    expected = (2, 8 // rows, 9 // columns, block.out_channels)
    assert outputs.shape == block.compute_output_shape(inputs.shape) == expected


@pytest.mark.parametrize("block_class", BLOCKS)
def test_options_reach_every_layer(block_class, images):
    block = block_class(
        4,
        strides=2,
        norm={"kind": "group", "groups": 2},
        activation="tanh",
        kernel_initializer=tf.keras.initializers.Constant(0.5),
        kernel_regularizer="l2",
    )
    block.build(images.shape)
    layers = list(block._flatten_layers(recursive=False, include_self=False))
    convs = [layer for layer in layers if isinstance(layer, PaddedConv2D)]
    norms = [
        layer
        for layer in layers
        if isinstance(layer, tf.keras.layers.GroupNormalization)
    ]
    assert len(convs) == len(norms) == (3 if block_class is BasicBlock else 4)
    assert all(np.all(np.asarray(conv.kernel) == 0.5) for conv in convs)
    assert all(norm.groups == 2 and norm.epsilon == 1e-5 for norm in norms)
    assert len(block.losses) == len(convs)
    assert np.min(block(images)) < 0


def test_layers_with_one_initializer_start_differently():
    # Keras draws the seed of an initializer object only once.
    block = BasicBlock(8, kernel_initializer="he_normal")
    block.build((None, 8, 8, 8))
    assert np.any(np.asarray(block.conv1.kernel) != block.conv2.kernel)
