"""Pooling layers that Keras lacks, and the shape that a stride leaves."""

import tensorflow as tf

from resnet_layers.arguments import one_of, pair, whole_number
from resnet_layers.serialization import KeepsArguments

PADDINGS = ("infinity", "zeros", "edges")


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class PaddedMaxPooling2D(KeepsArguments, tf.keras.layers.Layer):
    """The maximum over 3x3 pixels, with a pixel of padding on every side.

    Keras's own "same" pads the right and the bottom only.

    Args:
      strides: step between outputs, for both directions or each.
      padding: "infinity", so that what is padded never wins, as in PyTorch;
        "zeros", as in `keras.applications` and BiT; or "edges", the outermost
        pixels again: the same maxima as "infinity", slower, but without a
        number outside the range of the inputs, which quantization to int8
        would take for an activation. After a ReLU all three agree.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Raises:
      ValueError: an argument has none of the values possible.
    """

    def __init__(self, strides=2, padding="infinity", **kwargs):
        super().__init__(**kwargs)
        self.strides = pair("strides", strides)
        self.padding = one_of("padding", padding, PADDINGS)

    def compute_output_shape(self, input_shape):
        return strided_shape(input_shape, self.strides)

    def call(self, inputs):
        """Maps [batch, height, width, channels] to ceil(side / stride)."""
        x = inputs
        if self.padding == "edges":
            # Every runtime has these operations, unlike a symmetric padding.
            x = tf.concat([x[:, :1], x, x[:, -1:]], axis=1)
            x = tf.concat([x[:, :, :1], x, x[:, :, -1:]], axis=2)
        else:
            value = 0 if self.padding == "zeros" else x.dtype.min
            padding = [[0, 0], [1, 1], [1, 1], [0, 0]]
            x = tf.pad(x, padding, constant_values=tf.cast(value, x.dtype))
        return tf.nn.max_pool2d(x, 3, self.strides, "VALID")


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BlurPool2D(KeepsArguments, tf.keras.layers.Layer):
    """The mean over 3x3 pixels with weights of 1, 2, 1 in each direction.

    A stride after it loses no detail that would come back as a pattern.

    Args:
      strides: step between outputs, for both directions or each.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: Zhang, 2019, https://arxiv.org/abs/1904.11486.
    """

    def __init__(self, strides=2, **kwargs):
        super().__init__(**kwargs)
        self.strides = pair("strides", strides)

    def build(self, input_shape):
        if 1 in input_shape[1:3]:
            raise ValueError(
                f"{self.name} mirrors the pixel beside the border, and needs "
                f"pictures of at least 2 x 2. Received: shape={input_shape}"
            )

    def compute_output_shape(self, input_shape):
        return strided_shape(input_shape, self.strides)

    def call(self, inputs):
        """Maps [batch, height, width, channels] to ceil(side / stride)."""
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
class AverageAhead(KeepsArguments, tf.keras.layers.Layer):
    """Averages every pixel with those further down and right.

    It is what 2x2 average pooling makes of the pixels that a stride keeps.
    timm has the same but for the last pixels, which it averages with zeros.

    Args:
      distance: in pixels.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.
    """

    def __init__(self, distance, **kwargs):
        super().__init__(**kwargs)
        self.distance = whole_number("distance", distance)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the same shape."""
        x, distance = inputs, self.distance
        # Pixels at the end have none ahead: they count twice, that is, alone.
        x = (x + tf.concat([x[:, distance:], x[:, -distance:]], 1)) / 2
        ahead = tf.concat([x[:, :, distance:], x[:, :, -distance:]], 2)
        return (x + ahead) / 2


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ZeroPaddedShortcut(KeepsArguments, tf.keras.layers.Layer):
    """Skips pixels, and adds channels of zeros: the paper's option A.

    Args:
      channels: of the output; not fewer than the input's.
      strides: step between the pixels that are kept.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, section 3.3.
    """

    def __init__(self, channels, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.channels = whole_number("channels", channels)
        self.strides = pair("strides", strides)

    def compute_output_shape(self, input_shape):
        return *strided_shape(input_shape, self.strides)[:3], self.channels

    def call(self, inputs):
        """Maps [batch, height, width, channels] to ceil(side / stride)."""
        rows, columns = self.strides
        x = inputs[:, ::rows, ::columns]
        missing = self.channels - x.shape[-1]
        half = missing // 2
        return tf.pad(x, [[0, 0], [0, 0], [0, 0], [half, missing - half]])


def average_pooling(strides, **kwargs):
    """Returns Keras's layer that averages what a stride would step over.

    Pixels at the border are averaged with those only that there are.
    """
    return tf.keras.layers.AveragePooling2D(
        strides,
        strides,
        padding="same",
        # Else it takes what Keras is set to.
        data_format="channels_last",
        **kwargs,
    )


# What pools in place of the stride of a convolution or of a maximum.
ANTIALIASES = {"average": average_pooling, "blur": BlurPool2D}


def strided_shape(input_shape, strides):
    """Returns the shape of images after strides, as "same" padding has it.

    Args:
      input_shape: (batch, height, width, channels).
      strides: for height and width.
    """
    batch, *sides, channels = input_shape
    sides = [
        side if side is None else -(-side // stride)
        for side, stride in zip(sides, strides, strict=True)
    ]
    return batch, *sides, channels
