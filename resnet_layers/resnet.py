"""ResNets: stem, stages of blocks, pooling, classifier."""

import difflib
import functools
import math
import random
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.arguments import (
    find_class,
    one_of,
    refusal,
    true_or_false,
    whole_number,
    whole_numbers,
)
from resnet_layers.base import ConvModel, identity, resolve_training
from resnet_layers.blocks import BasicBlock, BottleneckBlock
from resnet_layers.convolutions import PaddedConv2D
from resnet_layers.normalization import BatchNormalization
from resnet_layers.serialization import own_keywords
from resnet_layers.stem import STEMS, Stem, least_filters, stem_reduction
from resnet_layers.stochastic_depth import drop_rate, seed_or_none

BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ResNet(ConvModel):
    """A residual network: stem, stages of blocks, pooling, classifier.

    Every stage but the first has half the height and width of the one before.

    Args:
      block: "basic", "bottleneck", or the class of a `ResidualBlock`; or one
        of these for each stage.
      stage_sizes: number of blocks in each stage.
      num_classes: number of logits; None for no classifier, so that the model
        returns the mean of the last feature map.
      width: filters of the blocks of the first stage, and of the stem if that
        does not say; every further stage has twice those of the one before.
        32 makes every layer of a ResNet-50 half as wide. Or the filters of
        each stage.
      stem: "imagenet", "deep", "tiered" or "small", or a dict with one of
        these as "kind" and other arguments of `Stem`.
      downsample: which block takes the stride: the "first" of every stage but
        the first, or the "last" of every stage but the last.
      output_stride: how many pixels of the input's side make one of the last
        stage's, from what the stem makes (4) by doublings to what stem and
        stages make together (32). Where it is smaller than that, dilations
        replace strides, for segmentation. None for strides alone.
      stochastic_depth: of the last block; the others' rise to it evenly from
        0. See `StochasticDepth`.
      seed: int that the blocks' seeds of stochastic depth follow from, or None
        to draw them.
      trainable: see `keras.Model`.
      **kwargs: the options of `ConvModel`; arguments for all blocks, see
        `ResidualBlock` and `BottleneckBlock`; `name` and `dtype`.

    Attributes:
      remat: true for gradient checkpointing, which trains with less memory:
        all blocks but the last keep their inputs only, and run once more for
        the gradients. It changes no result, and is in no config.
      fast_paths: false for Keras's own batch norm and TensorFlow's own kernel
        gradients in all layers, to compare with. Results are the same but for
        rounding. It is in no config.

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
        seed=None,
        trainable=True,
        **kwargs,
    ):
        stage_sizes = whole_numbers("stage_sizes", stage_sizes)
        blocks = [
            find_class("block", name, BLOCKS)
            for name in _for_each_stage("block", block, stage_sizes)
        ]
        block_options = _take_block_options(blocks, kwargs)
        super().__init__(**kwargs)
        self.block = block
        self.stage_sizes = stage_sizes
        self.num_classes = whole_number(
            "num_classes", num_classes, optional=True
        )
        stem_options = stem if isinstance(stem, dict) else {"kind": stem}
        kind = stem_options.get("kind")
        if kind not in list(STEMS):
            raise refusal("stem", stem, f"one of {tuple(STEMS)}, or a dict")
        if isinstance(width, (list, tuple, np.ndarray)):
            self.width = whole_numbers("width", width)
            widths = _for_each_stage("width", self.width, stage_sizes)
        else:
            least = least_filters(kind)
            self.width = whole_number("width", width, at_least=least)
            widths = [self.width * 2**i for i in range(len(stage_sizes))]
        self.downsample = one_of("downsample", downsample, ("first", "last"))
        reduction = stem_reduction(kind)
        reductions = [reduction * 2**i for i in range(len(stage_sizes))]
        self.output_stride = one_of(
            "output_stride", output_stride, (None, *reductions)
        )
        self.stochastic_depth = drop_rate(stochastic_depth)
        self.seed = seed_or_none(seed)
        self.remat = False
        self._fast_paths = True
        true_or_false("trainable", trainable)

        self.stem = Stem(
            **{"filters": widths[0], **stem_options},
            **self.layer_options,
            name="stem",
        )
        # A tuple: tf.train.Checkpoint silently skips the lists and dicts of a
        # Keras model.
        self.blocks = tuple(
            blocks[place.stage](
                widths[place.stage],
                **place.arguments,
                **self.layer_options,
                **block_options,
                name=f"stage{place.stage + 1}_block{place.index + 1}",
            )
            for place in self._places()
        )
        # What their arguments have become: numbers are Python's own.
        config = self.blocks[0].get_config()
        self._kept_elsewhere = {
            "stem": stem,
            **{option: config[option] for option in block_options},
        }
        self.post_bn = identity
        if self.preactivation:
            self.post_bn = self.new_norm("post_bn")
        self.head = None
        if self.num_classes is not None:
            # Logits in the precision of the variables, so that the loss is
            # exact under mixed precision.
            self.head = tf.keras.layers.Dense(
                self.num_classes,
                kernel_initializer=tf.keras.initializers.RandomNormal(
                    stddev=0.01
                ),
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy.variable_dtype,
                name="head",
            )
        # Reaches all layers, and through the blocks what these build later.
        self.trainable = bool(trainable)

    @property
    def fast_paths(self):
        return self._fast_paths

    @fast_paths.setter
    def fast_paths(self, are_on):
        self._fast_paths = are_on
        self._switch_fast_paths()

    def _switch_fast_paths(self):
        for layer in self._flatten_layers():
            if isinstance(layer, PaddedConv2D):
                layer.kernel_products = self.fast_paths
            elif isinstance(layer, BatchNormalization):
                layer.fused = self.fast_paths

    @property
    def reduction(self):
        """How many pixels of the input's side make one of the last stage's."""
        return self.stem.reduction * math.prod(
            b.strides[0] for b in self.blocks
        )

    def build_layers(self, input_shape):
        shape = input_shape
        for layer in (self.stem, *self.blocks):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if self.preactivation:
            self.post_bn.build(shape)
        if self.head is not None:
            self.head.build((shape[0], shape[-1]))
        if not self.fast_paths:
            # In the layers of the shortcuts too, which are new.
            self._switch_fast_paths()

    def compute_output_shape(self, input_shape):
        if self.num_classes is None:
            return input_shape[0], self.blocks[-1].out_channels
        return input_shape[0], self.num_classes

    def compute_output_spec(self, inputs, training=None):
        # Not the default, which takes the policy's compute dtype.
        shape = self.compute_output_shape(inputs.shape)
        return tf.keras.KerasTensor(shape, dtype=self.variable_dtype)

    def call(self, inputs, training=None):
        """Classifies images.

        Args:
          inputs: [batch, height, width, channels], normalized as in training.
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
          inputs: [batch, height, width, channels], normalized as in training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          [batch, channels] in the policy's variable dtype, whether or not the
          model has a classifier.
        """
        *_, x = self.features(inputs, training=training).values()
        # The mean of thousands of numbers wants more digits than bfloat16 has.
        x = tf.keras.ops.cast(x, self.variable_dtype)
        return tf.keras.ops.mean(x, axis=[1, 2])

    def features(self, inputs, training=None):
        """Returns the last feature map of every stage: the pyramid.

        It takes tensors, and `keras.Input`s as well:

            inputs = tf.keras.Input([None, None, 3])
            backbone = tf.keras.Model(inputs, resnet.features(inputs))

        Its layers are then named after the net, "resnet50_stage1_block1", so
        that a model may have two: nets of one variant need names of their own.

        Args:
          inputs: [batch, height, width, channels].
          training: whether batch norm uses and updates batch statistics.

        Returns:
          {"P2": tensor, ... "P5": tensor}, as Keras Hub's backbones name them,
          in the order of the stages, each [batch, height, width, channels] and
          before the next stage's stride. With `preactivation`, only the last
          one has been through norm and activation.
        """
        if not self.built:
            self.build(inputs.shape)
        if isinstance(inputs, tf.keras.KerasTensor):
            self._name_layers_apart()
        training = resolve_training(training)
        x = self.stem(inputs, training=training)
        maps = {}
        for place, block in zip(self._places(), self.blocks, strict=True):
            if place.begins_stage:
                maps[f"P{len(maps) + 2}"] = x
            # The last one's gradients come first, while it is still there.
            again = self.remat and training and block is not self.blocks[-1]
            if again and tf.is_tensor(x):
                x = _checkpointed(block, x, training)
            else:
                x = block(x, training=training)
        if self.preactivation:
            x = self.activation(self.post_bn(x, training=training))
        return {**maps, f"P{len(maps) + 2}": x}

    def with_classes(self, num_classes, **changes):
        """Returns a copy of the model with a classifier of its own.

        The backbone has the same weights, statistics and frozen parts, and is
        apart from this one's: training one does not move the other.

        Args:
          num_classes: see `ResNet`.
          **changes: other arguments than this model's, `name` for one, that
            leave the backbone's weights as they are.

        Raises:
          ValueError: an argument has none of the values possible.
        """
        config = {**self.get_config(), "num_classes": num_classes, **changes}
        copy = type(self).from_config(config)
        if self.built:
            copy.build((None, None, None, self._channels))
            for part, new in zip(
                self._backbone(), copy._backbone(), strict=True
            ):
                new.set_weights(part.get_weights())
        return copy

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
        stages = self.parts.index(part)
        frozen = 1 + sum(self.stage_sizes[:stages])
        layers = self._backbone()
        for layer in layers if part == "backbone" else layers[:frozen]:
            layer.trainable = False

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
        return {**super().arguments_kept_elsewhere(), **self._kept_elsewhere}

    def convolutions_with_norms(self):
        """Returns [(convolution, the norm right behind it)], None for no layer.

        Those of custom blocks are not among them.
        """
        parts = (self.stem, *self.blocks)
        return [
            pair for part in parts for pair in part.convolutions_with_norms()
        ]

    def _backbone(self):
        """Returns all layers but the classifier, in order."""
        layers = [self.stem, *self.blocks]
        return [*layers, self.post_bn] if self.preactivation else layers

    def _places(self):
        return _place_blocks(
            self.stage_sizes,
            self.downsample,
            self.stem.reduction,
            self.output_stride,
            self.stochastic_depth,
            self.seed,
        )

    def _name_layers_apart(self):
        """Puts the model's name in front of its layers', once.

        A functional model takes no name twice, and may be made of two nets.
        Variables keep the paths that they were built with.
        """
        prefix = f"{self.name}_"
        for layer in self.layers:
            layer.name = prefix + layer.name.removeprefix(prefix)


def _for_each_stage(name, value, stage_sizes):
    """Returns a value, or one for each stage, as one for each stage."""
    if not isinstance(value, (list, tuple)):
        return [value] * len(stage_sizes)
    if len(value) != len(stage_sizes):
        raise refusal(name, value, f"one, or one for each of {stage_sizes}")
    return value


def _take_block_options(blocks, arguments):
    """Returns the arguments for the blocks, removed from a ResNet's."""
    ours = _keywords(ResNet)
    # These follow from a block's place in the net.
    placed = ("filters", "strides", "dilation", "first_dilation")
    theirs = [
        name
        for name in _keywords(blocks[0])
        if all(name in _keywords(block) for block in blocks)
        and name not in (*ours, *placed)
    ]
    _check_keywords(ResNet, arguments, [*ours, *theirs])
    return {name: arguments.pop(name) for name in theirs if name in arguments}


