"""The style of a net: what all its parts are made with."""

import tensorflow as tf

from resnet_layers.arguments import one_of, own_keywords, true_or_false
from resnet_layers.choices import make
from resnet_layers.convolutions import (
    HE_INITIALIZER,
    PaddedConv2D,
    StandardizedConv2D,
)
from resnet_layers.normalization import NORMS
from resnet_layers.pictures import TakesPictures
from resnet_layers.pooling import ANTIALIASES


class Styled(TakesPictures, tf.keras.Model):
    """A model that makes its layers in one style, which it can hand down.

    Args:
      norm: what normalises: "batch" for `BatchNormalization`, "group" for
        Keras's `GroupNormalization` with 32 groups (Wu and He, 2018,
        https://arxiv.org/abs/1803.08494), the class of another layer, or a
        dict with one of these as "kind" and arguments for it, such as
        `{"kind": "batch", "momentum": 0.99, "synchronized": True}`.
      activation: as in Keras's layers.
      preactivation: norm and activation in front of each convolution, none
        after the sum: He et al., 2016, https://arxiv.org/abs/1603.05027.
      antialias: what pools where a 3x3 convolution or the stem's pooling would
        have taken a stride: "average", "blur" (see `BlurPool2D`) or None.
      weight_standardization: see `StandardizedConv2D`.
      use_bias: biases in the convolutions that no norm follows; only nets with
        `preactivation` have such.
      kernel_initializer: of all convolutions, as in `keras.layers.Conv2D`.
      kernel_regularizer: of all convolutions and of the classifier.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: an argument has none of the values above.
    """

    def __init__(
        self,
        norm="batch",
        activation="relu",
        preactivation=False,
        antialias=None,
        weight_standardization=False,
        use_bias=True,
        kernel_initializer=HE_INITIALIZER,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.norm = norm
        self.activation = tf.keras.activations.get(activation)
        self.preactivation = true_or_false("preactivation", preactivation)
        self.antialias = one_of("antialias", antialias, (None, *ANTIALIASES))
        self.weight_standardization = true_or_false(
            "weight_standardization", weight_standardization
        )
        self.use_bias = true_or_false("use_bias", use_bias)
        # Configs, as one initializer makes the same numbers again and again.
        self.kernel_initializer = tf.keras.initializers.serialize(
            tf.keras.initializers.get(kernel_initializer)
        )
        self.kernel_regularizer = tf.keras.regularizers.serialize(
            tf.keras.regularizers.get(kernel_regularizer)
        )

    @property
    def style(self):
        """The arguments that make another model of the same style."""
        names = own_keywords(Styled)
        return {name: getattr(self, name) for name in names} | self._inherited

    @property
    def _inherited(self):
        # A dtype policy reaches the layers below only when it is passed to
        # them, and so does being frozen, where they are created later.
        return {"trainable": self.trainable, "dtype": self.dtype_policy}

    def arguments_kept_elsewhere(self):
        return {"activation": tf.keras.activations.serialize(self.activation)}

    def new_conv(self, filters, kernel_size, strides=1, **kwargs):
        """Returns a convolution, without bias if nothing else is said."""
        convolution = PaddedConv2D
        if self.weight_standardization:
            convolution = StandardizedConv2D
        return convolution(
            filters,
            kernel_size,
            strides,
            kernel_initializer=self.kernel_initializer,
            kernel_regularizer=self.kernel_regularizer,
            **self._inherited,
            **kwargs,
        )

    def new_norm(self, name, **kwargs):
        """Returns a norm; `kwargs` are for the layer."""
        return make(
            "norm", self.norm, NORMS, name=name, **self._inherited, **kwargs
        )

    def new_antialias(self, strides, name):
        """Returns what pools in place of strides."""
        pool = ANTIALIASES[self.antialias]
        return pool(strides, name=name, dtype=self.dtype_policy)

    def build_layers(self, input_shape):
        # A call on nothing but a shape builds whatever it meets.
        inputs = tf.keras.KerasTensor(input_shape, dtype=self.compute_dtype)
        tf.keras.Operation.compute_output_spec(self, inputs)


def unchanged(inputs, training=None):
    """Stands for a layer that is left out."""
    del training
    return inputs
