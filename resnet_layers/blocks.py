"""This file answers: what is a residual block made of?"""

import tensorflow as tf

from resnet_layers.normalization import BatchNormalization

# He et al., "Delving Deep into Rectifiers", 2015,
# https://arxiv.org/abs/1502.01852, with the fan-out that torchvision and timm
# take: the variance of the gradients stays the same from layer to layer.
HE_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {
        "scale": 2.0,
        "mode": "fan_out",
        "distribution": "untruncated_normal",
    },
}


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class PaddedConv2D(tf.keras.layers.Conv2D):
    """A convolution without bias that pads both sides of a picture alike.

    With stride 2, Keras's own "same" padding puts its zeros on the right and
    at the bottom only, and weights trained elsewhere see their pictures
    shifted by a pixel. Here `(kernel_size - 1) // 2` zeros go on every side,
    as in PyTorch. Output shapes are those of "same".

    Args:
      filters: number of output channels.
      kernel_size: an odd number.
      strides: step between outputs, for both directions.
      **kwargs: `keras.layers.Conv2D`'s other arguments.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        use_bias=False,
        kernel_initializer=HE_INITIALIZER,
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        if padding != "same" or any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                "PaddedConv2D takes an odd kernel_size and padding='same'. "
                f"Received: kernel_size={kernel_size}, padding={padding!r}"
            )
        if self.data_format != "channels_last":
            raise ValueError(
                "PaddedConv2D takes data_format='channels_last'. "
                f"Received: data_format={self.data_format!r}"
            )

    def convolution_op(self, inputs, kernel):
        if set(self.strides) == {1}:
            return super().convolution_op(inputs, kernel)
        margins = [
            dilation * (size - 1) // 2
            for size, dilation in zip(
                self.kernel_size, self.dilation_rate, strict=True
            )
        ]
        if any(margins):
            rows, columns = margins
            inputs = tf.pad(
                inputs, [[0, 0], [rows, rows], [columns, columns], [0, 0]]
            )
        return tf.nn.convolution(
            inputs,
            kernel,
            strides=self.strides,
            padding="VALID",
            dilations=self.dilation_rate,
        )


class ResidualBlock(tf.keras.Model):
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
        stride_site="3x3",
        zero_last_gamma=True,
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        synchronized=False,
        **kwargs,
    ):
        if not (isinstance(filters, int) and filters > 0):
            raise ValueError(
                "`filters` must be a positive integer. "
                f"Received: filters={filters!r}"
            )
        if strides not in (1, 2):
            raise ValueError(
                f"`strides` must be 1 or 2. Received: strides={strides!r}"
            )
        if stride_site not in self.stride_sites:
            raise ValueError(
                f"`stride_site` must be one of {self.stride_sites}. "
                f"Received: stride_site={stride_site!r}"
            )
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.stride_site = stride_site
        self.zero_last_gamma = zero_last_gamma
        self.norm_momentum = norm_momentum
        self.norm_epsilon = norm_epsilon
        self.synchronized = synchronized
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

    def build(self, input_shape):
        shape = input_shape
        for layer in self.residual_layers():
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        # The identity wherever shapes allow it, else a projection: option B
        # of He et al., 2015, https://arxiv.org/abs/1512.03385.
        if self.strides != 1 or input_shape[-1] != self.out_channels:
            self.projection_conv = self._conv(
                self.out_channels, 1, self.strides, name="projection_conv"
            )
            self.projection_bn = self._bn(name="projection_bn")
            self.projection_conv.build(input_shape)
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
        shortcut = inputs
        if self.projection_conv is not None:
            shortcut = self.projection_conv(inputs)
            shortcut = self.projection_bn(shortcut, training=training)
        return tf.nn.relu(shortcut + self.residual(inputs, training=training))

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "stride_site": self.stride_site,
            "zero_last_gamma": self.zero_last_gamma,
            "norm_momentum": self.norm_momentum,
            "norm_epsilon": self.norm_epsilon,
            "synchronized": self.synchronized,
        }

    def _conv(self, filters, kernel_size, strides=1, **kwargs):
        # A dtype policy reaches the children only when it is passed to them.
        return PaddedConv2D(
            filters, kernel_size, strides, dtype=self.dtype_policy, **kwargs
        )

    def _bn(self, last=False, **kwargs):
        # A zero gamma at the end of the residual branch makes the block begin
        # as the identity: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
        zero = last and self.zero_last_gamma
        return BatchNormalization(
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            synchronized=self.synchronized,
            gamma_initializer="zeros" if zero else "ones",
            dtype=self.dtype_policy,
            **kwargs,
        )


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34.

    Args:
      filters: channels of both convolutions, and of the output.
      strides: 1, or 2 to halve height and width, in the first convolution.
      stride_site: "3x3"; the block has no other site.
      zero_last_gamma: start the last batch norm's gamma at zero, not one.
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: an argument has none of the values above.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 5.
    """

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(filters, strides, **kwargs)
        self.conv1 = self._conv(filters, 3, strides, name="conv1")
        self.bn1 = self._bn(name="bn1")
        self.conv2 = self._conv(filters, 3, name="conv2")
        self.bn2 = self._bn(last=True, name="bn2")

    def residual_layers(self):
        return self.conv1, self.bn1, self.conv2, self.bn2

    def residual(self, inputs, training=None):
        x = tf.nn.relu(self.bn1(self.conv1(inputs), training=training))
        return self.bn2(self.conv2(x), training=training)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class BottleneckBlock(ResidualBlock):
    """A 1x1, a 3x3 and a 1x1 convolution with a shortcut: ResNet-50's block.

    Args:
      filters: channels inside the block; it returns four times as many.
      strides: 1, or 2 to halve height and width.
      stride_site: which convolution takes the stride: "3x3" (known as v1.5,
        more accurate) or "1x1", the first one (v1, as in the paper).
      zero_last_gamma: start the last batch norm's gamma at zero, not one.
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: an argument has none of the values above.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, figure 5.
    """

    expansion = 4
    stride_sites = ("3x3", "1x1")

    def __init__(self, filters, strides=1, stride_site="3x3", **kwargs):
        super().__init__(filters, strides, stride_site, **kwargs)
        in_1x1 = stride_site == "1x1"
        self.conv1 = self._conv(
            filters, 1, strides if in_1x1 else 1, name="conv1"
        )
        self.bn1 = self._bn(name="bn1")
        self.conv2 = self._conv(
            filters, 3, 1 if in_1x1 else strides, name="conv2"
        )
        self.bn2 = self._bn(name="bn2")
        self.conv3 = self._conv(self.out_channels, 1, name="conv3")
        self.bn3 = self._bn(last=True, name="bn3")

    def residual_layers(self):
        return (
            self.conv1,
            self.bn1,
            self.conv2,
            self.bn2,
            self.conv3,
            self.bn3,
        )

    def residual(self, inputs, training=None):
        x = tf.nn.relu(self.bn1(self.conv1(inputs), training=training))
        x = tf.nn.relu(self.bn2(self.conv2(x), training=training))
        return self.bn3(self.conv3(x), training=training)
