"""The shortcut of a block: how it comes to the shape of the output."""

from typing import NamedTuple

import tensorflow as tf

from resnet_layers.pooling import (
    AverageAhead,
    ZeroPaddedShortcut,
    average_pooling,
)
from resnet_layers.style import unchanged

SHORTCUTS = (
    "projection",
    "projection_3x3",
    "pooled_projection",
    "zero_padding",
)


class Shortcut(NamedTuple):
    """The layers of a shortcut, in order; `unchanged` for each left out."""

    pool: tf.keras.layers.Layer = unchanged
    conv: tf.keras.layers.Layer = unchanged
    bn: tf.keras.layers.Layer = unchanged


def new_shortcut(block, input_shape):
    """Returns the `Shortcut` of a block for inputs of a shape.

    Raises:
      ValueError: the shortcut only adds channels, and has more already.
    """
    strides, dtype = block.strides, {"dtype": block.dtype_policy}
    widens = input_shape[-1] != block.out_channels
    # Pre-activation nets keep the shortcut free of weights where they can.
    projects = widens or block.begins_resolution and not block.preactivation
    if block.shortcut == "zero_padding" or not projects:
        if input_shape[-1] > block.out_channels:
            raise ValueError(
                "With `shortcut` 'zero_padding', which adds channels, the "
                f"input of {block.name} must have at most "
                f"{block.out_channels}. Received: shape={input_shape}"
            )
        if not widens and set(strides) == {1}:
            return Shortcut()
        return Shortcut(
            ZeroPaddedShortcut(block.out_channels, strides, **dtype)
        )
    pool, size, dilation = unchanged, 1, 1
    if block.begins_resolution and block.shortcut == "pooled_projection":
        pool = average_pooling(strides, **dtype)
        if set(strides) == {1}:
            pool = AverageAhead(block.first_dilation, **dtype)
        strides = 1
    elif block.begins_resolution and block.shortcut == "projection_3x3":
        size, dilation = 3, block.first_dilation
    conv = block.last_conv(
        size, strides=strides, dilation_rate=dilation, name="projection_conv"
    )
    bn = unchanged
    if not block.preactivation:
        bn = block.new_norm("projection_bn")
    return Shortcut(pool, conv, bn)
