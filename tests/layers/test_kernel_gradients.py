"""Gradients of kernels: their values, their order, and matrix products."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import normal

from resnet_layers import PaddedConv2D, convolutions


def convolution(**options):
    """Returns a built convolution, and TensorFlow's own equivalent."""
    layer = PaddedConv2D(8, 3, **options)
    layer.build((None, 7, 7, 4))
    rate, strides = layer.dilation_rate, layer.strides

    def plain(inputs):
        if set(strides) != {1}:
            inputs = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
        padding = "SAME" if set(strides) == {1} else "VALID"
        kernel = layer.kernel.value
        return tf.nn.convolution(inputs, kernel, strides, padding, None, rate)

    return layer, plain


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2}, {"groups": 2}, {"dilation_rate": 2}],
    ids=str,
)
def test_gradients_equal_those_of_tensorflow(options):
    layer, plain = convolution(**options)
    inputs = tf.constant(normal(2, 7, 7, 4))

    def gradients_of(call):
        @tf.function
        def first_and_second():
            with tf.GradientTape() as outer:
                outer.watch(inputs)
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    loss = tf.reduce_sum(call(inputs) ** 3)
                first = tape.gradient(loss, [inputs, layer.kernel.value])
                norm = tf.reduce_sum(first[0] ** 2)
            second = outer.gradient(norm, [inputs, layer.kernel.value])
            return *first, *second

        return first_and_second()

    for ours, theirs in zip(
        gradients_of(layer), gradients_of(plain), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_kernel_gradients_run_before_input_gradients():
    layer, _ = convolution()

    @tf.function
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs))
        return tape.gradient(loss, [inputs, layer.kernel.value])

    graph = gradients.get_concrete_function(normal(2, 7, 7, 4)).graph
    [input_gradients] = [
        operation
        for operation in graph.get_operations()
        if operation.type == "Conv2DBackpropInput"
    ]
    waits_for = [operation.type for operation in input_gradients.control_inputs]
    assert waits_for == ["Conv2DBackpropFilter"]


def test_convolution_without_a_tape_is_a_plain_operation():
    layer, _ = convolution()
    call = tf.function(lambda inputs: layer(inputs))
    graph = call.get_concrete_function(normal(2, 7, 7, 4)).graph
    types = {operation.type for operation in graph.get_operations()}
    assert "Conv2D" in types
    assert "IdentityN" not in types


def kernel_and_input_gradients(layer, inputs, sides=None):
    """Returns first- and second-order gradients, and types of operations.

    The graph is for inputs of the given sides, by default their own.
    """
    sides = sides or inputs.shape[1:3]

    @tf.function(autograph=False)
    def gradients(inputs):
        sources = [layer.kernel.value, inputs]
        with tf.GradientTape() as outer:
            outer.watch(sources)
            with tf.GradientTape() as tape:
                tape.watch(sources)
                loss = tf.reduce_sum(tf.sin(layer(inputs)))
            first = tape.gradient(loss, sources)
            norm = sum(tf.reduce_sum(gradient**2) for gradient in first)
        return first, outer.gradient(norm, sources)

    graph = gradients.get_concrete_function(
        tf.TensorSpec([None, *sides, inputs.shape[-1]], inputs.dtype)
    ).graph
    types = [operation.type for operation in graph.get_operations()]
    return tf.nest.flatten(gradients(inputs)), types


KERNELS = [1, 3, (1, 3), (3, 1)]
STRIDES = [1, 2, (2, 1), 3]
SIDES = [(3, 4), (5, 2), (1, 1)]


