"""Convolutions that pad both sides alike."""

import tensorflow as tf
from tensorflow.python.eager import record

from resnet_layers.arguments import one_of, pair, true_or_false, whole_number
from resnet_layers.configs import KeepsArguments
from resnet_layers.kernel_gradients import convolve

# He et al., "Delving Deep into Rectifiers", 2015,
# https://arxiv.org/abs/1502.01852, with the fan-out that torchvision and timm
# take: the variance of the gradients stays the same from layer to layer.
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
    """A convolution without bias that pads both sides of a picture alike.

    With stride 2, Keras's own "same" padding puts its zeros on the right and
    at the bottom only, and weights trained elsewhere see their pictures
    shifted by a pixel. Here `(kernel_size - 1) // 2` zeros go on every side,
    as in PyTorch. Output shapes are those of "same".

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

    The kernel of every output channel is standardised on its own. The
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
