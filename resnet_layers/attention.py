"""Channel attention: what scales the channels at the end of a block."""

import math

import tensorflow as tf

from resnet_layers.arguments import number
from resnet_layers.base import ImageLayer


class ChannelAttention(ImageLayer, tf.keras.layers.Layer):
    """The base of both: a scale from 0 to 1 for every channel.

    A subclass builds its layers in `build_layers` and maps the mean over the
    image, [batch, channels], to numbers of that shape in `weigh`.
    """

    def weigh(self, means):
        """Returns what the sigmoid makes scales of."""
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
    """Scales every channel by the mean of the whole image.

    Args:
      ratio: width of the layer between, as a fraction of the channels, above 0
        and at most 1; rounded to a multiple of 8, as timm does.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: Hu et al., 2017, https://arxiv.org/abs/1709.01507.
    """

    def __init__(self, ratio=1 / 16, **kwargs):
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
    """Scales every channel by what it and its neighbors are on average.

    Args:
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Source: Wang et al., 2019, https://arxiv.org/abs/1910.03151.
    """

    def build_layers(self, input_shape):
        # The paper's equation 12: the nearest odd number, not below 3.
        size = int((math.log2(input_shape[-1]) + 1) / 2)
        self.conv = tf.keras.layers.Conv1D(
            filters=1,
            kernel_size=max(size + 1 - size % 2, 3),
            padding="same",
            # Else it takes what Keras is set to.
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
