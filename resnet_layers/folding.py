"""Batch norms that become a part of the convolutions in front of them."""

import tensorflow as tf

from resnet_layers.blocks import BasicBlock, BottleneckBlock
from resnet_layers.convolutions import PaddedConv2D
from resnet_layers.normalization import BatchNormalization


def fold_batch_norms(model):
    """Makes a net faster in inference, and of no use for training.

    What a batch norm right behind a convolution multiplies by goes into the
    kernel, and what it adds becomes a bias, which TensorFlow adds within the
    convolution, with a ReLU behind it. So it is with the norms of all nets but
    those that pre-activation puts in front of a convolution, and those of
    blocks of one's own, or without gamma or beta. The logits stay what they
    were but for rounding.

    Args:
      model: a built `ResNet`; it is changed. Its phase makes no difference to
        folded norms any more.
    """
    for conv, norm in convolutions_with_norms(model):
        factor = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
        # The convolution has no bias: it would not outlive the norm.
        norm.beta.assign(norm.beta - norm.moving_mean * factor)
        conv.kernel.assign(conv.kernel * factor)
        # The layer stays where it is in the model, and adds what is left. So
        # it would by its own variables, in a copy or a file.
        norm.gamma.assign(tf.ones_like(norm.gamma))
        norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
        norm.moving_variance.assign(
            tf.ones_like(norm.moving_variance) - norm.epsilon
        )
        norm.call = _adder(norm.beta)


def convolutions_with_norms(model):
    """Yields (convolution, the batch norm right behind it) of a `ResNet`."""
    stem = model.stem
    pools = {layer.name: layer for layer in stem.pools}
    pairs = [*zip(stem.convs, stem.bns, strict=False)]
    pairs.append((pools.get("pool_conv"), pools.get("pool_bn")))
    for block in model.blocks:
        # In a block of somebody's own, they may be anywhere.
        if type(block) in (BasicBlock, BottleneckBlock):
            pairs.append((block.projection_conv, block.projection_bn))
            pairs += [
                (
                    getattr(block, f"conv{n}", None),
                    getattr(block, f"bn{n}", None),
                )
                for n in (1, 2, 3)
            ]
    for conv, norm in pairs:
        # What a standardised kernel is multiplied by is lost, and other norms
        # have no statistics of their own.
        if (
            type(conv) is PaddedConv2D
            and isinstance(norm, BatchNormalization)
            and norm.scale
            and norm.center
        ):
            yield conv, norm


def _adder(bias):
    return lambda inputs, **phase: tf.nn.bias_add(
        inputs, tf.cast(bias, inputs.dtype)
    )
