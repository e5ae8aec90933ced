"""Pooling layers that Keras lacks, and output shapes of strides."""

from typing import Any

import tensorflow as tf

from resnet_layers.arguments import IntOrPair, integer, integer_pair, one_of
from resnet_layers.serialization import ConfigMixin

PADDINGS = ("infinity", "zeros", "edges")


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class PaddedMaxPooling2D(ConfigMixin, tf.keras.layers.Layer):
    """3x3 max pooling with symmetric padding.

    Keras's "same" padding pads the right and the bottom only. This layer pads
    every side by one pixel. It maps [batch, height, width, channels] to
    [batch, ceil(height / strides), ceil(width / strides), channels].

    Args:
      strides: stride along both axes, or (height, width).
      padding: "infinity" (padding never wins, as in PyTorch), "zeros" (as in
        `keras.applications` and BiT) or "edges" (repeats the border pixels).
        "edges" gives the maxima of "infinity", more slowly, but adds no number
        outside the range of the inputs, which int8 quantization would mistake
        for an activation. After a ReLU all three agree.
      **kwargs: `name`, `dtype` and the other arguments of
        `keras.layers.Layer`.

    Raises:
      ValueError: an argument is invalid.
    """

    def __init__(
        self, strides: IntOrPair = 2, padding: str = "infinity", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.strides = integer_pair("strides", strides)
        self.padding = one_of("padding", padding, PADDINGS)

    def compute_output_shape(self, input_shape):
        return strided_shape(input_shape, self.strides)

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the strided shape."""
        x = inputs
        if self.padding == "edges":
            # Every runtime supports these operations, unlike symmetric padding.
            x = tf.concat([x[:, :1], x, x[:, -1:]], axis=1)
            x = tf.concat([x[:, :, :1], x, x[:, :, -1:]], axis=2)
        else:
            value = 0 if self.padding == "zeros" else x.dtype.min
            padding = [[0, 0], [1, 1], [1, 1], [0, 0]]
            x = tf.pad(x, padding, constant_values=tf.cast(value, x.dtype))
        return tf.nn.max_pool2d(x, 3, self.strides, "VALID")


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BlurPool2D(ConfigMixin, tf.keras.layers.Layer):
    """3x3 binomial blur with a stride: anti-aliased downsampling.

    The weights are 1, 2, 1 along each axis, and borders are reflected. The
    blur removes the detail that a stride would alias. The layer maps
    [batch, height, width, channels] to
    [batch, ceil(height / strides), ceil(width / strides), channels].

    Args:
      strides: stride along both axes, or (height, width).
      **kwargs: `name`, `dtype` and the other arguments of
        `keras.layers.Layer`.

    Raises:
      ValueError: `strides` is invalid, or an image is smaller than 2 x 2.

    Source: Zhang, 2019, <https://arxiv.org/abs/1904.11486>.

    Example:
      ```python
      x = BlurPool2D(strides=2)(x)
      model = ResNet(antialias="blur")
      ```
    """

    def __init__(self, strides: IntOrPair = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strides = integer_pair("strides", strides)

    def build(self, input_shape):
        if 1 in input_shape[1:3]:
            raise ValueError(
                f"{self.name}: input shape {input_shape} is unsupported. Pass "
                "images of at least 2 x 2 pixels."
            )

    def compute_output_shape(self, input_shape):
        return strided_shape(input_shape, self.strides)

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the strided shape."""
        rows, columns = self.strides
        x = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
        x = x[:, :-2:rows] + 2 * x[:, 1:-1:rows] + x[:, 2::rows]
        x = (
            x[:, :, :-2:columns]
            + 2 * x[:, :, 1:-1:columns]
            + x[:, :, 2::columns]
        )
        return x / 16


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class AverageAhead(ConfigMixin, tf.keras.layers.Layer):
    """Averages each pixel with those `distance` further down and right.

    The result is that of 2x2 average pooling at the pixels that a stride
    keeps. timm differs at the last pixels only, which it averages with zeros.

    Args:
      distance: distance in pixels.
      **kwargs: `name`, `dtype` and the other arguments of
        `keras.layers.Layer`.
    """

    def __init__(self, distance, **kwargs):
        super().__init__(**kwargs)
        self.distance = integer("distance", distance)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the same shape."""
        x, distance = inputs, self.distance
        # The last pixels have none ahead: the mean is the pixel itself.
        x = (x + tf.concat([x[:, distance:], x[:, -distance:]], 1)) / 2
        ahead = tf.concat([x[:, :, distance:], x[:, :, -distance:]], 2)
        return (x + ahead) / 2


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ZeroPaddedShortcut(ConfigMixin, tf.keras.layers.Layer):
    """Parameter-free shortcut: strides, and zero channels (option A).

    Args:
      channels: number of output channels, at least that of the input.
      strides: stride along both axes, or (height, width).
      **kwargs: `name`, `dtype` and the other arguments of
        `keras.layers.Layer`.

    Source: He et al., 2015, <https://arxiv.org/abs/1512.03385>, section 3.3.
    """

    def __init__(self, channels, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.channels = integer("channels", channels)
        self.strides = integer_pair("strides", strides)

    def compute_output_shape(self, input_shape):
        return *strided_shape(input_shape, self.strides)[:3], self.channels

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the strided shape."""
        rows, columns = self.strides
        x = inputs[:, ::rows, ::columns]
        missing = self.channels - x.shape[-1]
        half = missing // 2
        return tf.pad(x, [[0, 0], [0, 0], [0, 0], [half, missing - half]])


def average_pooling(strides, **kwargs):
    """Creates average pooling over windows of the size of the stride.

    At the border, the mean includes the pixels inside the image only.
    """
    return tf.keras.layers.AveragePooling2D(
        strides,
        strides,
        padding="same",
        # The default is Keras's global setting.
        data_format="channels_last",
        **kwargs,
    )


# Pooling that replaces the stride of a convolution or of max pooling.
ANTIALIASES = {"average": average_pooling, "blur": BlurPool2D}


def strided_shape(input_shape, strides):
    """Returns the output shape of a stride with "same" padding.

    Args:
      input_shape: (batch, height, width, channels).
      strides: (height, width).
    """
    batch, *sides, channels = input_shape
    sides = [
        side if side is None else -(-side // stride)
        for side, stride in zip(sides, strides, strict=True)
    ]
    return batch, *sides, channels