# All pairs of two of the three parameters.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel_size", "strides", "sides"),
    [
        (kernel_size, strides, SIDES[(row + column) % 3])
        for row, kernel_size in enumerate(KERNELS)
        for column, strides in enumerate(STRIDES)
    ],
)
def test_matrix_products_give_the_same_gradients(kernel_size, strides, sides):
    layer = PaddedConv2D(6, kernel_size, strides, dtype="float64")
    inputs = tf.constant(normal(2, *sides, 90), "float64")
    layer.build(inputs.shape)
    products, types = kernel_and_input_gradients(layer, inputs)
    assert types.count("Conv2DBackpropFilter") <= 1  # Second order.
    assert "MatMul" in types
    layer.kernel_products = False
    convolved, types = kernel_and_input_gradients(layer, inputs)
    assert "MatMul" not in types
    for ours, theirs in zip(products, convolved, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_products_of_1x1_kernels_accept_unknown_sizes():
    layer = PaddedConv2D(6, 1, dtype="float64")
    inputs = tf.constant(normal(2, 3, 4, 5), "float64")
    layer.build(inputs.shape)
    known, _ = kernel_and_input_gradients(layer, inputs)
    unknown, types = kernel_and_input_gradients(layer, inputs, (None, None))
    assert "MatMul" in types
    for ours, theirs in zip(unknown, known, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("kernel_size", "strides"), [(1, 1), (3, 1), (3, 2)])
def test_products_are_as_exact_as_convolutions(kernel_size, strides, dtype):
    layer = PaddedConv2D(16, kernel_size, strides, dtype=dtype)
    inputs = tf.constant(normal(8, 4, 4, 80), dtype)
    layer.build(inputs.shape)

    def gradient_of(layer):
        with tf.GradientTape() as tape:
            outputs = layer(tf.cast(inputs, layer.compute_dtype))
            loss = tf.reduce_sum(tf.sin(tf.cast(outputs, "float64")))
        return tf.cast(tape.gradient(loss, layer.kernel.value), "float64")

    def error():
        return float(tf.norm(gradient_of(layer) - exact) / tf.norm(exact))

    double = PaddedConv2D(16, kernel_size, strides, dtype="float64")
    double.build(inputs.shape)
    double.kernel.assign(tf.cast(layer.kernel, "float64"))
    exact = gradient_of(double)
    error_of_products = error()
    layer.kernel_products = False
    assert 0 < error_of_products <= 1.5 * error()


# The outputs have the height and width that PaddedConv2D computes.
@pytest.mark.parametrize(
    ("inputs", "kernel", "strides", "are_faster"),
    [
        ((32, 56, 56, 64), (1, 1, 64, 256), 1, True),
        ((32, 28, 28, 512), (1, 1, 512, 1024), 2, True),
        ((32, 7, 7, 512), (3, 3, 512, 512), 1, True),
        ((32, 14, 14, 512), (3, 3, 512, 512), 2, True),
        ((32, 28, 28, 256), (3, 3, 256, 256), 2, True),
        ((32, 14, 14, 256), (3, 3, 256, 256), 1, False),
        ((32, 56, 56, 64), (3, 3, 64, 64), 1, False),
        # Grouped, with large kernels, and with unknown sides (which matter
        # not for 1x1 kernels).
        ((32, 7, 7, 512), (1, 1, 64, 512), 1, False),
        ((32, 2, 2, 512), (5, 5, 512, 512), 1, False),
        ((32, None, None, 64), (1, 1, 64, 256), 2, False),
        ((32, None, None, 512), (3, 3, 512, 512), 1, False),
        ((32, None, None, 64), (1, 1, 64, 256), 1, True),
        ((None, 7, 7, 64), (1, 1, 64, 256), 1, True),
    ],
)
def test_products_are_used_where_they_are_faster(
    inputs, kernel, strides, are_faster, monkeypatch
):
    sides = [side and -(-side // strides) for side in inputs[1:3]]
    shapes = (inputs, kernel, (inputs[0], *sides, kernel[3]))
    case = (*map(tf.TensorShape, shapes), (strides, strides))
    assert convolutions.products_are_faster(*case) is are_faster
    devices = [tf.config.LogicalDevice("/device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda: devices)
    assert convolutions.products_are_faster(*case) is False