@functools.cache
def _keywords(layer_class):
    """Returns the names of all keywords that a layer class accepts."""
    names = []
    for parent in layer_class.__mro__:
        names += own_keywords(parent)
        if parent is tf.keras.layers.Layer:
            break
    # What layers of a `Sequential` also accept is in no signature.
    return tuple(dict.fromkeys([*names, "input_shape"]))


def _check_keywords(layer_class, given, accepted):
    """Raises ValueError where a name in {name: value} is not accepted."""
    for name, value in given.items():
        if name not in accepted:
            nearest = difflib.get_close_matches(name, accepted) or ["none"]
            raise ValueError(
                f"`{name}` is not taken by {layer_class.__name__}; nearest: "
                f"{', '.join(nearest)}. It takes {', '.join(accepted)}. "
                f"Received: {name}={value!r}"
            )


class _Place(NamedTuple):
    """The place of a block in the net, and the arguments that follow from it.

    Stages and blocks count from 0. `begins_stage` tells whether the map before
    the block is the last one of its stage.
    """

    stage: int
    index: int
    begins_stage: bool
    arguments: dict


def _place_blocks(
    stage_sizes, downsample, reduction, output_stride, stochastic_depth, seed
):
    """Yields the `_Place` of every block.

    Args:
      stage_sizes: number of blocks in each stage.
      downsample: "first" or "last", see `ResNet`.
      reduction: pixels of the input's side for one of the stem's.
      output_stride: its maximum; from there on, dilations replace strides.
        None for no maximum.
      stochastic_depth: of the last block; it rises evenly from 0.
      seed: that the blocks' seeds follow from, or None for none.
    """
    seeds = random.Random(seed)
    steps = max(sum(stage_sizes) - 1, 1)
    position, dilation = 0, 1
    for stage, size in enumerate(stage_sizes):
        for index in range(size):
            # The first block of every stage but the first, or the last of
            # every stage but the last.
            begins = (
                stage > 0 and index == 0
                if downsample == "first"
                else stage < len(stage_sizes) - 1 and index == size - 1
            )
            strides, first_dilation = 1, dilation
            if begins and output_stride and reduction * 2 > output_stride:
                # What follows the omitted stride looks twice as far.
                dilation *= 2
            elif begins:
                reduction *= 2
                strides = 2
            arguments = {
                "strides": strides,
                "dilation": dilation,
                "first_dilation": first_dilation,
                "stochastic_depth": stochastic_depth * position / steps,
                "seed": None if seed is None else seeds.randrange(2**31),
            }
            yield _Place(stage, index, begins, arguments)
            position += 1


