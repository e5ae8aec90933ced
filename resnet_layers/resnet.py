"""The ResNets that there are, and how they are put together."""

import random
from functools import partial

import tensorflow as tf

from resnet_layers.arguments import (
    keywords,
    known_keywords,
    number,
    one_of,
    own_keywords,
    true_or_false,
    whole_number,
    whole_numbers,
)
from resnet_layers.blocks import BasicBlock, BottleneckBlock, inner_filters
from resnet_layers.normalization import BatchNormalization, norm_arguments
from resnet_layers.parts import PaddedConv2D, stochastic_seed
from resnet_layers.phases import in_phase
from resnet_layers.pictures import TakesPictures, picture_error

BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}

# What the stem does to a picture: kernel sizes, stride of the first
# convolution, max-pooling.
STEMS = {
    "imagenet": {"kernel_sizes": (7,), "strides": 2, "pool": True},
    "deep": {"kernel_sizes": (3, 3, 3), "strides": 2, "pool": True},
    "small": {"kernel_sizes": (3,), "strides": 1, "pool": False},
}

DOWNSAMPLINGS = ("first", "last")

# What a ResNet says to each of its blocks on its own.
SET_BY_RESNET = (
    "filters",
    "strides",
    "dilation",
    "first_dilation",
    "drop_rate",
    "seed",
)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class Stem(TakesPictures, tf.keras.Model):
    """The layers in front of the first stage: convolution, norm, ReLU, pool.

    Args:
      filters: number of output channels.
      kind: "imagenet" (7x7 with stride 2, then 3x3 max-pooling with stride
        2), "deep" (ResNet-D: three 3x3 convolutions in place of the 7x7, the
        first two of half the filters) or "small" (3x3 with stride 1, no
        pooling; for pictures of up to about 64 x 64).
      preactivation: leave norm and ReLU behind the last convolution to the
        first block.
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      **kwargs: `name`, `dtype` and so on, for `keras.Model`.

    Raises:
      ValueError: an argument has none of the values possible.
    """

    def __init__(
        self,
        filters=64,
        kind="imagenet",
        preactivation=False,
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        synchronized=False,
        **kwargs,
    ):
        known_keywords(type(self), kwargs)
        super().__init__(**kwargs)
        self.kind = one_of("kind", kind, STEMS)
        self.filters = whole_number(
            "filters", filters, at_least=_least_filters(kind)
        )
        self.preactivation = true_or_false("preactivation", preactivation)
        self.norm_momentum, self.norm_epsilon, self.synchronized = (
            norm_arguments(norm_momentum, norm_epsilon, synchronized)
        )
        row = STEMS[kind]
        self.reduction = _stem_reduction(kind)
        last = len(row["kernel_sizes"]) - 1
        self.convs = tuple(
            PaddedConv2D(
                self.filters if index == last else self.filters // 2,
                kernel_size,
                row["strides"] if index == 0 else 1,
                use_bias=self.preactivation and index == last,
                trainable=self.trainable,
                dtype=self.dtype_policy,
                name=f"conv{index + 1}",
            )
            for index, kernel_size in enumerate(row["kernel_sizes"])
        )
        self.bns = tuple(
            BatchNormalization(
                momentum=self.norm_momentum,
                epsilon=self.norm_epsilon,
                synchronized=self.synchronized,
                trainable=self.trainable,
                dtype=self.dtype_policy,
                name=f"bn{index + 1}",
            )
            for index in range(last if preactivation else last + 1)
        )
        self.pool = None
        if row["pool"]:
            self.pool = tf.keras.layers.MaxPooling2D(
                3,
                2,
                # Else it takes what Keras is set to.
                data_format="channels_last",
                dtype=self.dtype_policy,
                name="pool",
            )

    def build_layers(self, input_shape):
        _, rows, columns, channels = input_shape
        if rows == 3 < min(columns or 0, channels):
            raise picture_error(self, input_shape, "such as (None, 32, 32, 3)")
        shape = input_shape
        for index, conv in enumerate(self.convs):
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
            if index < len(self.bns):
                self.bns[index].build(shape)

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
        # Pictures of integers as well.
        x = tf.cast(inputs, self.compute_dtype)
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if index < len(self.bns):
                x = tf.nn.relu(self.bns[index](x, **in_phase(training)))
        if self.pool is not None:
            # Zeros, not -inf. After a ReLU it is the same, and without one it
            # is what keras.applications does.
            x = self.pool(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))
        return x


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ResNet(TakesPictures, tf.keras.Model):
    """A residual network: stem, stages of blocks, pooling, classifier.

    Every stage has twice the filters of the one before, and half its height
    and width.

    Args:
      block: "basic" or "bottleneck".
      stage_sizes: number of blocks in each stage.
      num_classes: number of logits; None for no classifier, so that the model
        returns the mean of the last feature map.
      width: filters of the stem and of the blocks of the first stage; 32
        makes every layer of a ResNet-50 half as wide.
      stem: "imagenet", "deep" or "small", see `Stem`.
      downsample: which block takes the stride: the "first" of every stage but
        the first, or the "last" of every stage but the last.
      output_stride: how many pixels of the input's side make one of the last
        stage's, from what the stem makes (4) by doublings to what stem and
        stages make together (32). Where it is smaller than that, dilations
        replace strides, for segmentation. None for strides alone.
      stochastic_depth: drop rate of the last block; the others' rise to it
        evenly from 0. See `StochasticDepth`.
      preactivation: see `BottleneckBlock`.
      norm_momentum: weight of the old value in batch norm's moving statistics.
      norm_epsilon: added to the variance by batch norm.
      synchronized: compute batch statistics over all replicas.
      name: of the model.
      dtype: policy of the model and all its layers.
      trainable: see `keras.Model`.
      seed: int that the blocks' seeds of stochastic depth follow from, or None
        to draw them.
      **block_options: `groups`, `base_width`, `stride_site`, `shortcut`,
        `squeeze_excitation` and `zero_last_gamma`, see `BottleneckBlock`.

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
        downsample="first",
        output_stride=None,
        stochastic_depth=0.0,
        preactivation=False,
        norm_momentum=0.9,
        norm_epsilon=1e-5,
        synchronized=False,
        name=None,
        dtype=None,
        trainable=True,
        seed=None,
        **block_options,
    ):
        one_of("block", block, BLOCKS)
        block_keywords = [
            name
            for name in keywords(BLOCKS[block])
            if name not in (*SET_BY_RESNET, *keywords(ResNet))
        ]
        known_keywords(
            ResNet, block_options, own_keywords(ResNet) + block_keywords
        )
        super().__init__(name=name, dtype=dtype)
        self.block = block
        self.stage_sizes = whole_numbers("stage_sizes", stage_sizes)
        self.num_classes = whole_number(
            "num_classes", num_classes, optional=True
        )
        one_of("stem", stem, STEMS)
        self.width = whole_number("width", width, at_least=_least_filters(stem))
        self.downsample = one_of("downsample", downsample, DOWNSAMPLINGS)
        reductions = [
            _stem_reduction(stem) * 2**stage
            for stage in range(len(self.stage_sizes))
        ]
        self.output_stride = one_of(
            "output_stride", output_stride, (None, *reductions)
        )
        self.stochastic_depth = number(
            "stochastic_depth", stochastic_depth, at_least=0, below=1
        )
        self.seed = stochastic_seed(seed)
        self.preactivation = true_or_false("preactivation", preactivation)
        self.norm_momentum, self.norm_epsilon, self.synchronized = (
            norm_arguments(norm_momentum, norm_epsilon, synchronized)
        )
        true_or_false("trainable", trainable)
        if "base_width" in block_options:
            # The blocks would speak of filters.
            base_width = whole_number("base_width", block_options["base_width"])
            inner_filters("width", self.width, base_width)

        norm = {
            "norm_momentum": self.norm_momentum,
            "norm_epsilon": self.norm_epsilon,
            "synchronized": self.synchronized,
        }
        self.stem = Stem(
            self.width,
            stem,
            self.preactivation,
            **norm,
            dtype=self.dtype_policy,
            name="stem",
        )
        # A tuple: what hangs in a list or a dict of a Keras model is left out
        # of tf.train.Checkpoint without a word.
        self.blocks = tuple(
            BLOCKS[block](
                filters=self.width * 2**stage,
                **spacing,
                drop_rate=drop_rate,
                seed=block_seed,
                preactivation=self.preactivation,
                **norm,
                **block_options,
                dtype=self.dtype_policy,
                name=f"stage{stage + 1}_block{index + 1}",
            )
            for (stage, index), spacing, drop_rate, block_seed in zip(
                self._positions(),
                self._spacings(),
                self._drop_rates(),
                self._seeds(),
                strict=True,
            )
        )
        # As the blocks keep them: numbers are Python's own.
        self.block_options = {
            option: getattr(self.blocks[0], option) for option in block_options
        }
        self.post_bn = None
        if self.preactivation:
            self.post_bn = BatchNormalization(
                momentum=self.norm_momentum,
                epsilon=self.norm_epsilon,
                synchronized=self.synchronized,
                dtype=self.dtype_policy,
                name="post_bn",
            )
        self.head = None
        if self.num_classes is not None:
            # Logits in the precision of the variables, so that the loss is
            # exact under mixed precision.
            self.head = tf.keras.layers.Dense(
                self.num_classes,
                kernel_initializer=tf.keras.initializers.RandomNormal(
                    stddev=0.01
                ),
                dtype=self.dtype_policy.variable_dtype,
                name="head",
            )
        # Reaches all layers, and through the blocks what these build later.
        self.trainable = bool(trainable)

    @property
    def reduction(self):
        """How many pixels of the input's side make one of the last stage's."""
        reduction = self.stem.reduction
        for block in self.blocks:
            reduction *= block.strides
        return reduction

    def build_layers(self, input_shape):
        shape = input_shape
        for layer in (self.stem, *self.blocks):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if self.post_bn is not None:
            self.post_bn.build(shape)
        if self.head is not None:
            self.head.build((shape[0], shape[-1]))

    def compute_output_shape(self, input_shape):
        if self.num_classes is None:
            return input_shape[0], self.blocks[-1].out_channels
        return input_shape[0], self.num_classes

    def compute_output_spec(self, inputs, training=None):
        # Not the default, which takes the policy's compute dtype.
        shape = self.compute_output_shape(inputs.shape)
        return tf.keras.KerasTensor(shape, dtype=self.variable_dtype)

    def call(self, inputs, training=None):
        """Classifies pictures.

        Args:
          inputs: [batch, height, width, channels], normalised as in training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          Logits, [batch, num_classes], in the policy's variable dtype; without
          a classifier the embedding, [batch, channels].
        """
        x = self.embed(inputs, training=training)
        return x if self.head is None else self.head(x)

    def embed(self, inputs, training=None):
        """Returns the mean of the last feature map: what the classifier sees.

        It takes tensors, and `keras.Input`s as well, like `features`.

        Args:
          inputs: [batch, height, width, channels], normalised as in training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          [batch, channels] in the policy's variable dtype, whether or not the
          model has a classifier.
        """
        x = self.features(inputs, training=training)[-1]
        # The mean of thousands of numbers wants more digits than bfloat16 has.
        x = tf.keras.ops.cast(x, self.variable_dtype)
        return tf.keras.ops.mean(x, axis=[1, 2])

    def features(self, inputs, training=None):
        """Returns the feature maps of all stages: C2 to C5, the pyramid.

        It takes tensors, and `keras.Input`s as well:

            inputs = tf.keras.Input([None, None, 3])
            backbone = tf.keras.Model(inputs, resnet.features(inputs))

        Its layers are then named after the net, "resnet50_stage1_block1", so
        that a model may have two: nets of one variant need names of their own.

        Args:
          inputs: [batch, height, width, channels].
          training: whether batch norm uses and updates batch statistics.

        Returns:
          A list with a tensor [batch, height, width, channels] for every
          stage, each before the next stage's stride. With `preactivation`,
          only the last one has been through norm and ReLU.
        """
        if not self.built:
            self.build(inputs.shape)
        if isinstance(inputs, tf.keras.KerasTensor):
            self._name_layers_apart()
        x = self.stem(inputs, **in_phase(training))
        maps = []
        boundaries = self._boundaries()
        for position, block in zip(self._positions(), self.blocks, strict=True):
            if position in boundaries:
                maps.append(x)
            x = block(x, **in_phase(training))
        if self.post_bn is not None:
            x = tf.keras.ops.relu(self.post_bn(x, **in_phase(training)))
        return [*maps, x]

    @property
    def parts(self):
        """Names that `freeze` takes, from the input to the classifier."""
        stages = [f"stage{i + 1}" for i in range(len(self.stage_sizes))]
        return ["stem", *stages, "backbone"]

    def freeze(self, part):
        """Keeps everything from the input to a part as it is in training.

        Neither weights nor batch-norm statistics move, and no gradients are
        computed for them. Call it before the optimizer is built. To undo it,
        set `trainable` to False and then to True: where it is True already,
        Keras does nothing.

        Args:
          part: one of `parts`; "stage2", say, freezes the stem and the first
            two stages, "backbone" all but the classifier.

        Raises:
          ValueError: `part` is none of those.
        """
        one_of("part", part, self.parts)
        count = self.parts.index(part)
        self.stem.trainable = False
        for (stage, _), block in zip(
            self._positions(), self.blocks, strict=True
        ):
            if stage < count:
                block.trainable = False
        if part == "backbone" and self.post_bn is not None:
            self.post_bn.trainable = False

    def freeze_batch_norm(self):
        """Keeps all batch norms, parameters and statistics, as they are.

        Raises:
          ValueError: the model is not built, and not all of them are there.
        """
        if not self.built:
            raise ValueError(
                f"{self.name} must be built before its batch norms are frozen"
            )
        for layer in self._flatten_layers():
            if isinstance(layer, BatchNormalization):
                layer.trainable = False

    def arguments_kept_elsewhere(self):
        return {"stem": self.stem.kind, **self.block_options}

    def _name_layers_apart(self):
        """Puts the model's name in front of its layers', once.

        A functional model takes no name twice, and may be made of two nets.
        Variables keep the paths that they were built with.
        """
        prefix = f"{self.name}_"
        for layer in self.layers:
            layer.name = prefix + layer.name.removeprefix(prefix)

    def _positions(self):
        """Returns the (stage, index within it) of every block."""
        return [
            (stage, index)
            for stage, size in enumerate(self.stage_sizes)
            for index in range(size)
        ]

    def _boundaries(self):
        """Returns the positions of the blocks that begin a new resolution."""
        if self.downsample == "first":
            return [(stage, 0) for stage in range(1, len(self.stage_sizes))]
        return [
            (stage, size - 1)
            for stage, size in enumerate(self.stage_sizes[:-1])
        ]

    def _spacings(self):
        """Returns the strides and dilations of every block, as arguments."""
        reduction, dilation = self.stem.reduction, 1
        limit = self.output_stride or float("inf")
        spacings = []
        boundaries = self._boundaries()
        for position in self._positions():
            spacing = {"dilation": dilation}
            if position in boundaries:
                if reduction * 2 <= limit:
                    reduction *= 2
                    spacing["strides"] = 2
                else:
                    # What would come after the stride looks twice as far.
                    spacing["first_dilation"] = dilation
                    dilation *= 2
                    spacing["dilation"] = dilation
            spacings.append(spacing)
        return spacings

    def _drop_rates(self):
        """Returns the drop rate of every block, from 0 to the last one's."""
        count = sum(self.stage_sizes)
        return [
            self.stochastic_depth * index / max(count - 1, 1)
            for index in range(count)
        ]

    def _seeds(self):
        """Returns a seed for every block, or None for each to draw its own."""
        count = sum(self.stage_sizes)
        if self.seed is None:
            return [None] * count
        numbers = random.Random(self.seed)
        return [numbers.randrange(2**31) for _ in range(count)]


