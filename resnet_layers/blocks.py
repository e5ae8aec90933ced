"""Residual blocks, and the base class of custom ones."""

from typing import Any

import tensorflow as tf

from resnet_layers.arguments import (
    IntOrPair,
    boolean,
    create_layer,
    integer,
    integer_pair,
    one_of,
)
from resnet_layers.attention import ATTENTIONS
from resnet_layers.base import ConvModel, identity, resolve_training
from resnet_layers.pooling import (
    AverageAhead,
    ZeroPaddedShortcut,
    average_pooling,
    strided_shape,
)
from resnet_layers.stochastic_depth import (
    StochasticDepth,
    drop_rate,
    seed_or_none,
)

SHORTCUTS = (
    "projection",
    "projection_3x3",
    "pooled_projection",
    "zero_padding",
)


class ResidualBlock(ConvModel):
    r"""Base class of residual blocks: shortcut, sum, activation.

        x --+------- residual -> attention -> drop ---+-- + --> activation
             \                                       /
              +-- pool -> 1x1 conv -> norm, if needed

    A custom block creates the layers of its residual branch in `__init__` and
    applies them in `residual`. This class does the rest.

    Args:
      filters: number of filters of the block. The output has
        `filters * expansion` channels.
      strides: 1, or 2 to halve height and width; or (height, width).
      dilation: dilation rate of the 3x3 convolutions.
      first_dilation: dilation rate of the convolution that has the stride;
        `dilation` by default. If it differs from `dilation` and `strides` is
        1, dilation replaces a stride. The shortcut is then projected (and
        pooled) as with a stride.
      shortcut: how the shortcut matches a new shape: "projection" (1x1
        convolution, option B of the paper), "projection_3x3" (3x3 convolution
        where there is a stride, SENet-154), "pooled_projection" (average
        pooling and a 1x1 convolution, ResNet-D, He et al., 2018,
        <https://arxiv.org/abs/1812.01187>) or "zero_padding" (option A).
      attention: channel attention at the end of the residual branch: "se" for
        `SqueezeExcitation`, "eca" for `EfficientChannelAttention`, a layer
        class, or None. To set arguments, pass a dict with one of these as
        "kind", for example `{"kind": "se", "ratio": 0.25}`.
      stochastic_depth: probability that training drops the residual branch
        for an example, at least 0 and below 1. See `StochasticDepth`.
      zero_last_gamma: whether the last norm's gamma starts at 0. The block
        then starts as the identity.
      seed: integer seed of `stochastic_depth`, or None for a random one.
      **kwargs: `norm`, `activation`, `preactivation`, `antialias`,
        `weight_standardization`, `use_bias`, `kernel_initializer` and
        `kernel_regularizer`, as in `ResNet`; `name`, `dtype` and the other
        arguments of `keras.Model`.

    Raises:
      ValueError: an argument is invalid.

    Source: He et al., 2015, <https://arxiv.org/abs/1512.03385>, figure 2.

    Example:
      ```python
      class OneConvolution(ResidualBlock):
          def __init__(self, filters, strides=1, **kwargs):
              super().__init__(filters, strides, **kwargs)
              self.conv1 = self.output_conv(5, strides=self.strides)
              self.bn1 = self.last_norm("bn1")

          def residual(self, x, training=None):
              return self.bn1(self.conv1(x), training=training)


      model = ResNet(block=OneConvolution, stage_sizes=(2, 2))
      ```
    """

    expansion = 1

    def __init__(
        self,
        filters: int,
        strides: IntOrPair = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        shortcut: str = "projection",
        attention: Any = None,
        stochastic_depth: float = 0.0,
        zero_last_gamma: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = integer("filters", filters)
        self.strides = integer_pair("strides", strides)
        self.dilation = integer("dilation", dilation)
        self.first_dilation = self.dilation
        if first_dilation is not None:
            self.first_dilation = integer("first_dilation", first_dilation)
        self.shortcut = one_of("shortcut", shortcut, SHORTCUTS)
        self.stochastic_depth = drop_rate(stochastic_depth)
        self.zero_last_gamma = boolean("zero_last_gamma", zero_last_gamma)
        self.seed = seed_or_none(seed)

        self.pre_bn = self.attention = self.drop = identity
        if self.preactivation:
            self.pre_bn = self.new_norm("pre_bn")
        self._chosen_attention = attention
        options = {"name": "attention", **self._inherited}
        if attention is not None:
            self.attention = create_layer(
                "attention", attention, ATTENTIONS, **options
            )
        options["name"] = "drop"
        if self.stochastic_depth:
            self.drop = StochasticDepth(stochastic_depth, self.seed, **options)
        # The stride is in the convolution, or in the pooling after it.
        self.conv_strides, self.pool = self.strides, identity
        if self.antialias and self.begins_resolution:
            self.conv_strides = 1
            self.pool = self.new_antialias(self.strides, "antialias")

    @property
    def out_channels(self):
        """Number of output channels."""
        return self.filters * self.expansion

    @property
    def begins_resolution(self):
        """Whether the block has a stride, or dilation replaces one."""
        return set(self.strides) != {1} or self.dilation != self.first_dilation

    @property
    def projects(self):
        """Whether the shortcut of the built block has a convolution."""
        return self.projection_conv is not identity

    def config_overrides(self):
        kept = super().config_overrides()
        return {**kept, "attention": self._chosen_attention}

    def residual(self, x, training=None):
        """Applies the residual branch.

        Args:
          x: inputs of the block; with `preactivation`, after norm and
            activation.
          training: whether batch norm uses batch statistics. None means
            False here: `call` has resolved it.

        Returns:
          [batch, ceil(height / strides), ceil(width / strides), out_channels].
        """
        raise NotImplementedError

    def output_conv(self, kernel_size, **kwargs):
        """Creates a convolution with `out_channels` filters.

        It ends the residual branch or the shortcut.

        Args:
          kernel_size: height and width of the kernel, odd.
          **kwargs: more arguments of `PaddedConv2D`.
        """
        # Without a following norm, the convolution needs a bias.
        kwargs["use_bias"] = self.use_bias and self.preactivation
        return self.new_conv(self.out_channels, kernel_size, **kwargs)

    # The name in version 0.1.0, for custom blocks.
    last_conv = output_conv

    def last_norm(self, name):
        """Creates the norm that ends the residual branch."""
        if self.preactivation:
            return identity
        # A zero gamma at the end of the residual branch makes the block begin
        # as the identity: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
        gamma = "zeros" if self.zero_last_gamma else "ones"
        return self.new_norm(name, gamma_initializer=gamma)

    def build_layers(self, input_shape):
        self._create_shortcut(input_shape)
        super().build_layers(input_shape)

    def _create_shortcut(self, input_shape):
        self.shortcut_pool = self.projection_conv = self.projection_bn = (
            identity
        )
        dtype = {"dtype": self.dtype_policy}
        is_strided = set(self.strides) != {1}
        widens = input_shape[-1] != self.out_channels
        # Pre-activation models project only where the width changes.
        projects = widens or self.begins_resolution and not self.preactivation
        if self.shortcut == "zero_padding" or not projects:
            if input_shape[-1] > self.out_channels:
                raise ValueError(
                    "shortcut='zero_padding': requires an input of at most "
                    f"{self.out_channels} channels; {self.name} received shape "
                    f"{input_shape}. Use shortcut='projection'."
                )
            if widens or is_strided:
                self.shortcut_pool = ZeroPaddedShortcut(
                    self.out_channels, self.strides, **dtype
                )
            return
        strides, size, dilation = self.strides, 1, 1
        if self.begins_resolution and self.shortcut == "pooled_projection":
            self.shortcut_pool = (
                average_pooling(strides, **dtype)
                if is_strided
                else AverageAhead(self.first_dilation, **dtype)
            )
            strides = 1
        elif self.begins_resolution and self.shortcut == "projection_3x3":
            size, dilation = 3, self.first_dilation
        self.projection_conv = self.output_conv(
            size,
            strides=strides,
            dilation_rate=dilation,
            name="projection_conv",
        )
        if not self.preactivation:
            self.projection_bn = self.new_norm("projection_bn")

    def compute_output_shape(self, input_shape):
        return *strided_shape(input_shape, self.strides)[:3], self.out_channels

    def call(self, inputs, training=None):
        """Applies the block.

        Args:
          inputs: images or features, [batch, height, width, channels], of any
            float or integer dtype.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          [batch, ceil(height / strides), ceil(width / strides), out_channels]
          in the compute dtype of the block's policy.
        """
        training = resolve_training(training)
        # Integer images are accepted too.
        x = inputs = tf.cast(inputs, self.compute_dtype)
        if self.preactivation:
            x = self.activation(self.pre_bn(inputs, training=training))
        shortcut = self.shortcut_pool(x if self.projects else inputs)
        shortcut = self.projection_conv(shortcut)
        shortcut = self.projection_bn(shortcut, training=training)
        x = self.residual(x, training=training)
        x = self.attention(x, training=training)
        x = shortcut + self.drop(x, training=training)
        return x if self.preactivation else self.activation(x)

    def convolutions_with_norms(self):
        """Returns [(convolution, the norm that follows it)]."""
        # Unknown for a custom block.
        if type(self) not in (BasicBlock, BottleneckBlock):
            return []
        return [
            (self.projection_conv, self.projection_bn),
            *(
                (getattr(self, f"conv{n}"), getattr(self, f"bn{n}"))
                for n in (1, 2, 3)
                if hasattr(self, f"conv{n}")
            ),
        ]


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BasicBlock(ResidualBlock):
    r"""Basic block of ResNet-18 and ResNet-34: two 3x3 convolutions.

        x --+-- 3x3 conv, bn, relu --> 3x3 conv, bn --+-- + --> relu
             \                                       /
              +------- 1x1 conv, bn, if needed -----+

    Maps [batch, height, width, channels] to
    [batch, ceil(height / strides), ceil(width / strides), filters], in the
    compute dtype.

    Args:
      filters: number of filters of both convolutions.
      strides: stride of the first convolution: 1, or 2 to halve height and
        width; or (height, width).
      **kwargs: the other arguments of `ResidualBlock`.

    Raises:
      ValueError: an argument is invalid.

    Source: He et al., 2015, <https://arxiv.org/abs/1512.03385>, figure 5.

    Example:
      ```python
      x = BasicBlock(filters=64)(x)
      x = BasicBlock(filters=128, strides=2, attention="se")(x)
      ```
    """

    def __init__(
        self, filters: int, strides: IntOrPair = 1, **kwargs: Any
    ) -> None:
        super().__init__(filters, strides, **kwargs)
        self.conv1 = self.new_conv(
            self.filters,
            3,
            self.conv_strides,
            dilation_rate=self.first_dilation,
            name="conv1",
        )
        self.bn1 = self.new_norm("bn1")
        self.conv2 = self.output_conv(
            3, dilation_rate=self.dilation, name="conv2"
        )
        self.bn2 = self.last_norm("bn2")

    def residual(self, x, training=None):
        x = self.activation(self.bn1(self.conv1(x), training=training))
        return self.bn2(self.conv2(self.pool(x)), training=training)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BottleneckBlock(ResidualBlock):
    r"""Bottleneck block of ResNet-50: 1x1, 3x3 and 1x1 convolution.

        x --+-- 1x1, bn, relu --> 3x3, bn, relu --> 1x1, bn --+-- + --> relu
             \                                               /
              +----------- 1x1 conv, bn, if needed ---------+

    Maps [batch, height, width, channels] to
    [batch, ceil(height / strides), ceil(width / strides), 4 * filters], in the
    compute dtype.

    Args:
      filters: number of filters inside the block. The output has four times as
        many channels.
      strides: 1, or 2 to halve height and width; or (height, width).
      groups: number of groups of the 3x3 convolution (ResNeXt, Xie et al.,
        2016, <https://arxiv.org/abs/1611.05431>).
      base_width: width of each group where `filters` is 64. More than 64 with
        one group is a Wide ResNet (Zagoruyko and Komodakis, 2016,
        <https://arxiv.org/abs/1605.07146>).
      first_reduction: divisor of the first convolution's filters: 2 in
        SENet-154.
      stride_site: convolution with the stride: "3x3" (known as v1.5, more
        accurate) or "1x1" (the first one, v1, as in the paper).
      **kwargs: the other arguments of `ResidualBlock`.

    Raises:
      ValueError: an argument is invalid, or the block would have no filters.

    Source: He et al., 2015, <https://arxiv.org/abs/1512.03385>, figure 5.

    Example:
      ```python
      x = BottleneckBlock(filters=64)(x)  # [..., 256]
      x = BottleneckBlock(filters=128, strides=2, groups=32, base_width=4)(x)
      ```
    """

    expansion = 4

    def __init__(
        self,
        filters: int,
        strides: IntOrPair = 1,
        groups: int = 1,
        base_width: int = 64,
        first_reduction: int = 1,
        stride_site: str = "3x3",
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, strides, **kwargs)
        self.groups = integer("groups", groups)
        self.base_width = integer("base_width", base_width)
        self.first_reduction = integer("first_reduction", first_reduction)
        self.stride_site = one_of("stride_site", stride_site, ("3x3", "1x1"))
        inner = self.filters * self.base_width // 64 * self.groups
        first = inner // self.first_reduction
        if first < 1:
            raise ValueError(
                f"filters={filters!r}, base_width={base_width!r}, "
                f"first_reduction={first_reduction!r}: filters * base_width "
                "must be at least 64 * first_reduction. Increase filters or "
                "base_width."
            )
        strides1, strides2, dilation2 = (
            (self.conv_strides, 1, self.dilation)
            if self.stride_site == "1x1"
            else (1, self.conv_strides, self.first_dilation)
        )
        self.conv1 = self.new_conv(first, 1, strides1, name="conv1")
        self.bn1 = self.new_norm("bn1")
        self.conv2 = self.new_conv(
            inner,
            3,
            strides2,
            groups=self.groups,
            dilation_rate=dilation2,
            name="conv2",
        )
        self.bn2 = self.new_norm("bn2")
        self.conv3 = self.output_conv(1, name="conv3")
        self.bn3 = self.last_norm("bn3")

    def residual(self, x, training=None):
        x = self.activation(self.bn1(self.conv1(x), training=training))
        x = self.activation(self.bn2(self.conv2(x), training=training))
        return self.bn3(self.conv3(self.pool(x)), training=training)
