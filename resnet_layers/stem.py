"""The stem: the layers in front of the first stage."""

from typing import NamedTuple

import tensorflow as tf

from resnet_layers.arguments import one_of, whole_number
from resnet_layers.base import ConvModel, image_error, resolve_training
from resnet_layers.pooling import PaddedMaxPooling2D, strided_shape


class StemKind(NamedTuple):
    """The convolutions of a stem; the first one has the stride.

    `widths` are their channels, in eighths of the stem's filters.
    """

    kernel_sizes: tuple
    widths: tuple
    strides: int = 2
    pools: bool = True


STEMS = {
    "imagenet": StemKind((7,), (8,)),
    "deep": StemKind((3, 3, 3), (4, 4, 8)),
    "tiered": StemKind((3, 3, 3), (3, 4, 8)),
    "small": StemKind((3,), (8,), strides=1, pools=False),
}
POOLS = ("max", "zero_padded_max", "convolution")
# Activations that are zero for negative inputs, and never negative.
RECTIFIERS = (tf.keras.activations.relu, tf.keras.activations.relu6)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class Stem(ConvModel):
    """The layers in front of the first stage: convolution, norm, ReLU, pool.

    Args:
      filters: number of output channels.
      kind: "imagenet" (7x7 with stride 2, then pooling), "deep" (ResNet-D:
        three 3x3 convolutions in place of the 7x7, the first two of half the
        filters), "tiered" (the same, the first of three eighths) or "small"
        (3x3 with stride 1, no pooling; for images of up to about 64 x 64).
      pool: what pools, with stride 2: "max" (3x3), "zero_padded_max" (as in
        `keras.applications` and BiT: the padding may win, where there was no
        ReLU) or "convolution" (3x3 with norm and activation: ResNet-RS, Bello
        et al., 2021, https://arxiv.org/abs/2103.07579).
      **kwargs: the options of `ConvModel`, and `name`, `dtype` and so on. With
        `preactivation`, norm and activation behind the last convolution are
        left to the first block. With `antialias` "average", that alone pools;
        "blur" has the stride in place of the pooling.

    Raises:
      ValueError: an argument has none of the values possible.
    """

    def __init__(self, filters=64, kind="imagenet", pool="max", **kwargs):
        super().__init__(**kwargs)
        self.kind = one_of("kind", kind, STEMS)
        self.filters = whole_number(
            "filters", filters, at_least=least_filters(kind)
        )
        self.pool = one_of("pool", pool, POOLS)
        entry = STEMS[kind]
        last = len(entry.widths) - 1
        self.convs = tuple(
            self.new_conv(
                self.filters * width // 8,
                kernel_size,
                entry.strides if index == 0 else 1,
                use_bias=self.use_bias and self.preactivation and index == last,
                name=f"conv{index + 1}",
            )
            for index, (width, kernel_size) in enumerate(
                zip(entry.widths, entry.kernel_sizes, strict=True)
            )
        )
        self.bns = tuple(
            self.new_norm(f"bn{index + 1}")
            for index in range(last if self.preactivation else last + 1)
        )
        self.pools = tuple(self._new_pools()) if entry.pools else ()

    @property
    def reduction(self):
        """How many pixels of the input's side make one of the output's."""
        return stem_reduction(self.kind)

    def build_layers(self, input_shape):
        _, rows, columns, channels = input_shape
        if rows == 3 < min(columns or 0, channels):
            raise image_error(self, input_shape, "such as (None, 32, 32, 3)")
        super().build_layers(input_shape)

    def compute_output_shape(self, input_shape):
        shape = strided_shape(input_shape, (self.reduction,) * 2)
        return *shape[:3], self.filters

    def call(self, inputs, training=None):
        """Maps [batch, height, width, channels] images to features.

        Returns:
          [batch, ceil(height / reduction), ceil(width / reduction), filters].
        """
        training = resolve_training(training)
        # Images of integers as well.
        x = tf.cast(inputs, self.compute_dtype)
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if index < len(self.bns):
                x = self.activation(self.bns[index](x, training=training))
        for layer in self.pools:
            x = layer(x, training=training)
        return x

    def convolutions_with_norms(self):
        """Returns [(convolution, the norm right behind it)]."""
        pools = {layer.name: layer for layer in self.pools}
        return [
            *zip(self.convs, self.bns, strict=False),
            (pools.get("pool_conv"), pools.get("pool_bn")),
        ]

    def _new_pools(self):
        """Creates the layers that pool."""
        strides = 1 if self.antialias else 2
        if self.pool == "convolution":
            yield self.new_conv(self.filters, 3, strides, name="pool_conv")
        elif self.antialias != "average":
            yield PaddedMaxPooling2D(
                strides,
                self._pool_padding(),
                dtype=self.dtype_policy,
                name="pool",
            )
        if self.antialias:
            yield self.new_antialias(2, "antialias")
        if self.pool == "convolution":
            yield self.new_norm("pool_bn")
            yield tf.keras.layers.Activation(
                self.activation, dtype=self.dtype_policy, name="pool_activation"
            )

    def _pool_padding(self):
        """Returns what the maximum pads with."""
        # After a ReLU, a zero never wins either. Quantization to int8 takes
        # the smallest float for an activation, and the other values for zero.
        rectified = not self.preactivation and self.activation in RECTIFIERS
        if rectified or self.pool == "zero_padded_max":
            return "zeros"
        return "infinity"


def stem_reduction(kind):
    """Returns how many pixels of the input's side make one of the stem's."""
    return STEMS[kind].strides * (2 if STEMS[kind].pools else 1)


def least_filters(kind):
    """Returns how many filters a stem needs, so that no part has none."""
    return -(-8 // min(STEMS[kind].widths))
