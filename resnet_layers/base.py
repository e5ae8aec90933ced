"""Base classes of blocks, stems and models: image inputs, shared options."""

import tensorflow as tf
from keras.src.backend.common import global_state

from resnet_layers.arguments import boolean, create_layer, one_of
from resnet_layers.convolutions import (
    HE_INITIALIZER,
    PaddedConv2D,
    StandardizedConv2D,
)
from resnet_layers.normalization import NORMS
from resnet_layers.pooling import ANTIALIASES
from resnet_layers.serialization import FrozenConfigMixin, constructor_arguments

SHAPES = {"compute_output_shape", "compute_output_spec"}
# Methods that the symbolic shape depends on, and a subclass may override.
CALLS = {"call", "embed", "features"}


class ImageLayer(FrozenConfigMixin):
    """Base class of layers that accept images only.

    Inputs are [batch, height, width, channels]. A subclass implements
    `build_layers`, which runs once; a second `build` changes nothing. List
    this class before the Keras class:

        class Block(ImageLayer, tf.keras.Model):
    """

    _channels = None

    def __init_subclass__(cls, **kwargs):
        """Derives output shapes from `call` where a subclass overrides it.

        Otherwise Keras uses the inherited shape methods.
        """
        super().__init_subclass__(**kwargs)
        for parent in cls.__mro__:
            if SHAPES & vars(parent).keys():
                return
            if CALLS & vars(parent).keys():
                cls.compute_output_shape = _output_shape_of_call
                cls.compute_output_spec = tf.keras.Operation.compute_output_spec
                return

    def __call__(self, *args, **kwargs):
        if args and hasattr(args[0], "shape"):
            self._check_images(args[0].shape)
        return super().__call__(*args, **kwargs)

    def build_layers(self, input_shape):
        """Creates and builds the layers that depend on the input shape."""
        raise NotImplementedError

    def build(self, input_shape):
        self._check_images(input_shape)
        if self.built:
            return
        self.build_layers(input_shape)
        self.restore_frozen_layers()
        self._channels = input_shape[-1]

    def _check_images(self, shape):
        shape = tf.TensorShape(shape)
        if self._channels is None:
            fits = shape.rank == 4 and shape[-1] is not None
        else:
            fits = shape.rank == 4 and shape[-1] in (self._channels, None)
        if not fits:
            channels = self._channels or "a known number of"
            raise image_error(self, shape, f"with {channels} channels")


def _output_shape_of_call(self, input_shape):
    # `call` uses layers that `build` creates.
    if not self.built:
        self.build(input_shape)
    inputs = tf.keras.KerasTensor(input_shape, dtype=self.compute_dtype)
    outputs = self.compute_output_spec(inputs)
    return tf.nest.map_structure(lambda output: output.shape, outputs)


class ConvModel(ImageLayer, tf.keras.Model):
    """Base class of blocks, stems and models: convolution and norm options.

    Args:
      norm: normalization layer: "batch" for `BatchNormalization`, "group" for
        Keras's `GroupNormalization` with 32 groups (Wu and He, 2018,
        <https://arxiv.org/abs/1803.08494>), or a layer class. To set
        arguments, pass a dict with one of these as "kind", for example
        `{"kind": "batch", "momentum": 0.99, "synchronized": True}`.
      activation: activation function, as in Keras layers.
      preactivation: whether norm and activation precede each convolution, and
        none follows the sum (ResNet V2, He et al., 2016,
        <https://arxiv.org/abs/1603.05027>).
      antialias: pooling that replaces the stride of 3x3 convolutions and of
        the stem's pooling: "average", "blur" (`BlurPool2D`) or None.
      weight_standardization: whether convolutions are `StandardizedConv2D`.
      use_bias: whether convolutions without a following norm have biases. Only
        models with `preactivation` have such convolutions.
      kernel_initializer: initializer of convolution kernels, as in
        `keras.layers.Conv2D`.
      kernel_regularizer: regularizer of the kernels of convolutions and
        classifier, as in `keras.layers.Conv2D`.
      **kwargs: `name`, `dtype` and the other arguments of `keras.Model`.

    Raises:
      ValueError: an argument is invalid.
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
        self.preactivation = boolean("preactivation", preactivation)
        self.antialias = one_of("antialias", antialias, (None, *ANTIALIASES))
        self.weight_standardization = boolean(
            "weight_standardization", weight_standardization
        )
        self.use_bias = boolean("use_bias", use_bias)
        # Stored as configs: a reused initializer returns the same numbers.
        self.kernel_initializer = tf.keras.initializers.serialize(
            tf.keras.initializers.get(kernel_initializer)
        )
        self.kernel_regularizer = tf.keras.regularizers.serialize(
            tf.keras.regularizers.get(kernel_regularizer)
        )

    @property
    def layer_options(self):
        """Arguments that create another model with the same options."""
        names = constructor_arguments(ConvModel)
        return {name: getattr(self, name) for name in names} | self._inherited

    @property
    def _inherited(self):
        # Keras passes neither the dtype policy nor `trainable` to layers that
        # are created later.
        return {"trainable": self.trainable, "dtype": self.dtype_policy}

    def config_overrides(self):
        return {"activation": tf.keras.activations.serialize(self.activation)}

    def new_conv(self, filters, kernel_size, strides=1, **kwargs):
        """Creates a convolution, by default without bias.

        Args:
          filters: number of output channels.
          kernel_size: height and width of the kernel, odd.
          strides: 1 or 2, or (height, width).
          **kwargs: more arguments of `PaddedConv2D`.
        """
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
        """Creates a normalization layer.

        Args:
          name: name of the layer.
          **kwargs: more arguments of the layer.
        """
        return create_layer(
            "norm", self.norm, NORMS, name=name, **self._inherited, **kwargs
        )

    def new_antialias(self, strides, name):
        """Creates the pooling layer that replaces a stride."""
        pool = ANTIALIASES[self.antialias]
        return pool(strides, name=name, dtype=self.dtype_policy)

    def build_layers(self, input_shape):
        # A symbolic call builds every layer.
        inputs = tf.keras.KerasTensor(input_shape, dtype=self.compute_dtype)
        tf.keras.Operation.compute_output_spec(self, inputs)


def identity(inputs, training=None):
    """Returns the inputs. It takes the place of an absent layer."""
    del training
    return inputs


def resolve_training(training):
    """Resolves None to the `training` argument of the outer call.

    Keras does this in `__call__` only. Methods that user code may call
    directly, such as `super().call(inputs)` and `ResNet.features`, need it:
    an explicit None hides the outer mode from the layers below.

    Args:
      training: True, False, or None if the caller did not pass it.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    if training is None and context is not None:
        return context.get_value("training")
    return training


def image_error(layer, shape, accepted):
    """Returns a ValueError for images of an unsupported shape.

    Args:
      layer: layer that rejects the images.
      shape: shape of the images.
      accepted: accepted shapes, in words.
    """
    return ValueError(
        f"{layer.name}: input shape {shape} is unsupported. Pass images "
        f"[batch, height, width, channels], channels last, {accepted}."
    )
