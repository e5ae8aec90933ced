"""Blocks: shapes, shortcuts, strides and starting points."""

import re

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import BasicBlock, BottleneckBlock, PaddedConv2D

BLOCKS = [BasicBlock, BottleneckBlock]


@pytest.mark.parametrize("block_class", BLOCKS)
def test_block_starts_as_identity(block_class, images):
    block = block_class(filters=8)
    inputs = tf.nn.relu(np.tile(images, 11)[..., : block.out_channels])
    np.testing.assert_array_equal(block(inputs, training=True), inputs)
    assert block.projection_conv is None


@pytest.mark.parametrize("block_class", BLOCKS)
def test_block_without_zero_gamma_does_not(block_class, images):
    block = block_class(filters=8, zero_last_gamma=False)
    inputs = tf.nn.relu(np.tile(images, 11)[..., : block.out_channels])
    difference = tf.abs(block(inputs, training=True) - inputs)
    assert float(tf.reduce_max(difference)) > 0.1


@pytest.mark.parametrize("block_class", BLOCKS)
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("side", [8, 7])
def test_shortcut_is_projected_where_shapes_differ(block_class, strides, side):
    block = block_class(filters=4, strides=strides)
    inputs = tf.random.normal([2, side, side, 3])
    outputs = block(inputs)
    expected = (2, -(-side // strides), -(-side // strides), block.out_channels)
    assert outputs.shape == expected
    assert block.compute_output_shape(inputs.shape) == expected
    assert block(tf.keras.Input(inputs.shape[1:])).shape == (
        None,
        *expected[1:],
    )
    assert block.projection_conv is not None


def test_stride_site_moves_the_stride():
    later = BottleneckBlock(4, strides=2)
    first = BottleneckBlock(4, strides=2, stride_site="1x1")
    assert (later.conv1.strides, later.conv2.strides) == ((1, 1), (2, 2))
    assert (first.conv1.strides, first.conv2.strides) == ((2, 2), (1, 1))
    for block in (later, first):
        assert block(tf.zeros([1, 8, 8, 3])).shape == (1, 4, 4, 16)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("side", [8, 9])
def test_strided_convolution_pads_both_sides_alike(kernel_size, side):
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
    np.testing.assert_allclose(outputs[0], expected, atol=1e-5)
    assert layer.compute_output_shape(inputs.shape) == outputs.shape


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: BasicBlock(0), "filters=0"),
        (lambda: BasicBlock(4, strides=3), "strides=3"),
        (lambda: BottleneckBlock(4, stride_site="5x5"), "stride_site='5x5'"),
        (lambda: BasicBlock(4, stride_site="1x1"), "stride_site='1x1'"),
        (lambda: PaddedConv2D(4, 2), "kernel_size=2"),
        (lambda: PaddedConv2D(4, 3, padding="valid"), "padding='valid'"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        make()


@pytest.mark.parametrize("block_class", BLOCKS)
def test_gradient_reaches_every_weight(block_class, images):
    block = block_class(filters=4, strides=2, zero_last_gamma=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(images, training=True) ** 2)
    for gradient in tape.gradient(loss, block.trainable_variables):
        assert float(tf.reduce_max(tf.abs(gradient))) > 0
