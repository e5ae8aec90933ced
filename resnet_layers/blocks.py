"""The residual blocks, and what one's own are made of."""

import tensorflow as tf

from resnet_layers.arguments import one_of, pair, true_or_false, whole_number
from resnet_layers.attention import ATTENTIONS
from resnet_layers.choices import make
from resnet_layers.phases import in_phase
from resnet_layers.pooling import strided_shape
from resnet_layers.shortcuts import SHORTCUTS, new_shortcut
from resnet_layers.stochastic_depth import (
    StochasticDepth,
    drop_rate,
    seed_or_none,
)
from resnet_layers.style import Styled, unchanged


class ResidualBlock(Styled):
    """What all blocks share: the shortcut, the sum, and what stands between.

    A block of one's own makes the layers of its residual branch in `__init__`
    and applies them in `residual`; all else is done here:

        class OneConvolution(ResidualBlock):
            def __init__(self, filters, strides=1, **kwargs):
                super().__init__(filters, strides, **kwargs)
                self.conv1 = self.last_conv(5, strides=self.strides)
                self.bn1 = self.last_norm("bn1")

            def residual(self, x, training=None):
                return self.bn1(self.conv1(x), **in_phase(training))

        model = ResNet(block=OneConvolution, stage_sizes=(2, 2))

    Args:
      filters: channels of the block.
      strides: 1, or 2 to halve height and width; or two numbers for them.
      dilation: of the 3x3 convolutions.
      first_dilation: of the convolution that takes the stride, or would take
        it, if not `dilation`. With strides of 1, another one than `dilation`
        says that dilation has taken the place of a stride: the shortcut is
        then projected, and pooled, as if there were one.
      shortcut: how the shortcut matches another shape: "projection" by a 1x1
        convolution (option B of the paper), "projection_3x3" where there is a
        stride (SENet-154), "pooled_projection" by average pooling and a 1x1
        convolution (ResNet-D, He et al., 2018,
        https://arxiv.org/abs/1812.01187), or "zero_padding" (option A).
      attention: what scales the channels at the end of the residual branch:
        "se" for `SqueezeExcitation`, "eca" for `EfficientChannelAttention`,
        the class of another layer, a dict with one of these as "kind" and
        arguments for it, such as `{"kind": "se", "ratio": 0.25}`, or None.
      stochastic_depth: probability that the residual branch is left out for
        an example in training, see `StochasticDepth`.
      zero_last_gamma: start the last norm's gamma at zero, not one.
      seed: of the examples that `stochastic_depth` is about.
      **kwargs: the style, see `Styled`, and `name`, `dtype` and so on.

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

        self.pre_bn = self.attention = self.drop = unchanged
        if self.preactivation:
            self.pre_bn = self.new_norm("pre_bn")
        self._chosen_attention = attention
        options = {"name": "attention", **self._inherited}
        if attention is not None:
            self.attention = make("attention", attention, ATTENTIONS, **options)
        options["name"] = "drop"
        if self.stochastic_depth:
            self.drop = StochasticDepth(stochastic_depth, self.seed, **options)
        # The stride stands in the convolution, or in what pools after it.
        self.conv_strides, self.pool = self.strides, unchanged
        if self.antialias and self.begins_resolution:
            self.conv_strides = 1
            self.pool = self.new_antialias(self.strides, "antialias")

    @property
    def out_channels(self):
        """Number of channels that the block returns."""
        return self.filters * self.expansion

    @property
    def begins_resolution(self):
        """Whether there is a stride, or dilation has taken its place."""
        return set(self.strides) != {1} or self.dilation != self.first_dilation

    @property
    def projects(self):
        """Whether a built block has a convolution in its shortcut."""
        return self.projection_conv is not unchanged

    def arguments_kept_elsewhere(self):
        kept = super().arguments_kept_elsewhere()
        return {**kept, "attention": self._chosen_attention}

    def residual(self, x, training=None):
        """Applies the residual branch."""
        raise NotImplementedError

    def last_conv(self, kernel_size, **kwargs):
        """Returns the convolution at the end of the residual branch."""
        # It needs a bias where no norm follows.
        kwargs["use_bias"] = self.use_bias and self.preactivation
        return self.new_conv(self.out_channels, kernel_size, **kwargs)

    def last_norm(self, name):
        """Returns the norm behind that convolution."""
        if self.preactivation:
            return unchanged
        # A zero gamma at the end of the residual branch makes the block begin
        # as the identity: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
        gamma = "zeros" if self.zero_last_gamma else "ones"
        return self.new_norm(name, gamma_initializer=gamma)

    def build_layers(self, input_shape):
        self.shortcut_pool, self.projection_conv, self.projection_bn = (
            new_shortcut(self, input_shape)
        )
        super().build_layers(input_shape)

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
        phase = in_phase(training)
        # Pictures of integers as well.
        x = inputs = tf.cast(inputs, self.compute_dtype)
        if self.preactivation:
            x = self.activation(self.pre_bn(inputs, **phase))
        shortcut = self.shortcut_pool(x if self.projects else inputs)
        shortcut = self.projection_bn(self.projection_conv(shortcut), **phase)
        x = self.residual(x, **phase)
        x = shortcut + self.drop(self.attention(x, **phase), **phase)
        return x if self.preactivation else self.activation(x)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34.

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
        self.conv2 = self.last_conv(
            3, dilation_rate=self.dilation, name="conv2"
        )
        self.bn2 = self.last_norm("bn2")

    def residual(self, x, training=None):
        phase = in_phase(training)
        x = self.activation(self.bn1(self.conv1(x), **phase))
        return self.bn2(self.conv2(self.pool(x)), **phase)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BottleneckBlock(ResidualBlock):
    """A 1x1, a 3x3 and a 1x1 convolution with a shortcut: ResNet-50's block.

    Args:
      filters: channels inside the block; it returns four times as many.
      strides: 1, or 2 to halve height and width.
      groups: groups of the 3x3 convolution: ResNeXt, Xie et al., 2016,
        https://arxiv.org/abs/1611.05431.
      base_width: channels of a group inside the block, for 64 filters; more
        than 64 in one group is a Wide ResNet, Zagoruyko and Komodakis, 2016,
        https://arxiv.org/abs/1605.07146.
      first_reduction: by what the channels of the first convolution are
        divided: 2 in SENet-154.
      stride_site: which convolution takes the stride: "3x3" (known as v1.5,
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
        self.conv3 = self.last_conv(1, name="conv3")
        self.bn3 = self.last_norm("bn3")

    def residual(self, x, training=None):
        phase = in_phase(training)
        x = self.activation(self.bn1(self.conv1(x), **phase))
        x = self.activation(self.bn2(self.conv2(x), **phase))
        return self.bn3(self.conv3(self.pool(x)), **phase)
