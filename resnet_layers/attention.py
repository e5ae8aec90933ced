"""Channel attention: squeeze-and-excitation, efficient channel attention."""

import math
from typing import Any

import tensorflow as tf

from resnet_layers.arguments import number
from resnet_layers.base import ImageLayer


class ChannelAttention(ImageLayer, tf.keras.layers.Layer):
    """Base class of attention layers: scales each channel by a sigmoid.

    A subclass creates its layers in `build_layers`. It maps the channel means,
    [batch, channels], to the logits of the scales, of that shape, in `weigh`.
    """

    def weigh(self, means):
        """Returns the logits of the scales.

        Args:
          means: spatial mean of each channel, [batch, channels].
        """
        raise NotImplementedError

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the same shape."""
        means = tf.reduce_mean(tf.cast(inputs, self.variable_dtype), [1, 2])
        scale = tf.nn.sigmoid(self.weigh(means))
        return inputs * scale[:, tf.newaxis, tf.newaxis]


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class SqueezeExcitation(ChannelAttention):
    """Squeeze-and-excitation: scales channels by a two-layer bottleneck.

    The layer averages each channel over the image, applies a dense layer with
    ReLU, a dense layer with a sigmoid, and multiplies the channels by the
    result. Inputs and outputs are [batch, height, width, channels] in the
    compute dtype.

    Args:
      ratio: width of the hidden layer as a fraction of the channels, above 0
        and at most 1. The width is rounded to a multiple of 8, as in timm.
      **kwargs: `name`, `dtype` and the other arguments of
        `keras.layers.Layer`.

    Raises:
      ValueError: `ratio` is out of range.

    Source: Hu et al., 2017, <https://arxiv.org/abs/1709.01507>.

    Example:
      ```python
      x = SqueezeExcitation(ratio=0.25)(x)
      block = BottleneckBlock(64, attention={"kind": "se", "ratio": 0.25})
      ```
    """

    def __init__(self, ratio: float = 1 / 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ratio = number("ratio", ratio, above=0, at_most=1)

    def build_layers(self, input_shape):
        channels = input_shape[-1]
        squeezed = max(8, int(channels * self.ratio + 4) // 8 * 8)
        options = {"trainable": self.trainable, "dtype": self.dtype_policy}
        self.squeeze = tf.keras.layers.Dense(
            squeezed, "relu", **options, name="squeeze"
        )
        self.excite = tf.keras.layers.Dense(channels, **options, name="excite")
        self.squeeze.build((input_shape[0], channels))
        self.excite.build((input_shape[0], squeezed))

    def weigh(self, means):
        return self.excite(self.squeeze(means))


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class EfficientChannelAttention(ChannelAttention):
    """Efficient channel attention: scales channels by a 1-D convolution.

    The layer averages each channel over the image, convolves the means along
    the channel axis, and multiplies the channels by the sigmoid. The kernel
    size follows from the number of channels. Inputs and outputs are
    [batch, height, width, channels] in the compute dtype. Its arguments are
    those of `keras.layers.Layer`.

    Source: Wang et al., 2019, <https://arxiv.org/abs/1910.03151>.

    Example:
      ```python
      x = EfficientChannelAttention()(x)
      block = BottleneckBlock(64, attention="eca")
      ```
    """

    def build_layers(self, input_shape):
        # Equation 12 of the paper: the nearest odd number, at least 3.
        size = int((math.log2(input_shape[-1]) + 1) / 2)
        self.conv = tf.keras.layers.Conv1D(
            filters=1,
            kernel_size=max(size + 1 - size % 2, 3),
            padding="same",
            # The default is Keras's global setting.
            data_format="channels_last",
            use_bias=False,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name="conv",
        )
        self.conv.build((input_shape[0], input_shape[-1], 1))

    def weigh(self, means):
        return self.conv(means[..., tf.newaxis])[..., 0]


ATTENTIONS = {"se": SqueezeExcitation, "eca": EfficientChannelAttention}
