"""Attention, pooling and kernels against their formulas."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import assert_close, normal, scramble

from resnet_layers import (
    BlurPool2D,
    EfficientChannelAttention,
    PaddedMaxPooling2D,
    StandardizedConv2D,
    Stem,
)


@pytest.mark.parametrize(
    ("channels", "size"), [(8, 3), (64, 3), (256, 5), (512, 5), (2048, 7)]
)
def test_efficient_channel_attention_matches_its_formula(channels, size):
    layer = EfficientChannelAttention()
    inputs = normal(2, 3, 4, channels)
    layer.build(inputs.shape)
    scramble(layer)
    [kernel] = map(np.asarray, layer.weights)
    assert kernel.shape == (size, 1, 1)
    means = np.pad(inputs.mean((1, 2)), [(0, 0), (size // 2, size // 2)])
    mixed = sum(
        means[:, shift : shift + channels] * kernel[shift, 0, 0]
        for shift in range(size)
    )
    scale = 1 / (1 + np.exp(-mixed))
    assert_close(layer(inputs), inputs * scale[:, None, None])


@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
@pytest.mark.parametrize("side", [7, 8])
def test_blur_matches_a_convolution(side, strides):
    layer = BlurPool2D(strides)
    inputs = normal(2, side, side, 3)
    kernel = np.outer([1, 2, 1], [1, 2, 1]).astype("f4") / 16
    padded = np.pad(inputs, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    expected = sum(
        kernel[row, col] * padded[:, row : row + side, col : col + side]
        for row in range(3)
        for col in range(3)
    )
    rows, columns = layer.strides
    outputs = layer(inputs)
    assert_close(outputs, expected[:, ::rows, ::columns])
    assert layer.compute_output_shape(inputs.shape) == outputs.shape


def test_blur_rejects_images_that_are_too_small():
    with pytest.raises(ValueError, match=r"\(None, 1, 4, 3\).*2 x 2"):
        BlurPool2D().build((None, 1, 4, 3))


@pytest.mark.parametrize(
    ("padding", "corner"), [("infinity", -1), ("zeros", 0)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pooling_pads_with_infinity_or_zeros(padding, corner, dtype):
    layer = PaddedMaxPooling2D(padding=padding, dtype=dtype)
    outputs = np.asarray(layer(-tf.ones([1, 6, 6, 1]))).astype("f4")
    assert outputs.shape == (1, 3, 3, 1)
    assert outputs[0, 0, 0, 0] == corner
    assert outputs[0, 1, 1, 0] == -1


@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_edge_padding_gives_the_same_maxima(side, strides):
    inputs = tf.constant(normal(2, side, side, 3) - 2)
    maxima, gradients = [], []
    for padding in ("infinity", "edges"):
        layer = PaddedMaxPooling2D(strides, padding)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
        maxima.append(outputs)
        gradients.append(tape.gradient(outputs, inputs))
    np.testing.assert_array_equal(*maxima)
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(
    ("padding", "options"),
    [
        ("zeros", {}),
        ("zeros", {"kind": "deep", "activation": "relu6"}),
        ("zeros", {"antialias": "blur"}),
        ("infinity", {"activation": "swish"}),
        ("infinity", {"preactivation": True}),
    ],
)
def test_stem_pads_its_pooling_with_zeros_after_a_relu(padding, options):
    inputs = tf.constant(normal(2, 14, 16, 3))
    stem = Stem(8, **options)
    stem.build(inputs.shape)
    # After the ReLU, some windows contain only zeros.
    for norm in stem.bns:
        norm.beta.assign(-norm.gamma)
    assert stem.pools[0].padding == padding
    outputs, gradients = [], []
    for chosen in (padding, "infinity"):
        stem.pools[0].padding = chosen
        with tf.GradientTape() as tape:
            outputs.append(stem(inputs))
            loss = tf.reduce_sum(outputs[-1] ** 2)
        gradients.append(tape.gradient(loss, stem.trainable_variables))
    np.testing.assert_array_equal(*outputs)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)


def test_standardized_kernels_have_mean_0_and_variance_1():
    layer = StandardizedConv2D(4, 3, groups=2)
    inputs = normal(2, 6, 6, 8)
    layer.build(inputs.shape)
    kernel = np.asarray(layer.kernel)
    axes = (0, 1, 2)
    standard = (kernel - kernel.mean(axes)) / kernel.std(axes)
    expected = tf.nn.conv2d(inputs, standard, 1, "SAME")
    assert_close(layer(inputs), expected)
    # Scale and offset of a kernel do not matter.
    layer.kernel.assign(3 * kernel + 5)
    assert_close(layer(inputs), expected, 1e-4)