def _checkpointed(layer, inputs, training):
    """Calls a layer with gradient checkpointing.

    Of the call only the inputs are kept; it runs again for the gradients. The
    second call has the state of the first one: it draws the same random
    numbers, and does not move batch-norm statistics a second time, as it would
    under `tf.recompute_grad` and `keras.remat`.

    Args:
      layer: a built Keras layer or model of one input and one output.
      inputs: a tensor.
      training: true or false. None could be another mode the second time.

    Returns:
      What `layer(inputs, training=training)` returns.

    Source: Chen et al., 2016, https://arxiv.org/abs/1604.06174.
    """
    state = layer.non_trainable_variables
    before = [tf.identity(variable.value) for variable in state]
    weights = [tf.identity(v.value) for v in layer.trainable_variables]
    after = []

    def call(inputs, weights):
        outputs, after[:] = layer.stateless_call(
            weights, before, inputs, training=training
        )
        return outputs

    @tf.custom_gradient
    def call_twice(inputs, *weights):
        def gradients(upstream):
            # TensorFlow would merge two equal calls.
            late = _zero_after(upstream)
            again = [weight + tf.cast(late, weight.dtype) for weight in weights]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([inputs, *again])
                outputs = call(inputs, again)
            return tape.gradient(outputs, [inputs, *again], upstream)

        return call(inputs, weights), gradients

    outputs = call_twice(inputs, *weights)
    for variable, old, new in zip(state, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    return outputs


def _zero_after(tensor):
    """Returns a zero that is not known before the tensor is."""
    first = tf.reshape(tensor, [-1])[0]
    return tf.where(tf.equal(first, first), 0.0, float("nan"))
