"""The small layers that blocks need and Keras lacks."""

import tensorflow as tf

from resnet_layers.arguments import (
    known_keywords,
    number,
    one_of,
    pair,
    true_or_false,
    whole_number,
)
from resnet_layers.configs import KeepsArguments
from resnet_layers.pictures import TakesPictures

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
        known_keywords(type(self), kwargs)
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
        return tf.nn.convolution(
            inputs,
            kernel,
            strides=self.strides,
            padding=padding,
            dilations=self.dilation_rate,
        )


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class SqueezeExcitation(TakesPictures, tf.keras.layers.Layer):
    """Scales every channel by what the whole picture says of it.

    Args:
      ratio: width of the layer between, as a part of the channels, above 0
        and at most 1; rounded to a multiple of 8, as timm does.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: Hu et al., 2017, https://arxiv.org/abs/1709.01507.
    """

    def __init__(self, ratio=1 / 16, **kwargs):
        known_keywords(type(self), kwargs)
        super().__init__(**kwargs)
        self.ratio = number("ratio", ratio, above=0, at_most=1)

    def build_layers(self, input_shape):
        channels = input_shape[-1]
        squeezed = max(8, int(channels * self.ratio + 4) // 8 * 8)
        options = {"trainable": self.trainable, "dtype": self.dtype_policy}
        self.squeeze = tf.keras.layers.Dense(
            squeezed, **options, name="squeeze"
        )
        self.excite = tf.keras.layers.Dense(channels, **options, name="excite")
        self.squeeze.build((input_shape[0], channels))
        self.excite.build((input_shape[0], squeezed))

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs):
        """Maps [batch, height, width, channels] to the same shape."""
        pooled = tf.reduce_mean(tf.cast(inputs, self.variable_dtype), [1, 2])
        scale = self.excite(tf.nn.relu(self.squeeze(pooled)))
        return inputs * tf.nn.sigmoid(scale)[:, tf.newaxis, tf.newaxis]


def stochastic_seed(seed):
    """Returns a seed of stochastic depth as Python's own integer, or None.

    Raises:
      ValueError: it is something else, or needs more than 64 bits.
    """
    return whole_number(
        "seed", seed, optional=True, at_least=-(2**63), below=2**63
    )


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class StochasticDepth(KeepsArguments, tf.keras.layers.Layer):
    """Drops its input for some of the examples of a batch, in training.

    What is kept is scaled up, so that the mean stays. Every example and every
    replica draws for itself; Keras's dropout draws the same on all replicas.
    A frozen layer (`trainable = False`) drops nothing and draws nothing: it
    does what it does in inference, as a frozen batch norm.

    Args:
      rate: probability that an example is dropped, in [0, 1).
      seed: int, or None to draw one.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: Huang et al., 2016, https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, rate, seed=None, **kwargs):
        known_keywords(type(self), kwargs)
        super().__init__(**kwargs)
        self.rate = number("rate", rate, at_least=0, below=1)
        self.seed = stochastic_seed(seed)

    def build(self, input_shape):
        del input_shape
        if self.built:
            return
        # Here rather than in `__init__`: paths, by which checkpoints keep it,
        # then do not depend on what else a process has made.
        self.seed_generator = tf.keras.random.SeedGenerator(
            self.seed, name="seed_generator"
        )
        # Else tf.train.Checkpoint leaves it out.
        self._checkpointed = tf.train.Checkpoint(
            state=self.seed_generator.state
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=None):
        """Maps [batch, ...] to the same shape."""
        if not (training and self.trainable) or self.rate == 0:
            return inputs
        seed = self.seed_generator.next()
        context = tf.distribute.get_replica_context()
        if context is not None:
            replica = context.replica_id_in_sync_group
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        rank = len(inputs.shape)
        shape = [tf.shape(inputs)[0]] + [1] * (rank - 1)
        kept = tf.random.stateless_uniform(shape, seed) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def load_own_variables(self, store):
        """Takes nothing: there are no weights.

        Files of version 0.1.0 hold a counter here.
        """
