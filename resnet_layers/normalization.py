"""Batch normalization, fused, and folded into convolutions."""

from functools import partial

import tensorflow as tf

from resnet_layers.arguments import number, true_or_false
from resnet_layers.convolutions import PaddedConv2D
from resnet_layers.serialization import KeepsArguments

FUSED_DTYPES = ("float32", "bfloat16", "float16")


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BatchNormalization(KeepsArguments, tf.keras.layers.BatchNormalization):
    """Keras's batch normalization, run on TensorFlow's fused kernel.

    Keras 3 computes batch normalization on TensorFlow from five separate
    operations; the fused kernel does the same in one pass over the data. The
    numbers, moving statistics included, are Keras's.

    The kernel is used for 4-D, channels-last inputs in float32, bfloat16 or
    float16, with float32 variables, that are neither masked nor synchronized
    over replicas nor renormalized. Everything else goes through Keras's own
    code.

    Args:
      momentum: weight of the old value in the moving statistics. 0.9 is what
        PyTorch calls a momentum of 0.1, and what ResNets are trained with
        everywhere but in `keras.applications` (0.99).
      epsilon: added to the variance.
      synchronized: compute batch statistics over all replicas.
      **kwargs: `keras.layers.BatchNormalization`'s other arguments.

    Attributes:
      fused: whether the kernel is used where it can be. It stands in no
        config.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167.
    """

    def __init__(
        self, momentum=0.9, epsilon=1e-5, synchronized=False, **kwargs
    ):
        super().__init__(
            momentum=number("momentum", momentum, at_least=0, at_most=1),
            epsilon=number("epsilon", epsilon, at_least=0),
            synchronized=true_or_false("synchronized", synchronized),
            **kwargs,
        )
        self.fused = True

    def runs_fused(self, inputs, mask=None):
        """Tells whether a call on `inputs` will use the fused kernel."""
        return (
            self.fused
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and mask is None
            and not self.synchronized
            and not self.renorm
            and tf.as_dtype(inputs.dtype).name in FUSED_DTYPES
            and self.variable_dtype == "float32"
        )

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs`.

        Args:
          inputs: [batch, height, width, channels], or any shape that Keras's
            layer takes.
          training: true to normalize with the batch's own statistics and to
            update the moving ones; a layer with `trainable = False` always
            uses the moving ones, as in Keras.
          mask: as in Keras's layer.

        Returns:
          A tensor of the shape and dtype of `inputs`.
        """
        if not self.runs_fused(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        use_batch_statistics = bool(training and self.trainable)
        # The raw operation, because the public wrapper raises epsilon to
        # 1.001e-5, an old cuDNN limit.
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
        # A graph has two of these for each layer: what is known is computed
        # here, not there.
        count = inputs.shape[:-1].num_elements()
        if count is None:
            count = tf.size(inputs, tf.int64) // inputs.shape[-1]
            count = tf.cast(count, mean.dtype)
        fresh = 1.0 - self.momentum
        for moving, value, weight in (
            (self.moving_mean, mean, fresh),
            # The kernel returns the unbiased variance, Keras keeps the biased
            # one.
            (self.moving_variance, variance, fresh * (count - 1) / count),
        ):
            kept = tf.convert_to_tensor(moving) * self.momentum
            moving.assign(kept + value * weight)


NORMS = {
    "batch": BatchNormalization,
    # Of 32 groups; Keras has another epsilon than all other libraries.
    "group": partial(
        tf.keras.layers.GroupNormalization, groups=32, epsilon=1e-5
    ),
}


def fold_batch_norms(model):
    """Folds batch norms into convolutions: faster inference, no more training.

    The factor of a batch norm right behind a convolution goes into the kernel,
    and its offset becomes a bias, which TensorFlow adds within the convolution,
    with a ReLU behind it. Not folded are norms in front of a convolution, as in
    pre-activation, those of custom blocks, and those without gamma or beta. The
    logits are the same but for rounding.

    Args:
      model: a built `ResNet`; it is changed. Folded norms are the same in
        training and in inference.
    """
    for conv, norm in foldable_batch_norms(model):
        factor = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
        # The convolution has no bias: it would not outlive the norm.
        norm.beta.assign(norm.beta - norm.moving_mean * factor)
        conv.kernel.assign(conv.kernel * factor)
        # The layer stays in the model and adds what is left. Its variables say
        # the same, for a copy or a file.
        norm.gamma.assign(tf.ones_like(norm.gamma))
        norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
        norm.moving_variance.assign(
            tf.ones_like(norm.moving_variance) - norm.epsilon
        )
        norm.call = _adder(norm.beta)


def foldable_batch_norms(model):
    """Yields (convolution, the batch norm right behind it) of a `ResNet`."""
    for conv, norm in model.convolutions_with_norms():
        # The factor of a standardized kernel would be lost, and other norms
        # have no statistics of their own.
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
