"""Convolutions that pad both sides alike, and their gradients."""

import tensorflow as tf
from tensorflow.python.eager import record

from resnet_layers.arguments import one_of, pair, true_or_false, whole_number
from resnet_layers.serialization import KeepsArguments

# Sizes of kernels whose gradients may be matrix products.
MOST_PLACES = 9
# He et al., "Delving Deep into Rectifiers", 2015,
# https://arxiv.org/abs/1502.01852, with the fan-out, as in torchvision and
# timm: the variance of the gradients stays the same from layer to layer.
HE_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {
        "scale": 2.0,
        "mode": "fan_out",
        "distribution": "untruncated_normal",
    },
}


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class PaddedConv2D(KeepsArguments, tf.keras.layers.Conv2D):
    """A convolution without bias that pads both sides of an image alike.

    With stride 2, Keras's own "same" padding puts its zeros on the right and
    at the bottom only, and images are shifted by a pixel for weights trained
    elsewhere. Here `(kernel_size - 1) // 2` zeros go on every side, as in
    PyTorch. Output shapes are those of "same".

    Args:
      filters: number of output channels.
      kernel_size: an odd number.
      strides: step between outputs, for both directions.
      data_format: "channels_last", whatever Keras's own setting says.
      **kwargs: `keras.layers.Conv2D`'s other arguments.

    Attributes:
      kernel_products: whether matrix products may take the place of a slower
        convolution in the kernel's gradients, the same but for rounding. It
        stands in no config.

    Raises:
      ValueError: an even kernel size, another padding, channels first, or
        another value that is not possible.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        data_format="channels_last",
        dilation_rate=1,
        groups=1,
        use_bias=False,
        kernel_initializer=HE_INITIALIZER,
        **kwargs,
    ):
        super().__init__(
            whole_number("filters", filters),
            pair("kernel_size", kernel_size),
            strides=pair("strides", strides),
            padding=one_of("padding", padding, ("same",)),
            data_format=one_of("data_format", data_format, ("channels_last",)),
            dilation_rate=pair("dilation_rate", dilation_rate),
            groups=whole_number("groups", groups),
            use_bias=true_or_false("use_bias", use_bias),
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                "`kernel_size` must be odd. "
                f"Received: kernel_size={kernel_size!r}"
            )
        self.kernel_products = True

    def convolution_op(self, inputs, kernel):
        # Not by way of Keras, which compiles convolutions with groups on CPUs
        # with XLA: that fails on two replicas, and is not needed any more.
        padding = "SAME"
        if set(self.strides) != {1}:
            padding = "VALID"
            rows, columns = [(size - 1) // 2 for size in self.kernel_size]
            inputs = tf.pad(
                inputs, [[0, 0], [rows, rows], [columns, columns], [0, 0]]
            )
        # Without a tape, as in an export, it is a plain convolution.
        if (
            self.trainable
            and set(self.dilation_rate) == {1}
            and record.could_possibly_record()
        ):
            return convolve(
                inputs, kernel, self.strides, padding, self.kernel_products
            )
        return tf.nn.convolution(
            inputs,
            kernel,
            strides=self.strides,
            padding=padding,
            dilations=self.dilation_rate,
        )


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class StandardizedConv2D(PaddedConv2D):
    """A convolution whose kernels have mean 0 and variance 1 when it runs.

    The kernel of every output channel is standardized on its own. The
    arguments are those of `PaddedConv2D`.

    Source: Qiao et al., 2019, https://arxiv.org/abs/1903.10520; as in BiT,
    Kolesnikov et al., 2019, https://arxiv.org/abs/1912.11370.
    """

    def convolution_op(self, inputs, kernel):
        weights = tf.cast(kernel, self.variable_dtype)
        mean, variance = tf.nn.moments(weights, [0, 1, 2])
        # BiT's epsilon. TensorFlow's `rsqrt` is not exact to the last digits.
        weights = (weights - mean) / tf.sqrt(variance + 1e-8)
        return super().convolution_op(inputs, tf.cast(weights, inputs.dtype))


def convolve(inputs, kernel, strides, padding, products=True):
    """Convolves, and computes the kernel's gradients before the inputs'.

    TensorFlow takes them in any order. Where kernels wait, so does all that
    their gradients need: a seventh of the memory that training takes.

    Args:
      inputs: float tensor [batch, rows, columns, channels].
      kernel: tensor [height, width, channels / groups, filters], of odd sizes
        and of the inputs' dtype.
      strides: (rows, columns) between outputs.
      padding: "SAME" or "VALID"; "SAME" with strides of 1 alone.
      products: whether the kernel's gradients may be matrix products, where
        `products_are_faster`.

    Returns:
      Tensor [batch, rows, columns, filters].
    """
    inputs, kernel = map(tf.convert_to_tensor, (inputs, kernel))
    steps, sizes = [1, *strides, 1], tf.shape(inputs)

    @tf.custom_gradient
    def convolve_once(inputs, kernel):
        def gradients(upstream):
            if products and products_are_faster(
                inputs.shape, kernel.shape, upstream.shape, strides
            ):
                of_kernel = _by_products(
                    inputs, upstream, kernel.shape, strides, padding
                )
            else:
                of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=inputs,
                    filter_sizes=tf.shape(kernel),
                    out_backprop=upstream,
                    strides=steps,
                    padding=padding,
                )
            with tf.control_dependencies([of_kernel]):
                of_inputs = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=sizes,
                    filter=kernel,
                    out_backprop=upstream,
                    strides=steps,
                    padding=padding,
                )
            return of_inputs, of_kernel

        return tf.nn.conv2d(inputs, kernel, steps, padding), gradients

    return convolve_once(inputs, kernel)


def products_are_faster(inputs, kernel, outputs, strides):
    """Tells whether matrix products compute a kernel's gradients faster.

    On CPUs they do, if not on all and by as much (`python -m
    benchmarks.kernel_gradients`): those of 1x1 kernels are one product, and
    those of 3x3 kernels nine, which pay where the map is small beside its
    channels.

    Args:
      inputs: static shape of the convolution's inputs; so are `kernel` and
        `outputs`.
      strides: (rows, columns) between outputs.
    """
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if not devices <= {"CPU"} or not can_be_products(inputs, kernel, strides):
        return False
    height, width, channels, _ = kernel
    if height * width == 1:
        return True
    rows, columns = outputs[1:3]
    return 4 * rows * columns // (strides[0] * strides[1]) < channels


def can_be_products(inputs, kernel, strides):
    """Tells whether a kernel's gradients can be a few matrix products.

    Those of groups and of large kernels are not, nor those that need
    unknown sides.

    Args:
      inputs: static shape of the convolution's inputs; so is `kernel`.
      strides: (rows, columns) between outputs.
    """
    height, width, channels, _ = kernel
    return (
        channels == inputs[3]
        and height * width <= MOST_PLACES
        and (_is_pointwise(kernel[:2], strides) or None not in inputs[1:3])
    )


def _is_pointwise(kernel_sides, strides):
    """Tells whether each output is made of the pixel in its place."""
    return {*kernel_sides, *strides} == {1}


def _by_products(inputs, upstream, kernel_shape, strides, padding):
    """Returns the gradients of a kernel, a matrix product for each place in it.

    Args:
      inputs: tensor [batch, rows, columns, channels].
      upstream: gradients of the outputs [batch, rows, columns, filters].
      kernel_shape: static shape of the kernel.
      strides: (rows, columns) between outputs.
      padding: "SAME" or "VALID".
    """
    height, width, channels, filters = kernel_shape
    upstream_matrix = tf.reshape(upstream, [-1, filters])
    products = [
        tf.linalg.matmul(
            tf.reshape(seen, [-1, channels]), upstream_matrix, transpose_a=True
        )
        for seen in _seen_by_places(
            inputs, upstream.shape[1:3], (height, width), strides, padding
        )
    ]
    return tf.reshape(tf.stack(products), kernel_shape)


def _seen_by_places(inputs, sides, kernel_sides, strides, padding):
    """Yields what each place in a kernel is multiplied by, row by row.

    Strided slices are slow in TensorFlow: here, the rows and columns between
    two strides lie on axes of their own.

    Args:
      inputs: tensor [batch, rows, columns, channels].
      sides: (rows, columns) of the outputs, each of the tensors' [batch, rows,
        columns, channels] too.
      kernel_sides: (height, width).
      strides: (rows, columns) between outputs.
      padding: "SAME" or "VALID".
    """
    if _is_pointwise(kernel_sides, strides):
        yield inputs
        return
    paddings, grid = [[0, 0]], [-1]
    for given, side, size, stride in zip(
        inputs.shape[1:3], sides, kernel_sides, strides, strict=True
    ):
        before = (size - 1) // 2 if padding == "SAME" else 0
        steps = max(side + (size - 1) // stride, -(-(before + given) // stride))
        paddings.append([before, steps * stride - given - before])
        grid += [steps, stride]
    channels = inputs.shape[3]
    if any(map(any, paddings)):
        inputs = tf.pad(inputs, [*paddings, [0, 0]])
    inputs = tf.reshape(inputs, [*grid[:-1], grid[-1] * channels])
    for row in range(kernel_sides[0]):
        top, skipped = divmod(row, strides[0])
        for column in range(kernel_sides[1]):
            left, offset = divmod(column, strides[1])
            yield inputs[
                :,
                top : top + sides[0],
                skipped,
                left : left + sides[1],
                offset * channels : (offset + 1) * channels,
            ]
