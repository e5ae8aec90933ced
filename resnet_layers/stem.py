"""The stem: the layers before the first stage."""

from typing import Any, NamedTuple

import tensorflow as tf

from resnet_layers.arguments import integer, one_of
from resnet_layers.base import ConvModel, image_error, resolve_training
from resnet_layers.pooling import PaddedMaxPooling2D, strided_shape


class StemKind(NamedTuple):
    """Convolutions of a stem; the first one has the stride.

    `widths` are their filters, in eighths of the stem's filters.
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
# Activations that are zero for negative inputs and never negative.
RECTIFIERS = (tf.keras.activations.relu, tf.keras.activations.relu6)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class Stem(ConvModel):
    """Stem of a ResNet: convolution, norm, ReLU, pooling.

    Maps images [batch, height, width, channels] to
    [batch, ceil(height / reduction), ceil(width / reduction), filters], in the
    compute dtype. `reduction` is 4, or 1 for "small".

    Args:
      filters: number of output channels.
      kind: "imagenet" (7x7 convolution with stride 2, pooling), "deep" (three
        3x3 convolutions instead of the 7x7, the first two with half the
        filters, ResNet-D), "tiered" (as "deep", the first one with three
        eighths of the filters) or "small" (3x3 convolution with stride 1, no
        pooling, for images up to about 64 x 64).
      pool: pooling with stride 2: "max" (3x3), "zero_padded_max" (as in
        `keras.applications` and BiT: without a ReLU, the padding may win) or
        "convolution" (3x3 with norm and activation, ResNet-RS, Bello et al.,
        2021, <https://arxiv.org/abs/2103.07579>).
      **kwargs: `norm`, `activation`, `preactivation`, `antialias` and the
        other options of `ResNet`; `name`, `dtype` and the other arguments of
        `keras.Model`. With `preactivation`, the first block applies norm and
        activation of the last convolution. With `antialias="average"`, average
        pooling replaces the pooling; with "blur", `BlurPool2D` has its stride.

    Raises:
      ValueError: an argument is invalid.

    Source: He et al., 2015, <https://arxiv.org/abs/1512.03385>, table 1; deep
    stem: He et al., 2018, <https://arxiv.org/abs/1812.01187>.

    Example:
      ```python
      x = Stem(filters=64, kind="deep")(images)
      model = ResNet(stem={"kind": "deep", "pool": "convolution"})
      ```
    """

    def __init__(
        self,
        filters: int = 64,
        kind: str = "imagenet",
        pool: str = "max",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kind = one_of("kind", kind, STEMS)
        self.filters = integer("filters", filters, at_least=min_filters(kind))
        self.pool = one_of("pool", pool, POOLS)
        spec = STEMS[kind]
        last = len(spec.widths) - 1
        self.convs = tuple(
            self.new_conv(
                self.filters * width // 8,
                kernel_size,
                spec.strides if index == 0 else 1,
                use_bias=self.use_bias and self.preactivation and index == last,
                name=f"conv{index + 1}",
            )
            for index, (width, kernel_size) in enumerate(
                zip(spec.widths, spec.kernel_sizes, strict=True)
            )
        )
        self.bns = tuple(
            self.new_norm(f"bn{index + 1}")
            for index in range(last if self.preactivation else last + 1)
        )
        self.pools = tuple(self._new_pools()) if spec.pools else ()

    @property
    def reduction(self):
        """Input pixels per output pixel, along each axis: 1 or 4."""
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
        """Maps images to features.

        Args:
          inputs: images [batch, height, width, channels], of any float or
            integer dtype.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          [batch, ceil(height / reduction), ceil(width / reduction), filters]
          in the compute dtype.
        """
        training = resolve_training(training)
        # Integer images are accepted too.
        x = tf.cast(inputs, self.compute_dtype)
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if index < len(self.bns):
                x = self.activation(self.bns[index](x, training=training))
        for layer in self.pools:
            x = layer(x, training=training)
        return x

    def convolutions_with_norms(self):
        """Returns [(convolution, the norm that follows it)]."""
        pools = {layer.name: layer for layer in self.pools}
        return [
            *zip(self.convs, self.bns, strict=False),
            (pools.get("pool_conv"), pools.get("pool_bn")),
        ]

    def _new_pools(self):
        """Yields the pooling layers."""
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
        """Returns the padding of max pooling."""
        # After a ReLU, a zero never wins either. Int8 quantization mistakes the
        # smallest float for an activation, and all other values become zero.
        rectified = not self.preactivation and self.activation in RECTIFIERS
        if rectified or self.pool == "zero_padded_max":
            return "zeros"
        return "infinity"


def stem_reduction(kind):
    """Returns the input pixels per output pixel of a stem."""
    return STEMS[kind].strides * (2 if STEMS[kind].pools else 1)


def min_filters(kind):
    """Returns the fewest filters that leave no convolution without any."""
    return -(-8 // min(STEMS[kind].widths))
