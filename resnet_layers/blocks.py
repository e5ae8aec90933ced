"""The two residual blocks, and what they are made of."""

import tensorflow as tf

from resnet_layers.arguments import (
    known_keywords,
    number,
    one_of,
    true_or_false,
    whole_number,
)
from resnet_layers.normalization import BatchNormalization, norm_arguments
from resnet_layers.parts import (
    PaddedConv2D,
    SqueezeExcitation,
    StochasticDepth,
    stochastic_seed,
)
from resnet_layers.phases import in_phase
from resnet_layers.pictures import TakesPictures

# How the shortcut matches an output of another shape: by a convolution
# (option B of He et al., 2015), by average pooling and a convolution (ResNet-D,
# He et al., 2018), or by leaving out pixels and adding channels of zeros
# (option A, the CIFAR nets).
SHORTCUTS = ("projection", "pooled_projection", "zero_padding")


class ResidualBlock(TakesPictures, tf.keras.Model):
    """What both blocks share: the options, the shortcut and the sum.

    A subclass creates the layers of its residual branch in `__init__`, lists
    them in `residual_layers` and applies them in `residual`.
    """

    expansion = 1
    stride_sites = ("3x3",)

    def __init__(
        self,
        filters,
        strides=1,
        dilation=1,
        first_dilation=None,
        stride_site="3x3",
        shortcut="projection",
        squeeze_excitation=False,
        preactivation=False,
        drop_rate=0.0,
        zero_last_gamma=True,
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        synchronized=False,
        seed=None,
        **kwargs,
    ):
        known_keywords(type(self), kwargs)
        super().__init__(**kwargs)
        self.filters = whole_number("filters", filters)
        self.strides = one_of("strides", strides, (1, 2))
        self.dilation = whole_number("dilation", dilation)
        self.first_dilation = whole_number(
            "first_dilation", first_dilation, optional=True
        )
        if first_dilation is None:
            self.first_dilation = self.dilation
        self.stride_site = one_of("stride_site", stride_site, self.stride_sites)
        self.shortcut = one_of("shortcut", shortcut, SHORTCUTS)
        self.squeeze_excitation = true_or_false(
            "squeeze_excitation", squeeze_excitation
        )
        self.preactivation = true_or_false("preactivation", preactivation)
        self.drop_rate = number("drop_rate", drop_rate, at_least=0, below=1)
        self.zero_last_gamma = true_or_false("zero_last_gamma", zero_last_gamma)
        self.norm_momentum, self.norm_epsilon, self.synchronized = (
            norm_arguments(norm_momentum, norm_epsilon, synchronized)
        )
        self.seed = stochastic_seed(seed)
        if (
            self.strides > 1
            and self.first_dilation > 1
            and stride_site == "3x3"
        ):
            raise ValueError(
                "`first_dilation` (`dilation` where it is None) must be 1 for "
                "a 3x3 convolution with strides. Received: "
                f"strides={strides!r}, dilation={dilation!r}, "
                f"first_dilation={first_dilation!r}"
            )

        self.pre_bn = self._bn(name="pre_bn") if self.preactivation else None
        self.attention = None
        if self.squeeze_excitation:
            self.attention = SqueezeExcitation(
                trainable=self.trainable,
                dtype=self.dtype_policy,
                name="attention",
            )
        self.drop = None
        if self.drop_rate:
            self.drop = StochasticDepth(
                self.drop_rate,
                self.seed,
                trainable=self.trainable,
                dtype=self.dtype_policy,
                name="drop",
            )
        self.projection_conv = None
        self.projection_bn = None

    @property
    def out_channels(self):
        """Number of channels that the block returns."""
        return self.filters * self.expansion

    def residual_layers(self):
        """Returns the layers of the residual branch, in order."""
        raise NotImplementedError

    def residual(self, inputs, training=None):
        """Applies the residual branch."""
        raise NotImplementedError

    def build_layers(self, input_shape):
        removes = input_shape[-1] > self.out_channels
        if removes and self.shortcut == "zero_padding":
            raise ValueError(
                "With `shortcut` 'zero_padding', which adds channels, the "
                f"input of {self.name} must have at most {self.out_channels}. "
                f"Received: shape={tuple(input_shape)}"
            )
        if self.pre_bn is not None:
            self.pre_bn.build(input_shape)
        shape = input_shape
        for layer in self.residual_layers():
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        for layer in (self.attention, self.drop):
            if layer is not None:
                layer.build(shape)
        if self._needs_projection(input_shape[-1]):
            pooled = self.shortcut == "pooled_projection"
            self.projection_conv = self._conv(
                self.out_channels,
                1,
                1 if pooled else self.strides,
                use_bias=self.preactivation,
                name="projection_conv",
            )
            self.projection_conv.build(input_shape)
            if not self.preactivation:
                self.projection_bn = self._bn(name="projection_bn")
                self.projection_bn.build(shape)

    def compute_output_shape(self, input_shape):
        shape = input_shape
        for layer in self.residual_layers():
            shape = layer.compute_output_shape(shape)
        return shape

    def call(self, inputs, training=None):
        """Applies the block.

        Args:
          inputs: [batch, height, width, channels].
          training: whether batch norm uses and updates batch statistics.

        Returns:
          [batch, ceil(height / strides), ceil(width / strides), out_channels]
          in the compute dtype of the block's policy.
        """
        # Pictures of integers as well.
        x = inputs = tf.cast(inputs, self.compute_dtype)
        if self.preactivation:
            x = tf.nn.relu(self.pre_bn(x, **in_phase(training)))
        if self.projection_conv is not None:
            shortcut = self._project(x, training)
        else:
            shortcut = self._match_shape(inputs)
        x = self.residual(x, training=training)
        if self.attention is not None:
            x = self.attention(x)
        if self.drop is not None:
            x = self.drop(x, **in_phase(training))
        x = shortcut + x
        return x if self.preactivation else tf.nn.relu(x)

    @property
    def _begins_resolution(self):
        # By a stride, or by the dilation that has taken its place.
        return self.strides != 1 or self.dilation != self.first_dilation

    def _needs_projection(self, in_channels):
        if self.shortcut == "zero_padding":
            return False
        if in_channels != self.out_channels:
            return True
        # Pre-activation nets keep the shortcut free of weights where they can.
        return self._begins_resolution and not self.preactivation

    def _project(self, inputs, training):
        x = inputs
        if self.shortcut == "pooled_projection" and self._begins_resolution:
            if self.strides == 1:
                x = _average_ahead(x, self.first_dilation)
            else:
                x = tf.nn.avg_pool2d(x, self.strides, self.strides, "SAME")
        x = self.projection_conv(x)
        if self.projection_bn is not None:
            x = self.projection_bn(x, **in_phase(training))
        return x

    def _match_shape(self, inputs):
        x = inputs
        if self.strides != 1:
            x = x[:, :: self.strides, :: self.strides]
        missing = self.out_channels - x.shape[-1]
        if missing:
            half = missing // 2
            x = tf.pad(x, [[0, 0], [0, 0], [0, 0], [half, missing - half]])
        return x

    def _conv(self, filters, kernel_size, strides=1, **kwargs):
        # A dtype policy reaches the children only when it is passed to them,
        # and so does being frozen, where they are created later.
        return PaddedConv2D(
            filters,
            kernel_size,
            strides,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            **kwargs,
        )

    def _last_conv(self, kernel_size, **kwargs):
        # It needs a bias where no batch norm follows.
        return self._conv(
            self.out_channels,
            kernel_size,
            use_bias=self.preactivation,
            **kwargs,
        )

    def _bn(self, **kwargs):
        return BatchNormalization(
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            synchronized=self.synchronized,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            **kwargs,
        )

    def _last_bn(self, **kwargs):
        if self.preactivation:
            return None
        # A zero gamma at the end of the residual branch makes the block begin
        # as the identity: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
        gamma = "zeros" if self.zero_last_gamma else "ones"
        return self._bn(gamma_initializer=gamma, **kwargs)


