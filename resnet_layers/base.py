"""The base of blocks, stems and nets: images in, layers of one kind inside."""

import tensorflow as tf
from keras.src.backend.common import global_state

from resnet_layers.arguments import make, one_of, true_or_false
from resnet_layers.convolutions import (
    HE_INITIALIZER,
    PaddedConv2D,
    StandardizedConv2D,
)
from resnet_layers.normalization import NORMS
from resnet_layers.pooling import ANTIALIASES
from resnet_layers.serialization import KeepsFrozen, own_keywords

SHAPES = {"compute_output_shape", "compute_output_spec"}
# The methods that a symbolic shape must agree with, and a subclass may replace.
CALLS = {"call", "embed", "features"}


class ImageLayer(KeepsFrozen):
    """A layer of images, [batch, height, width, channels]; no other input.

    It is built once, by `build_layers` of a subclass; a second `build` changes
    nothing. It goes in front of the Keras class:

        class Block(ImageLayer, tf.keras.Model):
    """

    _channels = None

    def __init_subclass__(cls, **kwargs):
        """Gives a class that only has another `call` the shapes of that one.

        Keras would take those that the class inherits.
        """
        super().__init_subclass__(**kwargs)
        for parent in cls.__mro__:
            if SHAPES & vars(parent).keys():
                return
            if CALLS & vars(parent).keys():
                cls.compute_output_shape = _shape_of_the_call
                cls.compute_output_spec = tf.keras.Operation.compute_output_spec
                return

    def __call__(self, *args, **kwargs):
        if args and hasattr(args[0], "shape"):
            self._check_images(args[0].shape)
        return super().__call__(*args, **kwargs)

    def build_layers(self, input_shape):
        """Creates and builds what depends on the shape."""
        raise NotImplementedError

    def build(self, input_shape):
        self._check_images(input_shape)
        if self.built:
            return
        self.build_layers(input_shape)
        self.freeze_what_is_built()
        self._channels = input_shape[-1]

    def _check_images(self, shape):
        shape = tf.TensorShape(shape)
        if self._channels is None:
            fits = shape.rank == 4 and shape[-1] is not None
        else:
            fits = shape.rank == 4 and shape[-1] in (self._channels, None)
        if not fits:
            channels = self._channels or "a known number of"
            raise image_error(self, shape, f"of {channels} channels")


def _shape_of_the_call(self, input_shape):
    # The call uses layers that `build` makes.
    if not self.built:
        self.build(input_shape)
    inputs = tf.keras.KerasTensor(input_shape, dtype=self.compute_dtype)
    outputs = self.compute_output_spec(inputs)
    return tf.nest.map_structure(lambda output: output.shape, outputs)


class ConvModel(ImageLayer, tf.keras.Model):
    """A model whose convolutions and norms have the same options.

    Args:
      norm: what normalizes: "batch" for `BatchNormalization`, "group" for
        Keras's `GroupNormalization` with 32 groups (Wu and He, 2018,
        https://arxiv.org/abs/1803.08494), the class of another layer, or a
        dict with one of these as "kind" and arguments for it, such as
        `{"kind": "batch", "momentum": 0.99, "synchronized": True}`.
      activation: as in Keras's layers.
      preactivation: norm and activation in front of each convolution, none
        after the sum: He et al., 2016, https://arxiv.org/abs/1603.05027.
      antialias: what pools in place of the stride of a 3x3 convolution or of
        the stem's pooling: "average", "blur" (see `BlurPool2D`) or None.
      weight_standardization: see `StandardizedConv2D`.
      use_bias: biases in the convolutions without a norm behind them; only nets
        with `preactivation` have such.
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
    def layer_options(self):
        """The arguments that make another model with the same options."""
        names = own_keywords(ConvModel)
        return {name: getattr(self, name) for name in names} | self._inherited

    @property
    def _inherited(self):
        # A dtype policy reaches the layers below only when it is passed to
        # them, and so does being frozen, where they are created later.
        return {"trainable": self.trainable, "dtype": self.dtype_policy}

    def arguments_kept_elsewhere(self):
        return {"activation": tf.keras.activations.serialize(self.activation)}

    def new_conv(self, filters, kernel_size, strides=1, **kwargs):
        """Returns a convolution, by default without bias."""
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
        # A call with nothing but a shape builds every layer in it.
        inputs = tf.keras.KerasTensor(input_shape, dtype=self.compute_dtype)
        tf.keras.Operation.compute_output_spec(self, inputs)


def identity(inputs, training=None):
    """Stands for a layer that is absent."""
    del training
    return inputs


def resolve_training(training):
    """Returns a `training` argument, that of the outer call in place of None.

    Keras does it in `__call__`. It is for methods that a user's layer may call
    directly, such as `super().call(inputs)` and `ResNet.features`: an explicit
    None would hide the outer mode from every layer below.

    Args:
      training: true, false, or None where the caller did not say.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    if training is None and context is not None:
        return context.get_value("training")
    return training


def image_error(layer, shape, accepted):
    """Returns a ValueError for images of a wrong shape.

    Args:
      layer: that rejects them.
      shape: theirs.
      accepted: what it would have accepted.
    """
    return ValueError(
        f"{layer.name} takes pictures [batch, height, width, channels], "
        f"channels last, {accepted}. Received: shape={shape}"
    )
