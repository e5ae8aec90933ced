"""Convolutions with symmetric padding, and their gradients."""

from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from resnet_layers.arguments import (
    IntOrPair,
    boolean,
    integer,
    integer_pair,
    one_of,
)
from resnet_layers.serialization import ConfigMixin

# Largest kernel whose gradients may be matrix products.
MAX_KERNEL_POSITIONS = 9
# He et al., "Delving Deep into Rectifiers", 2015,
# https://arxiv.org/abs/1502.01852. The fan-out, as in torchvision and timm,
# keeps the variance of the gradients constant from layer to layer.
HE_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {
        "scale": 2.0,
        "mode": "fan_out",
        "distribution": "untruncated_normal",
    },
}


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class PaddedConv2D(ConfigMixin, tf.keras.layers.Conv2D):
    """2-D convolution with symmetric padding, by default without bias.

    With stride 2, Keras's "same" padding adds zeros at the right and the
    bottom only, which shifts images by a pixel for third-party weights. This
    layer adds `(kernel_size - 1) // 2` zeros on every side, as in PyTorch. It
    maps [batch, height, width, channels] to
    [batch, ceil(height / strides), ceil(width / strides), filters], in the
    compute dtype.

    Args:
      filters: number of output channels.
      kernel_size: height and width of the kernel, odd; or (height, width).
      strides: stride along both axes, or (height, width).
      padding: "same".
      data_format: "channels_last", whatever Keras's global setting is.
      dilation_rate: dilation rate along both axes, or (height, width).
      groups: number of groups.
      use_bias: whether the layer adds a bias.
      kernel_initializer: He initialization with fan-out by default (He et al.,
        2015, <https://arxiv.org/abs/1502.01852>).
      **kwargs: the other arguments of `keras.layers.Conv2D`.

    Attributes:
      kernel_products: whether matrix products may replace slower convolutions
        in the gradients of the kernel. Results differ by rounding only. Not
        saved in the config.

    Raises:
      ValueError: an argument is invalid, for example an even `kernel_size` or
        channels first.

    Example:
      ```python
      x = PaddedConv2D(filters=64, kernel_size=7, strides=2)(images)
      ```
        another value that is not possible.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: IntOrPair,
        strides: IntOrPair = 1,
        padding: str = "same",
        data_format: str = "channels_last",
        dilation_rate: IntOrPair = 1,
        groups: int = 1,
        use_bias: bool = False,
        kernel_initializer: Any = HE_INITIALIZER,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            integer("filters", filters),
            integer_pair("kernel_size", kernel_size),
            strides=integer_pair("strides", strides),
            padding=one_of("padding", padding, ("same",)),
            data_format=one_of("data_format", data_format, ("channels_last",)),
            dilation_rate=integer_pair("dilation_rate", dilation_rate),
            groups=integer("groups", groups),
            use_bias=boolean("use_bias", use_bias),
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                f"kernel_size={kernel_size!r}: must be odd. Use 1, 3, 5 or 7."
            )
        self.kernel_products = True

    def convolution_op(self, inputs, kernel):
        # Keras compiles grouped convolutions on CPUs with XLA, which fails on
        # two replicas and is no longer needed.
        padding = "SAME"
        if set(self.strides) != {1}:
            padding = "VALID"
            height, width = [(size - 1) // 2 for size in self.kernel_size]
            inputs = tf.pad(
                inputs, [[0, 0], [height, height], [width, width], [0, 0]]
            )
        # Without a tape, for example in an export, use a plain convolution.
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
    """2-D convolution with weight standardization.

    Each call standardizes the kernel of every output channel to mean 0 and
    variance 1. Arguments and shapes are those of `PaddedConv2D`.

    Source: Qiao et al., 2019, <https://arxiv.org/abs/1903.10520>; as in BiT,
    Kolesnikov et al., 2019, <https://arxiv.org/abs/1912.11370>.
    """

    def convolution_op(self, inputs, kernel):
        weights = tf.cast(kernel, self.variable_dtype)
        mean, variance = tf.nn.moments(weights, [0, 1, 2])
        # BiT's epsilon. TensorFlow's `rsqrt` is not exact to the last digits.
        weights = (weights - mean) / tf.sqrt(variance + 1e-8)
        return super().convolution_op(inputs, tf.cast(weights, inputs.dtype))


def convolve(inputs, kernel, strides, padding, products=True):
    """Convolves, and computes kernel gradients before input gradients.

    TensorFlow runs them in any order. While kernel gradients wait, so do the
    tensors that they need: a seventh of the memory of training.

    Args:
      inputs: float tensor [batch, height, width, channels].
      kernel: tensor [height, width, channels / groups, filters] in the dtype
        of the inputs, with odd height and width.
      strides: (height, width).
      padding: "SAME" (only with strides of 1) or "VALID".
      products: whether kernel gradients may be matrix products, where
        `products_are_faster`.

    Returns:
      Tensor [batch, height, width, filters].
    """
    inputs, kernel = map(tf.convert_to_tensor, (inputs, kernel))
    steps, sizes = [1, *strides, 1], tf.shape(inputs)

    @tf.custom_gradient
    def convolve_once(inputs, kernel):
        def gradients(upstream):
            if products and products_are_faster(
                inputs.shape, kernel.shape, upstream.shape, strides
            ):
                kernel_gradients = _matmul_kernel_gradients(
                    inputs, upstream, kernel.shape, strides, padding
                )
            else:
                kernel_gradients = tf.raw_ops.Conv2DBackpropFilter(
                    input=inputs,
                    filter_sizes=tf.shape(kernel),
                    out_backprop=upstream,
                    strides=steps,
                    padding=padding,
                )
            with tf.control_dependencies([kernel_gradients]):
                input_gradients = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=sizes,
                    filter=kernel,
                    out_backprop=upstream,
                    strides=steps,
                    padding=padding,
                )
            return input_gradients, kernel_gradients

        return tf.nn.conv2d(inputs, kernel, steps, padding), gradients

    return convolve_once(inputs, kernel)


def products_are_faster(inputs, kernel, outputs, strides):
    """Returns whether matrix products compute kernel gradients faster.

    On CPUs they do; how much depends on the CPU (`python -m
    benchmarks.kernel_gradients`). A 1x1 kernel needs one product. A 3x3 kernel
    needs nine, which pay off where the feature map is small compared with its
    number of channels.

    Args:
      inputs: static shape of the convolution's inputs.
      kernel: static shape of its kernel.
      outputs: static shape of its outputs.
      strides: (height, width).
    """
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if not devices <= {"CPU"} or not can_be_products(inputs, kernel, strides):
        return False
    height, width, channels, _ = kernel
    if height * width == 1:
        return True
    height, width = outputs[1:3]
    return 4 * height * width // (strides[0] * strides[1]) < channels


def can_be_products(inputs, kernel, strides):
    """Returns whether kernel gradients can be a few matrix products.

    Grouped and large kernels are excluded. So are unknown heights and widths
    where they matter.

    Args:
      inputs: static shape of the convolution's inputs.
      kernel: static shape of its kernel.
      strides: (height, width).
    """
    height, width, channels, _ = kernel
    return (
        channels == inputs[3]
        and height * width <= MAX_KERNEL_POSITIONS
        and (_is_pointwise(kernel[:2], strides) or None not in inputs[1:3])
    )


def _is_pointwise(kernel_sides, strides):
    """Returns whether each output depends on a single input pixel."""
    return {*kernel_sides, *strides} == {1}


def _matmul_kernel_gradients(inputs, upstream, kernel_shape, strides, padding):
    """Computes kernel gradients, one matrix product for each position.

    Args:
      inputs: tensor [batch, height, width, channels].
      upstream: gradients of the outputs, [batch, height, width, filters].
      kernel_shape: static shape of the kernel.
      strides: (height, width).
      padding: "SAME" or "VALID".
    """
    height, width, channels, filters = kernel_shape
    upstream_matrix = tf.reshape(upstream, [-1, filters])
    products = [
        tf.linalg.matmul(
            tf.reshape(pixels, [-1, channels]),
            upstream_matrix,
            transpose_a=True,
        )
        for pixels in _pixels_by_position(
            inputs, upstream.shape[1:3], (height, width), strides, padding
        )
    ]
    return tf.reshape(tf.stack(products), kernel_shape)


def _pixels_by_position(inputs, sides, kernel_sides, strides, padding):
    """Yields the input pixels that each kernel position multiplies.

    Positions come row by row. Strided slices are slow in TensorFlow, so the
    pixels between two strides are moved to axes of their own.

    Args:
      inputs: tensor [batch, height, width, channels].
      sides: (height, width) of the outputs, and of each yielded tensor
        [batch, height, width, channels].
      kernel_sides: (height, width).
      strides: (height, width).
      padding: "SAME" or "VALID".
    """
    if _is_pointwise(kernel_sides, strides):
        yield inputs
        return
    paddings, grid = [[0, 0]], [-1]
    for input_side, side, size, stride in zip(
        inputs.shape[1:3], sides, kernel_sides, strides, strict=True
    ):
        before = (size - 1) // 2 if padding == "SAME" else 0
        steps = max(
            side + (size - 1) // stride, -(-(before + input_side) // stride)
        )
        paddings.append([before, steps * stride - input_side - before])
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
