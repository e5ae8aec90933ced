"""The residual blocks, and the base of custom ones."""

import tensorflow as tf

from resnet_layers.arguments import (
    make,
    one_of,
    pair,
    true_or_false,
    whole_number,
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
    r"""The base of all blocks: the shortcut, the sum, and what is in between.

        x --+------- residual -> attention -> drop ---+-- + --> activation
             \                                       /
              +-- pool -> 1x1 conv -> norm, if needed

    A custom block makes the layers of its residual branch in `__init__` and
    applies them in `residual`; all else is done here:

        class OneConvolution(ResidualBlock):
            def __init__(self, filters, strides=1, **kwargs):
                super().__init__(filters, strides, **kwargs)
                self.conv1 = self.output_conv(5, strides=self.strides)
                self.bn1 = self.last_norm("bn1")

            def residual(self, x, training=None):
                return self.bn1(self.conv1(x), training=training)

        model = ResNet(block=OneConvolution, stage_sizes=(2, 2))

    Args:
      filters: channels of the block.
      strides: 1, or 2 to halve height and width; or two numbers for them.
      dilation: of the 3x3 convolutions.
      first_dilation: of the convolution that has the stride, or would have it,
        if not `dilation`. With strides of 1 and another value than `dilation`,
        dilation replaces a stride: the shortcut is then projected, and pooled,
        as if there were one.
      shortcut: how the shortcut matches another shape: "projection" by a 1x1
        convolution (option B of the paper), "projection_3x3" where there is a
        stride (SENet-154), "pooled_projection" by average pooling and a 1x1
        convolution (ResNet-D, He et al., 2018,
        https://arxiv.org/abs/1812.01187), or "zero_padding" (option A).
      attention: what scales the channels at the end of the residual branch:
        "se" for `SqueezeExcitation`, "eca" for `EfficientChannelAttention`,
        the class of another layer, a dict with one of these as "kind" and
        arguments for it, such as `{"kind": "se", "ratio": 0.25}`, or None.
      stochastic_depth: probability that the residual branch is dropped for
        an example in training, see `StochasticDepth`.
      zero_last_gamma: start the last norm's gamma at zero, not one.
      seed: of the examples that `stochastic_depth` drops.
      **kwargs: the options of `ConvModel`, and `name`, `dtype` and so on.

    Raises:
      ValueError: an argument has none of the values above.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 2.
    """

    expansion = 1

    def __init__(
        self,
        filters,
        strides=1,
        dilation=1,
        first_dilation=None,
        shortcut="projection",
        attention=None,
        stochastic_depth=0.0,
        zero_last_gamma=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = whole_number("filters", filters)
        self.strides = pair("strides", strides)
        self.dilation = whole_number("dilation", dilation)
        self.first_dilation = self.dilation
        if first_dilation is not None:
            self.first_dilation = whole_number("first_dilation", first_dilation)
        self.shortcut = one_of("shortcut", shortcut, SHORTCUTS)
        self.stochastic_depth = drop_rate(stochastic_depth)
        self.zero_last_gamma = true_or_false("zero_last_gamma", zero_last_gamma)
        self.seed = seed_or_none(seed)

        self.pre_bn = self.attention = self.drop = identity
        if self.preactivation:
            self.pre_bn = self.new_norm("pre_bn")
        self._chosen_attention = attention
        options = {"name": "attention", **self._inherited}
        if attention is not None:
            self.attention = make("attention", attention, ATTENTIONS, **options)
        options["name"] = "drop"
        if self.stochastic_depth:
            self.drop = StochasticDepth(stochastic_depth, self.seed, **options)
        # The stride is in the convolution, or in what pools after it.
        self.conv_strides, self.pool = self.strides, identity
        if self.antialias and self.begins_resolution:
            self.conv_strides = 1
            self.pool = self.new_antialias(self.strides, "antialias")

    @property
    def out_channels(self):
        """Number of channels that the block returns."""
        return self.filters * self.expansion

    @property
    def begins_resolution(self):
        """Whether there is a stride, or dilation has replaced it."""
        return set(self.strides) != {1} or self.dilation != self.first_dilation

    @property
    def projects(self):
        """Whether a built block has a convolution in its shortcut."""
        return self.projection_conv is not identity

    def arguments_kept_elsewhere(self):
        kept = super().arguments_kept_elsewhere()
        return {**kept, "attention": self._chosen_attention}

    def residual(self, x, training=None):
        """Applies the residual branch.

        Args:
          x: the block's inputs; with `preactivation`, after norm and
            activation.
          training: what `call` has resolved; here None is inference.
        """
        raise NotImplementedError

    def output_conv(self, kernel_size, **kwargs):
        """Returns a convolution to the channels that the block returns.

        It ends the residual branch, or the shortcut.
        """
        # It needs a bias where no norm follows.
        kwargs["use_bias"] = self.use_bias and self.preactivation
        return self.new_conv(self.out_channels, kernel_size, **kwargs)

    # Its name in version 0.1.0, for custom blocks.
    last_conv = output_conv

    def last_norm(self, name):
        """Returns the norm that ends the residual branch."""
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
        # Pre-activation nets keep the shortcut free of weights where they can.
        projects = widens or self.begins_resolution and not self.preactivation
        if self.shortcut == "zero_padding" or not projects:
            if input_shape[-1] > self.out_channels:
                raise ValueError(
                    "With `shortcut` 'zero_padding', which adds channels, the "
                    f"input of {self.name} must have at most "
                    f"{self.out_channels}. Received: shape={input_shape}"
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
          inputs: [batch, height, width, channels].
          training: whether batch norm uses and updates batch statistics.

        Returns:
          [batch, ceil(height / strides), ceil(width / strides), out_channels]
          in the compute dtype of the block's policy.
        """
        training = resolve_training(training)
        # Images of integers as well.
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
        """Returns [(convolution, the norm right behind it)]."""
        # In a custom block, they may be anywhere.
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
    r"""Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34.

        x --+-- 3x3 conv, bn, relu --> 3x3 conv, bn --+-- + --> relu
             \                                       /
              +------- 1x1 conv, bn, if needed -----+

    Args:
      filters: channels of both convolutions, and of the output.
      strides: of the first convolution: 1, or 2 to halve height and width.
      **kwargs: see `ResidualBlock`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 5.
    """

    def __init__(self, filters, strides=1, **kwargs):
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
    r"""A 1x1, a 3x3 and a 1x1 convolution with a shortcut: ResNet-50's block.

        x --+-- 1x1, bn, relu --> 3x3, bn, relu --> 1x1, bn --+-- + --> relu
             \                                               /
              +----------- 1x1 conv, bn, if needed ---------+

    Args:
      filters: channels inside the block; it returns four times as many.
      strides: 1, or 2 to halve height and width.
      groups: groups of the 3x3 convolution: ResNeXt, Xie et al., 2016,
        https://arxiv.org/abs/1611.05431.
      base_width: channels of a group inside the block, for 64 filters; more
        than 64 in one group is a Wide ResNet, Zagoruyko and Komodakis, 2016,
        https://arxiv.org/abs/1605.07146.
      first_reduction: divisor of the first convolution's channels: 2 in
        SENet-154.
      stride_site: which convolution has the stride: "3x3" (known as v1.5,
        more accurate) or "1x1", the first one (v1, as in the paper).
      **kwargs: see `ResidualBlock`.

    Raises:
      ValueError: an argument has none of the values above.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 5.
    """

    expansion = 4

    def __init__(
        self,
        filters,
        strides=1,
        groups=1,
        base_width=64,
        first_reduction=1,
        stride_site="3x3",
        **kwargs,
    ):
        super().__init__(filters, strides, **kwargs)
        self.groups = whole_number("groups", groups)
        self.base_width = whole_number("base_width", base_width)
        self.first_reduction = whole_number("first_reduction", first_reduction)
        self.stride_site = one_of("stride_site", stride_site, ("3x3", "1x1"))
        inner = self.filters * self.base_width // 64 * self.groups
        first = inner // self.first_reduction
        if first < 1:
            raise ValueError(
                "`filters` * `base_width` must be at least 64 for each "
                f"`first_reduction`. Received: filters={filters!r}, "
                f"base_width={base_width!r}, "
                f"first_reduction={first_reduction!r}"
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
