"""The ResNet model: stem, stages of blocks, pooling, classifier."""

import difflib
import functools
import math
import random
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.arguments import (
    argument_error,
    boolean,
    choice_error,
    find_class,
    integer,
    integers,
    one_of,
)
from resnet_layers.base import ConvModel, identity, resolve_training
from resnet_layers.blocks import BasicBlock, BottleneckBlock, ResidualBlock
from resnet_layers.convolutions import PaddedConv2D
from resnet_layers.images import ImagePreprocessing, Preprocessing
from resnet_layers.normalization import BatchNormalization
from resnet_layers.serialization import constructor_arguments
from resnet_layers.stem import STEMS, Stem, min_filters, stem_reduction
from resnet_layers.stochastic_depth import drop_rate, seed_or_none

BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ResNet(ConvModel):
    """ResNet: stem, stages of residual blocks, global pooling, classifier.

    The model maps images [batch, height, width, channels] to logits
    [batch, num_classes]. Each stage after the first halves height and width.
    `VARIANTS` has named configurations. The model is a `keras.Model`: build it
    with a shape or call it on images, then use `compile` and `fit` as usual.

    Args:
      block: "basic", "bottleneck", or a subclass of `ResidualBlock`; or one of
        these for each stage.
      stage_sizes: number of blocks in each stage.
      num_classes: number of classes; None for no classifier, so that the model
        returns [batch, channels] embeddings.
      width: filters of the blocks in the first stage, and of the stem unless
        `stem` sets them. Each later stage doubles them. For example, 32 halves
        every layer of a ResNet-50. Or a list with the filters of each stage.
      stem: "imagenet", "deep", "tiered" or "small", or a dict with one of
        these as "kind" and arguments of `Stem`.
      downsample: block with the stride: the "first" of each stage after the
        first, or the "last" of each stage before the last.
      output_stride: input pixels per output pixel of the last stage, along
        each axis: the stem's (4), doubled up to the full stride of the model
        (32). Where it is smaller than the full stride, dilations replace
        strides, for segmentation. None keeps all strides.
      stochastic_depth: drop probability of the last block, at least 0 and
        below 1. It grows linearly from 0 at the first block. See
        `StochasticDepth`.
      seed: integer that the seeds of stochastic depth derive from, or None for
        random ones.
      preprocessing: `Preprocessing` of the images, for `preprocess`, or a dict
        of its fields; None if it is unknown.
      trainable: whether the weights are trainable, as in `keras.Model`.
      **kwargs: options of all layers (below); arguments of all blocks, see
        `ResidualBlock` and `BottleneckBlock`; `name` and `dtype`.

        - `norm`: normalization layer: "batch" (default), "group" (32 groups,
          Wu and He, 2018, <https://arxiv.org/abs/1803.08494>), a layer class,
          or a dict with one of these as "kind" and arguments of the layer.
        - `activation`: activation function, "relu" by default.
        - `preactivation`: whether norm and activation precede each convolution
          (ResNet V2, He et al., 2016, <https://arxiv.org/abs/1603.05027>).
        - `antialias`: pooling that replaces strides: "average", "blur"
          (`BlurPool2D`) or None (default).
        - `weight_standardization`: whether convolutions are
          `StandardizedConv2D`.
        - `use_bias`: whether convolutions without a following norm have
          biases, True by default.
        - `kernel_initializer`: initializer of convolution kernels.
        - `kernel_regularizer`: regularizer of the kernels of convolutions and
          classifier.

    Attributes:
      gradient_checkpointing: whether training recomputes activations to save
        memory (Chen et al., 2016, <https://arxiv.org/abs/1604.06174>). All
        blocks but the last store their inputs only, and run again for the
        gradients. Results are bitwise identical. False by default; not saved
        in the config.
      fast_paths: whether layers use the fused batch norm, and matrix products
        for kernel gradients. False selects Keras's batch norm and TensorFlow's
        kernel gradients, for comparison. Results differ by rounding only. True
        by default; not saved in the config.

    Raises:
      ValueError: an argument is invalid or unknown.

    Source: He et al., 2015, <https://arxiv.org/abs/1512.03385>, table 1.

    Example:
      ```python
      model = ResNet(block="basic", stage_sizes=(2, 2, 2, 2), num_classes=10)
      logits = model(images)  # [batch, height, width, 3] -> [batch, 10]

      model = ResNet(stem="deep", attention="se", stochastic_depth=0.1)
      model.freeze("stage2")
      model.compile("adam", "sparse_categorical_crossentropy")
      ```
    """

    def __init__(
        self,
        block: str | type[ResidualBlock] | Sequence[Any] = "bottleneck",
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        num_classes: int | None = 1000,
        width: int | Sequence[int] = 64,
        stem: str | dict[str, Any] = "imagenet",
        downsample: str = "first",
        output_stride: int | None = None,
        stochastic_depth: float = 0.0,
        seed: int | None = None,
        preprocessing: Preprocessing | dict[str, Any] | None = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        stage_sizes = integers("stage_sizes", stage_sizes)
        blocks = [
            find_class("block", name, BLOCKS)
            for name in _for_each_stage("block", block, stage_sizes)
        ]
        block_options = _take_block_options(blocks, kwargs)
        super().__init__(**kwargs)
        self.block = block
        self.stage_sizes = stage_sizes
        self.num_classes = integer("num_classes", num_classes, optional=True)
        stem_options = stem if isinstance(stem, dict) else {"kind": stem}
        kind = stem_options.get("kind")
        if kind not in list(STEMS):
            raise choice_error("stem", stem, STEMS, "a dict with such a kind")
        if isinstance(width, (list, tuple, np.ndarray)):
            self.width = integers("width", width)
            widths = _for_each_stage("width", self.width, stage_sizes)
        else:
            at_least = min_filters(kind)
            self.width = integer("width", width, at_least=at_least)
            widths = [self.width * 2**i for i in range(len(stage_sizes))]
        self.downsample = one_of("downsample", downsample, ("first", "last"))
        reduction = stem_reduction(kind)
        reductions = [reduction * 2**i for i in range(len(stage_sizes))]
        self.output_stride = one_of(
            "output_stride", output_stride, (None, *reductions)
        )
        self.stochastic_depth = drop_rate(stochastic_depth)
        self.seed = seed_or_none(seed)
        if isinstance(preprocessing, dict):
            preprocessing = Preprocessing.of_dict(preprocessing)
        self.preprocessing = preprocessing
        self.gradient_checkpointing = False
        self._fast_paths = True
        boolean("trainable", trainable)

        self.stem = Stem(
            **{"filters": widths[0], **stem_options},
            **self.layer_options,
            name="stem",
        )
        # A tuple, because tf.train.Checkpoint silently skips the lists and
        # dicts of a Keras model.
        self.blocks = tuple(
            blocks[position.stage](
                widths[position.stage],
                **position.arguments,
                **self.layer_options,
                **block_options,
                name=f"stage{position.stage + 1}_block{position.index + 1}",
            )
            for position in self._positions()
        )
        # From the config of a block, where numbers are Python's own.
        config = self.blocks[0].get_config()
        self._config_overrides = {
            "stem": stem,
            **{option: config[option] for option in block_options},
        }
        self.post_bn = identity
        if self.preactivation:
            self.post_bn = self.new_norm("post_bn")
        self.head = None
        if self.num_classes is not None:
            # Logits keep the precision of the variables, so that the loss is
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
        # Applies to all layers, and through the blocks to their later layers.
        self.trainable = bool(trainable)

    @property
    def fast_paths(self) -> bool:
        """Whether layers use the fused batch norm and matrix products."""
        return self._fast_paths

    @fast_paths.setter
    def fast_paths(self, enabled):
        self._fast_paths = enabled
        self._switch_fast_paths()

    @property
    def remat(self):
        """Deprecated name of `gradient_checkpointing`."""
        _warn_of_remat()
        return self.gradient_checkpointing

    @remat.setter
    def remat(self, enabled):
        _warn_of_remat()
        self.gradient_checkpointing = enabled

    def __dir__(self):
        # Keras reads every attribute when it saves, which would warn.
        return [name for name in super().__dir__() if name != "remat"]

    def _switch_fast_paths(self):
        for layer in self._flatten_layers():
            if isinstance(layer, PaddedConv2D):
                layer.kernel_products = self.fast_paths
            elif isinstance(layer, BatchNormalization):
                layer.fused = self.fast_paths

    @property
    def reduction(self) -> int:
        """Input pixels per output pixel of the last stage, along each axis."""
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
            # Includes the layers of the shortcuts, which `build` creates.
            self._switch_fast_paths()

    def compute_output_shape(self, input_shape):
        if self.num_classes is None:
            return input_shape[0], self.blocks[-1].out_channels
        return input_shape[0], self.num_classes

    def compute_output_spec(self, inputs, training=None):
        # The default would use the policy's compute dtype.
        shape = self.compute_output_shape(inputs.shape)
        return tf.keras.KerasTensor(shape, dtype=self.variable_dtype)

    def call(self, inputs, training=None):
        """Computes logits.

        Args:
          inputs: images, [batch, height, width, channels], of any float or
            integer dtype, normalized as in training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          Logits, [batch, num_classes], in the policy's variable dtype. Without
          a classifier, embeddings [batch, channels].
        """
        x = self.embed(inputs, training=training)
        return x if self.head is None else self.head(x)

    def embed(
        self, inputs: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """Computes embeddings: the spatial mean of the last feature map.

        It accepts tensors and `keras.Input`s, like `features`.

        Args:
          inputs: images, [batch, height, width, channels], normalized as in
            training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          Embeddings, [batch, channels], in the policy's variable dtype. They
          are the inputs of the classifier, if the model has one.
        """
        *_, x = self.features(inputs, training=training).values()
        # bfloat16 is too coarse for a mean of thousands of numbers.
        x = tf.keras.ops.cast(x, self.variable_dtype)
        return tf.keras.ops.mean(x, axis=[1, 2])

    def features(
        self, inputs: tf.Tensor, training: bool | None = None
    ) -> dict[str, tf.Tensor]:
        """Computes the last feature map of each stage: the feature pyramid.

        It accepts tensors and `keras.Input`s:

        ```python
        inputs = tf.keras.Input([None, None, 3])
        backbone = tf.keras.Model(inputs, resnet.features(inputs))
        ```

        With a `keras.Input`, it renames the layers after the model, for
        example "resnet50_stage1_block1". A functional model can then contain
        two ResNets; give two of the same variant different names.

        Args:
          inputs: images, [batch, height, width, channels], normalized as in
            training.
          training: whether batch norm uses and updates batch statistics.

        Returns:
          A dict of feature maps, ordered by stage. The keys are "P2", "P3" and
          so on, as in Keras Hub's backbones. Each map is
          [batch, height, width, channels] in the compute dtype, before the
          next stride. With `preactivation`, only the last map has passed norm
          and activation.
        """
        if not self.built:
            self.build(inputs.shape)
        if isinstance(inputs, tf.keras.KerasTensor):
            self._name_layers_apart()
        training = resolve_training(training)
        x = self.stem(inputs, training=training)
        maps: dict[str, tf.Tensor] = {}
        for position, block in zip(self._positions(), self.blocks, strict=True):
            if position.begins_stage:
                maps[f"P{len(maps) + 2}"] = x
            # The activations of the last block are still in memory when its
            # gradients begin.
            recompute = (
                self.gradient_checkpointing
                and training
                and block is not self.blocks[-1]
            )
            if recompute and tf.is_tensor(x):
                x = _checkpointed(block, x, training)
            else:
                x = block(x, training=training)
        if self.preactivation:
            x = self.activation(self.post_bn(x, training=training))
        return {**maps, f"P{len(maps) + 2}": x}

    def preprocess(self, images: Any) -> tf.Tensor:
        """Crops, resizes and normalizes images, as in evaluation.

        See `ImagePreprocessing`, which does the same as a layer.

        Args:
          images: [batch, height, width, 3] or [height, width, 3], RGB from 0 to
            255, of any integer or float dtype.

        Returns:
          float32 [batch, image_size, image_size, channels]; a single image
          becomes a batch of one.

        Raises:
          ValueError: the model does not know its preprocessing, or the images
            have another shape.
        """
        if self.preprocessing is None:
            raise ValueError(
                f"{self.name}: has no preprocessing. Pass "
                "preprocessing=Preprocessing(...) when you create it."
            )
        images = tf.convert_to_tensor(images)
        if images.shape.rank == 3:
            images = images[tf.newaxis]
        return ImagePreprocessing(self.preprocessing)(images)

    def with_classes(self, num_classes: int | None, **changes: Any) -> "ResNet":
        """Creates a copy of the model with a new classifier.

        The backbone of the copy has the same weights, statistics and frozen
        layers. The two models share no variables.

        Args:
          num_classes: number of classes, or None for no classifier.
          **changes: other arguments of `ResNet` to change, for example `name`.
            They must leave the weights of the backbone as they are.

        Returns:
          A `ResNet`, built if this one is.

        Raises:
          ValueError: an argument is invalid.

        Example:
          ```python
          model = VARIANTS["resnet50"]()
          ...
          pets = model.with_classes(37, name="pets")
          ```
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
    def parts(self) -> list[str]:
        """Names that `freeze` accepts, from the input to the classifier."""
        stages = [f"stage{i + 1}" for i in range(len(self.stage_sizes))]
        return ["stem", *stages, "backbone"]

    def freeze(self, part: str) -> None:
        """Freezes all layers from the input up to a part.

        Training changes neither their weights nor their batch-norm statistics,
        and computes no gradients for them. Freeze before you create the
        optimizer. To unfreeze, set `trainable` to False and then to True: where
        it is already True, Keras ignores the assignment.

        Args:
          part: one of `parts`. For example, "stage2" freezes the stem and the
            first two stages; "backbone" freezes all but the classifier.

        Raises:
          ValueError: `part` is unknown.
        """
        one_of("part", part, self.parts)
        stages = self.parts.index(part)
        frozen = 1 + sum(self.stage_sizes[:stages])
        layers = self._backbone()
        for layer in layers if part == "backbone" else layers[:frozen]:
            layer.trainable = False

    def freeze_batch_norm(self) -> None:
        """Freezes all batch norms, parameters and statistics.

        Raises:
          ValueError: the model is not built, so some layers do not exist yet.
        """
        if not self.built:
            raise ValueError(
                f"{self.name}: must be built before its batch norms are "
                "frozen. Call model.build((None, 224, 224, 3))."
            )
        for layer in self._flatten_layers():
            if isinstance(layer, BatchNormalization):
                layer.trainable = False

    def config_overrides(self):
        preprocessing = self.preprocessing and self.preprocessing.as_dict()
        return {
            **super().config_overrides(),
            **self._config_overrides,
            "preprocessing": preprocessing,
        }

    def convolutions_with_norms(self):
        """Returns [(convolution, the norm that follows it)]; None for no layer.

        Layers of custom blocks are not included.
        """
        parts = (self.stem, *self.blocks)
        return [
            pair for part in parts for pair in part.convolutions_with_norms()
        ]

    def _backbone(self):
        """Returns all layers but the classifier, in order."""
        layers = [self.stem, *self.blocks]
        return [*layers, self.post_bn] if self.preactivation else layers

    def _positions(self):
        return _block_positions(
            self.stage_sizes,
            self.downsample,
            self.stem.reduction,
            self.output_stride,
            self.stochastic_depth,
            self.seed,
        )

    def _name_layers_apart(self):
        """Prefixes the names of the layers with the model's name, once.

        Names in a functional model must be unique, and it may contain two
        ResNets. Variables keep the paths that they were built with.
        """
        prefix = f"{self.name}_"
        for layer in self.layers:
            layer.name = prefix + layer.name.removeprefix(prefix)


def _warn_of_remat():
    warnings.warn(
        "ResNet.remat: deprecated. Use ResNet.gradient_checkpointing.",
        DeprecationWarning,
        # Points at the caller of the property.
        stacklevel=3,
    )


def _for_each_stage(name, value, stage_sizes):
    """Returns a list with one value for each stage."""
    if not isinstance(value, (list, tuple)):
        return [value] * len(stage_sizes)
    if len(value) != len(stage_sizes):
        accepted = f"a single value, or {len(stage_sizes)}, one for each stage"
        raise argument_error(name, value, accepted)
    return value


def _take_block_options(blocks, arguments):
    """Removes the arguments of the blocks from a ResNet's and returns them."""
    resnet_arguments = _keywords(ResNet)
    # The position of a block determines these.
    positional = ("filters", "strides", "dilation", "first_dilation")
    block_arguments = [
        name
        for name in _keywords(blocks[0])
        if all(name in _keywords(block) for block in blocks)
        and name not in (*resnet_arguments, *positional)
    ]
    _check_keywords(ResNet, arguments, [*resnet_arguments, *block_arguments])
    return {
        name: arguments.pop(name)
        for name in block_arguments
        if name in arguments
    }


@functools.cache
def _keywords(layer_class):
    """Returns the names of all arguments that a layer class accepts."""
    names = []
    for parent in layer_class.__mro__:
        names += constructor_arguments(parent)
        if parent is tf.keras.layers.Layer:
            break
    # Layers of a `Sequential` accept it too, outside their signatures.
    return tuple(dict.fromkeys([*names, "input_shape"]))


def _check_keywords(layer_class, arguments, accepted):
    """Raises ValueError for an argument that is not accepted."""
    for name, value in arguments.items():
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{name}={value!r}: unknown argument of "
                f"{layer_class.__name__}.{hint} Use one of "
                f"{', '.join(accepted)}."
            )


class _BlockPosition(NamedTuple):
    """Position of a block in the model, and the arguments that it determines.

    Stages and blocks count from 0. `begins_stage`: whether the feature map
    before the block is the last one of its stage.
    """

    stage: int
    index: int  # type: ignore[assignment]
    begins_stage: bool
    arguments: dict


def _block_positions(
    stage_sizes, downsample, reduction, output_stride, stochastic_depth, seed
):
    """Yields the `_BlockPosition` of every block.

    Args:
      stage_sizes: number of blocks in each stage.
      downsample: "first" or "last", see `ResNet`.
      reduction: input pixels per output pixel of the stem.
      output_stride: maximum reduction, after which dilations replace strides;
        None for no maximum.
      stochastic_depth: drop probability of the last block.
      seed: integer that the seeds of the blocks derive from, or None.
    """
    seeds = random.Random(seed)
    steps = max(sum(stage_sizes) - 1, 1)
    count, dilation = 0, 1
    for stage, size in enumerate(stage_sizes):
        for index in range(size):
            # The first block of each stage after the first, or the last block
            # of each stage before the last.
            begins = (
                stage > 0 and index == 0
                if downsample == "first"
                else stage < len(stage_sizes) - 1 and index == size - 1
            )
            strides, first_dilation = 1, dilation
            if begins and output_stride and reduction * 2 > output_stride:
                # A doubled dilation keeps the receptive field.
                dilation *= 2
            elif begins:
                reduction *= 2
                strides = 2
            arguments = {
                "strides": strides,
                "dilation": dilation,
                "first_dilation": first_dilation,
                "stochastic_depth": stochastic_depth * count / steps,
                "seed": None if seed is None else seeds.randrange(2**31),
            }
            yield _BlockPosition(stage, index, begins, arguments)
            count += 1


def _checkpointed(layer, inputs, training):
    """Calls a layer with gradient checkpointing.

    The forward pass stores the inputs only. The layer runs again for the
    gradients, from the state of the first call: it draws the same random
    numbers and does not update batch-norm statistics twice, as
    `tf.recompute_grad` and `keras.remat` would.

    Args:
      layer: a built Keras layer or model with one input and one output.
      inputs: a tensor.
      training: True or False. None might resolve differently the second time.

    Returns:
      The result of `layer(inputs, training=training)`.

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
    def call_with_recomputation(inputs, *weights):
        def gradients(upstream):
            # Otherwise TensorFlow merges the two equal calls.
            late = _zero_after(upstream)
            again = [weight + tf.cast(late, weight.dtype) for weight in weights]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([inputs, *again])
                outputs = call(inputs, again)
            return tape.gradient(outputs, [inputs, *again], upstream)

        return call(inputs, weights), gradients

    outputs = call_with_recomputation(inputs, *weights)
    for variable, old, new in zip(state, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    return outputs


def _zero_after(tensor):
    """Returns a zero that TensorFlow cannot compute before the tensor."""
    first = tf.reshape(tensor, [-1])[0]
    return tf.where(tf.equal(first, first), 0.0, float("nan"))