def inner_filters(name, filters, base_width):
    """Returns the channels of one group inside a bottleneck block.

    Args:
      name: what the caller calls its `filters`.
      filters: whole number.
      base_width: whole number, channels of a group for 64 filters.

    Raises:
      ValueError: there would be none.
    """
    inner = filters * base_width // 64
    if inner < 1:
        raise ValueError(
            f"`{name}` * `base_width` must be at least 64. "
            f"Received: {name}={filters!r}, base_width={base_width!r}"
        )
    return inner


def _average_ahead(inputs, distance):
    """Averages every pixel with those `distance` further down and right.

    It is what 2x2 average pooling makes of the pixels that a stride keeps.
    timm has the same but for the last pixels, which it averages with zeros.
    """
    x = inputs
    # Pixels at the end have none ahead: they count twice, that is, alone.
    x = (x + tf.concat([x[:, distance:], x[:, -distance:]], 1)) / 2
    ahead = tf.concat([x[:, :, distance:], x[:, :, -distance:]], 2)
    return (x + ahead) / 2


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34.

    Args:
      filters: channels of both convolutions, and of the output.
      strides: 1, or 2 to halve height and width, in the first convolution.
      **kwargs: the options of `BottleneckBlock`, without `groups`,
        `base_width` and `stride_site`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 5.
    """

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(filters, strides, **kwargs)
        self.conv1 = self._conv(
            self.filters,
            3,
            self.strides,
            dilation_rate=self.first_dilation,
            name="conv1",
        )
        self.bn1 = self._bn(name="bn1")
        self.conv2 = self._last_conv(
            3, dilation_rate=self.dilation, name="conv2"
        )
        self.bn2 = self._last_bn(name="bn2")

    def residual_layers(self):
        layers = (self.conv1, self.bn1, self.conv2)
        return layers if self.bn2 is None else (*layers, self.bn2)

    def residual(self, inputs, training=None):
        x = tf.nn.relu(self.bn1(self.conv1(inputs), **in_phase(training)))
        x = self.conv2(x)
        return x if self.bn2 is None else self.bn2(x, **in_phase(training))


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
      dilation: of the 3x3 convolution.
      first_dilation: of the convolution that takes the stride, or would take
        it, if not `dilation`. With strides of 1, another one than `dilation`
        says that dilation has taken the place of a stride: the shortcut is
        then projected, and pooled, as if there were one.
      stride_site: which convolution takes the stride: "3x3" (known as v1.5,
        more accurate) or "1x1", the first one (v1, as in the paper).
      shortcut: how the shortcut matches another shape: "projection",
        "pooled_projection" (ResNet-D, He et al., 2018,
        https://arxiv.org/abs/1812.01187) or "zero_padding".
      squeeze_excitation: scale channels at the end of the residual branch,
        see `SqueezeExcitation`.
      preactivation: batch norm and ReLU in front of each convolution, none
        after the sum: He et al., 2016, https://arxiv.org/abs/1603.05027.
      drop_rate: probability that the residual branch is left out for an
        example in training, see `StochasticDepth`.
      zero_last_gamma: start the last batch norm's gamma at zero, not one.
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      seed: of the examples that `drop_rate` is about, see `StochasticDepth`.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: an argument has none of the values above.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 5.
    """

    expansion = 4
    stride_sites = ("3x3", "1x1")

    def __init__(
        self,
        filters,
        strides=1,
        groups=1,
        base_width=64,
        stride_site="3x3",
        **kwargs,
    ):
        super().__init__(filters, strides, stride_site=stride_site, **kwargs)
        self.groups = whole_number("groups", groups)
        self.base_width = whole_number("base_width", base_width)
        inner = inner_filters("filters", self.filters, self.base_width)
        inner *= self.groups
        in_1x1 = self.stride_site == "1x1"
        self.conv1 = self._conv(
            inner, 1, self.strides if in_1x1 else 1, name="conv1"
        )
        self.bn1 = self._bn(name="bn1")
        self.conv2 = self._conv(
            inner,
            3,
            1 if in_1x1 else self.strides,
            groups=self.groups,
            dilation_rate=self.dilation if in_1x1 else self.first_dilation,
            name="conv2",
        )
        self.bn2 = self._bn(name="bn2")
        self.conv3 = self._last_conv(1, name="conv3")
        self.bn3 = self._last_bn(name="bn3")

    def residual_layers(self):
        layers = (self.conv1, self.bn1, self.conv2, self.bn2, self.conv3)
        return layers if self.bn3 is None else (*layers, self.bn3)

    def residual(self, inputs, training=None):
        x = tf.nn.relu(self.bn1(self.conv1(inputs), **in_phase(training)))
        x = tf.nn.relu(self.bn2(self.conv2(x), **in_phase(training)))
        x = self.conv3(x)
        return x if self.bn3 is None else self.bn3(x, **in_phase(training))
