"""Batch normalization on the fused kernel, and its folding."""

from functools import partial
from typing import Any

import tensorflow as tf

from resnet_layers.arguments import boolean, number
from resnet_layers.convolutions import PaddedConv2D
from resnet_layers.serialization import ConfigMixin

FUSED_DTYPES = ("float32", "bfloat16", "float16")


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BatchNormalization(ConfigMixin, tf.keras.layers.BatchNormalization):
    """Batch normalization on TensorFlow's fused kernel.

    On TensorFlow, Keras 3 computes batch normalization with five operations.
    The fused kernel does it in one pass over the data. Outputs and moving
    statistics match Keras's layer.

    The layer uses the kernel for 4-D channels-last inputs in float32, bfloat16
    or float16, with float32 variables, unless they are masked, synchronized
    over replicas or renormalized. All other inputs go through Keras's code.

    Args:
      momentum: momentum of the moving statistics, from 0 to 1: the weight of
        the old value. 0.9 is PyTorch's momentum of 0.1 and the usual value for
        ResNets; `keras.applications` uses 0.99.
      epsilon: small number added to the variance, at least 0.
      synchronized: whether to compute batch statistics over all replicas.
      **kwargs: the other arguments of `keras.layers.BatchNormalization`.

    Attributes:
      fused: whether to use the fused kernel where possible. Not saved in the
        config.

    Raises:
      ValueError: an argument is invalid.

    Source: Ioffe and Szegedy, 2015, <https://arxiv.org/abs/1502.03167>.

    Example:
      ```python
      x = BatchNormalization()(x)
      model = ResNet(norm={"kind": "batch", "synchronized": True})
      ```
    """

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        synchronized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            momentum=number("momentum", momentum, at_least=0, at_most=1),
            epsilon=number("epsilon", epsilon, at_least=0),
            synchronized=boolean("synchronized", synchronized),
            **kwargs,
        )
        self.fused = True

    def runs_fused(self, inputs: tf.Tensor, mask: Any = None) -> bool:
        """Returns whether a call on `inputs` uses the fused kernel.

        Args:
          inputs: tensor that the layer would normalize.
          mask: mask of the call, or None.
        """
        return (
            self.fused
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and mask is None
            and not self.synchronized
            # Keras has it from version 3.14 on.
            and not getattr(self, "renorm", False)
            and tf.as_dtype(inputs.dtype).name in FUSED_DTYPES
            and self.variable_dtype == "float32"
        )

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs`.

        Args:
          inputs: [batch, height, width, channels], or any shape that Keras's
            layer accepts.
          training: True to normalize with batch statistics and to update the
            moving ones. As in Keras, a layer with `trainable = False` always
            uses the moving statistics.
          mask: as in Keras's layer.

        Returns:
          A tensor of the shape and dtype of `inputs`.
        """
        if not self.runs_fused(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        use_batch_statistics = bool(training and self.trainable)
        # The raw operation: the public wrapper raises epsilon to 1.001e-5, an
        # old cuDNN limit.
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma if self.scale else tf.ones(channels),
            offset=self.beta if self.center else tf.zeros(channels),
            mean=[] if use_batch_statistics else self.moving_mean,
            variance=[] if use_batch_statistics else self.moving_variance,
            epsilon=self.epsilon,
            is_training=use_batch_statistics,
        )
        if use_batch_statistics:
            self._update_moving_statistics(inputs, mean, variance)
        return outputs

    def _update_moving_statistics(self, inputs, mean, variance):
        # A graph has two of these for each layer. Compute constants here, not
        # in the graph.
        count = inputs.shape[:-1].num_elements()
        if count is None:
            count = tf.size(inputs, tf.int64) // inputs.shape[-1]
            count = tf.cast(count, mean.dtype)
        fresh = 1.0 - self.momentum
        for moving, value, weight in (
            (self.moving_mean, mean, fresh),
            # The kernel returns the unbiased variance. Keras stores the biased
            # one.
            (self.moving_variance, variance, fresh * (count - 1) / count),
        ):
            kept = tf.convert_to_tensor(moving) * self.momentum
            moving.assign(kept + value * weight)


NORMS = {
    "batch": BatchNormalization,
    # With 32 groups. The epsilon is that of the other libraries, not Keras's.
    "group": partial(
        tf.keras.layers.GroupNormalization, groups=32, epsilon=1e-5
    ),
}


def fold_batch_norms(model: tf.keras.Model) -> None:
    """Folds batch norms into convolutions for faster inference.

    The scale of a batch norm that follows a convolution moves into the kernel.
    Its offset becomes a bias, which TensorFlow fuses with the convolution and
    the ReLU. Logits change by rounding only. You cannot train the model any
    further: folded norms behave the same in training and in inference.

    Some norms stay as they are: norms in front of a convolution (as in
    pre-activation), norms of custom blocks, and norms without gamma or beta.

    Args:
      model: a built `ResNet`. It is changed in place.

    Example:
      ```python
      model.build((None, 224, 224, 3))
      load_weights(model, "resnet50.safetensors")
      fold_batch_norms(model)
      ```
    """
    for conv, norm in foldable_batch_norms(model):
        factor = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
        # The convolution has no bias of its own: the norm would remove it.
        norm.beta.assign(norm.beta - norm.moving_mean * factor)
        conv.kernel.assign(conv.kernel * factor)
        # The layer stays in the model and adds the offset. Its variables say
        # so too, for a copy or a file.
        norm.gamma.assign(tf.ones_like(norm.gamma))
        norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
        norm.moving_variance.assign(
            tf.ones_like(norm.moving_variance) - norm.epsilon
        )
        norm.call = _adder(norm.beta)


def foldable_batch_norms(model):
    """Yields the foldable (convolution, batch norm) pairs of a `ResNet`."""
    for conv, norm in model.convolutions_with_norms():
        # Standardization would remove a scale of the kernel. Other norms have
        # no moving statistics.
        if (
            type(conv) is PaddedConv2D
            and isinstance(norm, BatchNormalization)
            and norm.scale
            and norm.center
        ):
            yield conv, norm


def _adder(bias):
    return lambda inputs, **training: tf.nn.bias_add(
        inputs, tf.cast(bias, inputs.dtype)
    )
