"""This file answers: which ResNets are there, and how are they put together?"""

from functools import partial

import tensorflow as tf

from resnet_layers.blocks import BasicBlock, BottleneckBlock, PaddedConv2D
from resnet_layers.normalization import BatchNormalization

BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}

# What the stem does to a picture: kernel size, stride, max-pooling.
STEMS = {
    "imagenet": {"kernel_size": 7, "strides": 2, "pool": True},
    "small": {"kernel_size": 3, "strides": 1, "pool": False},
}


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class Stem(tf.keras.Model):
    """The layers in front of the first stage: convolution, norm, ReLU, pool.

    Args:
      filters: number of output channels.
      kind: "imagenet" (7x7 with stride 2, then 3x3 max-pooling with stride 2)
        or "small" (3x3 with stride 1, no pooling; for pictures of up to about
        64 x 64).
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: `kind` is not a row of `STEMS`.
    """

    def __init__(
        self,
        filters=64,
        kind="imagenet",
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        synchronized=False,
        **kwargs,
    ):
        if kind not in STEMS:
            raise ValueError(
                f"`kind` must be one of {tuple(STEMS)}. Received: kind={kind!r}"
            )
        super().__init__(**kwargs)
        self.filters = filters
        self.kind = kind
        self.norm_momentum = norm_momentum
        self.norm_epsilon = norm_epsilon
        self.synchronized = synchronized
        row = STEMS[kind]
        self.reduction = row["strides"] * (2 if row["pool"] else 1)
        self.conv = PaddedConv2D(
            filters,
            row["kernel_size"],
            row["strides"],
            dtype=self.dtype_policy,
            name="conv",
        )
        self.bn = BatchNormalization(
            momentum=norm_momentum,
            epsilon=norm_epsilon,
            synchronized=synchronized,
            dtype=self.dtype_policy,
            name="bn",
        )
        self.pool = None
        if row["pool"]:
            self.pool = tf.keras.layers.MaxPooling2D(
                3, 2, dtype=self.dtype_policy, name="pool"
            )

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.bn.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        sides = [
            side if side is None else -(-side // self.reduction)
            for side in (height, width)
        ]
        return batch, *sides, self.filters

    def call(self, inputs, training=None):
        """Maps [batch, height, width, channels] pictures to features.

        Returns:
          [batch, ceil(height / reduction), ceil(width / reduction), filters].
        """
        x = tf.nn.relu(self.bn(self.conv(inputs), training=training))
        if self.pool is not None:
            # A margin of zeros is as good as one of -inf, after a ReLU.
            x = self.pool(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))
        return x

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kind": self.kind,
            "norm_momentum": self.norm_momentum,
            "norm_epsilon": self.norm_epsilon,
            "synchronized": self.synchronized,
        }


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ResNet(tf.keras.Model):
    """A residual network: stem, stages of blocks, pooling, classifier.

    The first block of every stage but the first halves height and width; every
    stage doubles the filters of the one before.

    Args:
      block: "basic" or "bottleneck".
      stage_sizes: number of blocks in each stage.
      num_classes: number of logits.
      width: filters of the stem and of the blocks of the first stage.
      stem: "imagenet" or "small", see `Stem`.
      stride_site: "3x3" (v1.5) or "1x1" (v1), see `BottleneckBlock`.
      zero_last_gamma: let every block begin as the identity.
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: an argument has none of the values above.

    Source: He et al., 2015, https://arxiv.org/abs/1512.03385, table 1.
    """

    def __init__(
        self,
        block="bottleneck",
        stage_sizes=(3, 4, 6, 3),
        num_classes=1000,
        width=64,
        stem="imagenet",
        stride_site="3x3",
        zero_last_gamma=True,
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        synchronized=False,
        **kwargs,
    ):
        if block not in BLOCKS:
            raise ValueError(
                f"`block` must be one of {tuple(BLOCKS)}. "
                f"Received: block={block!r}"
            )
        if not stage_sizes or min(stage_sizes) < 1:
            raise ValueError(
                "`stage_sizes` must hold at least one number, all positive. "
                f"Received: stage_sizes={stage_sizes!r}"
            )
        if not (isinstance(num_classes, int) and num_classes > 0):
            raise ValueError(
                "`num_classes` must be a positive integer. "
                f"Received: num_classes={num_classes!r}"
            )
        super().__init__(**kwargs)
        self.block = block
        self.stage_sizes = tuple(stage_sizes)
        self.num_classes = num_classes
        self.width = width
        self.stride_site = stride_site
        self.zero_last_gamma = zero_last_gamma
        self.norm_momentum = norm_momentum
        self.norm_epsilon = norm_epsilon
        self.synchronized = synchronized

        norm = {
            "norm_momentum": norm_momentum,
            "norm_epsilon": norm_epsilon,
            "synchronized": synchronized,
        }
        self.stem = Stem(
            width, stem, **norm, dtype=self.dtype_policy, name="stem"
        )
        # A tuple: what hangs in a list or a dict of a Keras model is left out
        # of tf.train.Checkpoint without a word.
        self.blocks = tuple(
            BLOCKS[block](
                filters=width * 2**stage,
                strides=2 if stage > 0 and index == 0 else 1,
                stride_site=stride_site,
                zero_last_gamma=zero_last_gamma,
                **norm,
                dtype=self.dtype_policy,
                name=f"stage{stage + 1}_block{index + 1}",
            )
            for stage, size in enumerate(self.stage_sizes)
            for index in range(size)
        )
        # Logits in the precision of the variables, so that the loss is exact
        # under mixed precision.
        self.head = tf.keras.layers.Dense(
            num_classes,
            kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
            dtype=self.dtype_policy.variable_dtype,
            name="head",
        )

    @property
    def reduction(self):
        """How many pixels of the input's side make one of the last stage's."""
        return self.stem.reduction * 2 ** (len(self.stage_sizes) - 1)

    def build(self, input_shape):
        shape = input_shape
        for layer in (self.stem, *self.blocks):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.head.build((shape[0], shape[-1]))

    def compute_output_shape(self, input_shape):
        return input_shape[0], self.num_classes

    def compute_output_spec(self, inputs, training=None):
        # Not the default, which takes the policy's compute dtype.
        shape = self.compute_output_shape(inputs.shape)
        return tf.keras.KerasTensor(shape, dtype=self.head.compute_dtype)

    def call(self, inputs, training=None):
        """Classifies pictures.

        Args:
          inputs: [batch, height, width, channels], normalised as in training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          Logits, [batch, num_classes], in the policy's variable dtype.
        """
        x = self.stem(inputs, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        # The mean of thousands of numbers wants more digits than bfloat16 has.
        x = tf.reduce_mean(tf.cast(x, self.head.compute_dtype), axis=[1, 2])
        return self.head(x)

    def get_config(self):
        return {
            **super().get_config(),
            "block": self.block,
            "stage_sizes": self.stage_sizes,
            "num_classes": self.num_classes,
            "width": self.width,
            "stem": self.stem.kind,
            "stride_site": self.stride_site,
            "zero_last_gamma": self.zero_last_gamma,
            "norm_momentum": self.norm_momentum,
            "norm_epsilon": self.norm_epsilon,
            "synchronized": self.synchronized,
        }


def _variant(name, block, stage_sizes, **options):
    return partial(
        ResNet, block=block, stage_sizes=stage_sizes, name=name, **options
    )


# Name -> constructor. Further keywords override the row:
#   VARIANTS["resnet50"](num_classes=37, stride_site="1x1")
VARIANTS = {
    variant.keywords["name"]: variant
    for variant in (
        _variant(
            "resnet_tiny", "bottleneck", (1, 1, 1), width=16, stem="small"
        ),
        _variant("resnet18", "basic", (2, 2, 2, 2)),
        _variant("resnet34", "basic", (3, 4, 6, 3)),
        _variant("resnet50", "bottleneck", (3, 4, 6, 3)),
        _variant("resnet101", "bottleneck", (3, 4, 23, 3)),
        _variant("resnet152", "bottleneck", (3, 8, 36, 3)),
    )
}