def _stem_reduction(stem):
    """Returns how many pixels of the input's side make one of the stem's."""
    return STEMS[stem]["strides"] * (2 if STEMS[stem]["pool"] else 1)


def _least_filters(stem):
    """Returns how many filters a stem needs: "deep" halves them."""
    return 1 if len(STEMS[stem]["kernel_sizes"]) == 1 else 2


def _variant(name, block, stage_sizes, **options):
    return partial(
        ResNet, block=block, stage_sizes=stage_sizes, name=name, **options
    )


_D = {"stem": "deep", "shortcut": "pooled_projection"}
_V1 = {"stride_site": "1x1"}
_KERAS = {"norm_momentum": 0.99, "norm_epsilon": 1.001e-5}
_KERAS_V1 = {**_V1, **_KERAS}
_KERAS_V2 = {"preactivation": True, "downsample": "last", **_KERAS}
_CIFAR = {
    "num_classes": 10,
    "width": 16,
    "stem": "small",
    "shortcut": "zero_padding",
}

# Name -> constructor. Further keywords override the row:
#   VARIANTS["resnet50"](num_classes=37, stride_site="1x1")
# v1 is the paper's stride site, *_keras and *_v2 are keras.applications' nets,
# d is He et al., 2018, resnet20 to resnet110 are the paper's CIFAR nets.
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
        _variant("resnet50_v1", "bottleneck", (3, 4, 6, 3), **_V1),
        _variant(
            "resnet101_v1", "bottleneck", (3, 4, 23, 3), stride_site="1x1"
        ),
        _variant(
            "resnet152_v1", "bottleneck", (3, 8, 36, 3), stride_site="1x1"
        ),
        _variant("resnet50_keras", "bottleneck", (3, 4, 6, 3), **_KERAS_V1),
        _variant("resnet101_keras", "bottleneck", (3, 4, 23, 3), **_KERAS_V1),
        _variant("resnet152_keras", "bottleneck", (3, 8, 36, 3), **_KERAS_V1),
        _variant("resnet50_v2", "bottleneck", (3, 4, 6, 3), **_KERAS_V2),
        _variant("resnet101_v2", "bottleneck", (3, 4, 23, 3), **_KERAS_V2),
        _variant("resnet152_v2", "bottleneck", (3, 8, 36, 3), **_KERAS_V2),
        _variant(
            "resnext50_32x4d",
            "bottleneck",
            (3, 4, 6, 3),
            groups=32,
            base_width=4,
        ),
        _variant(
            "resnext101_32x8d",
            "bottleneck",
            (3, 4, 23, 3),
            groups=32,
            base_width=8,
        ),
        _variant("wide_resnet50_2", "bottleneck", (3, 4, 6, 3), base_width=128),
        _variant(
            "wide_resnet101_2", "bottleneck", (3, 4, 23, 3), base_width=128
        ),
        _variant("resnet18d", "basic", (2, 2, 2, 2), **_D),
        _variant("resnet34d", "basic", (3, 4, 6, 3), **_D),
        _variant("resnet50d", "bottleneck", (3, 4, 6, 3), **_D),
        _variant("resnet101d", "bottleneck", (3, 4, 23, 3), **_D),
        _variant(
            "seresnet50", "bottleneck", (3, 4, 6, 3), squeeze_excitation=True
        ),
        _variant("resnet20", "basic", (3, 3, 3), **_CIFAR),
        _variant("resnet32", "basic", (5, 5, 5), **_CIFAR),
        _variant("resnet44", "basic", (7, 7, 7), **_CIFAR),
        _variant("resnet56", "basic", (9, 9, 9), **_CIFAR),
        _variant("resnet110", "basic", (18, 18, 18), **_CIFAR),
    )
}
