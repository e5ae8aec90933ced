"""The names that each dialect of files gives our weights."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.normalization import BatchNormalization
from resnet_layers.parts import PaddedConv2D

# Names of the layers in each dialect. Stages, blocks and layers are counted
# from 1 with capital letters, from 0 with small ones.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    # Three convolutions in a torch.nn.Sequential: conv, norm, ReLU, conv ...
    "deep_stem_conv": "conv1.{sequence}",
    "deep_stem_bn": "conv1.{after}",
    "conv": "layer{Stage}.{block}.conv{Layer}",
    "bn": "layer{Stage}.{block}.bn{Layer}",
    "projection_conv": "layer{Stage}.{block}.downsample.0",
    "projection_bn": "layer{Stage}.{block}.downsample.1",
    "pooled_projection_conv": "layer{Stage}.{block}.downsample.1",
    "pooled_projection_bn": "layer{Stage}.{block}.downsample.2",
    "squeeze": "layer{Stage}.{block}.se.fc1",
    "excite": "layer{Stage}.{block}.se.fc2",
    "head": "fc",
}
KERAS_NAMES = {
    "stem_conv": "conv1_conv",
    "stem_bn": "conv1_bn",
    "conv": "conv{Stage_after_stem}_block{Block}_{Layer}_conv",
    "bn": "conv{Stage_after_stem}_block{Block}_{Layer}_bn",
    "pre_bn": "conv{Stage_after_stem}_block{Block}_preact_bn",
    "projection_conv": "conv{Stage_after_stem}_block{Block}_0_conv",
    "projection_bn": "conv{Stage_after_stem}_block{Block}_0_bn",
    "post_bn": "post_bn",
    "head": "predictions",
}

# Names of a layer's variables: theirs -> ours.
TORCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
TORCH_OTHER = {"weight": "kernel", "bias": "bias"}


class WeightsError(ValueError):
    """A file of weights that cannot be used; its text is one line."""


class Target(NamedTuple):
    """One of our variables, and the way from and to a foreign tensor."""

    variable: tf.keras.Variable
    read: Callable = np.asarray
    write: Callable = np.asarray


def torch_targets(model):
    """Returns {torch's name: `Target`} of all weights of a `ResNet`."""
    if model.preactivation:
        raise WeightsError(
            "torchvision and timm have no pre-activation net of this kind"
        )
    targets = {}
    for layer, role, position in _layers(model):
        prefix = TORCH_NAMES[role].format(**position)
        norm = isinstance(layer, BatchNormalization)
        for theirs, ours in (TORCH_NORM if norm else TORCH_OTHER).items():
            variable = getattr(layer, ours)
            if variable is None:
                continue
            options = {}
            if ours == "kernel" and isinstance(layer, PaddedConv2D):
                options = {"read": _to_hwio, "write": _to_oihw}
            elif ours == "kernel" and role != "head":
                # timm's squeeze and excitation are 1x1 convolutions.
                options = {"read": _from_1x1, "write": _to_1x1}
            elif ours == "kernel":
                options = {"read": np.transpose, "write": np.transpose}
            targets[f"{prefix}.{theirs}"] = Target(variable, **options)
    return targets


def keras_targets(model):
    """Returns {keras.applications' name: `Target`} of all weights."""
    targets = {}
    for layer, role, position in _layers(model):
        if role not in KERAS_NAMES:
            raise WeightsError(
                f"keras.applications has no net like {model.name}: nothing "
                f"there is like {layer.path}"
            )
        prefix = KERAS_NAMES[role].format(**position)
        for variable in layer.weights:
            targets[f"{prefix}/{variable.name}"] = Target(variable)
    return targets


def own_targets(model):
    """Returns {path below the model: `Target`} of all weights."""
    return {
        path_below(model, variable): Target(variable)
        for variable in model.weights
    }


def path_below(model, variable):
    """Returns the path of a variable without the model's own name."""
    return variable.path.removeprefix(f"{model.path}/")


def _layers(model):
    """Yields every layer with weights as (layer, role, position)."""
    deep = len(model.stem.convs) > 1
    for index, conv in enumerate(model.stem.convs):
        position = {"sequence": 3 * index, "after": 3 * index + 1}
        yield conv, "deep_stem_conv" if deep else "stem_conv", position
    for index, bn in enumerate(model.stem.bns):
        last = index == len(model.stem.convs) - 1
        position = {"after": 3 * index + 1}
        yield bn, "stem_bn" if last else "deep_stem_bn", position
    blocks = iter(model.blocks)
    for stage, size in enumerate(model.stage_sizes):
        for index in range(size):
            position = {
                "Stage": stage + 1,
                "Stage_after_stem": stage + 2,
                "block": index,
                "Block": index + 1,
            }
            yield from _block_layers(next(blocks), position)
    if model.post_bn is not None:
        yield model.post_bn, "post_bn", {}
    if model.head is not None:
        yield model.head, "head", {}


def _block_layers(block, position):
    if block.pre_bn is not None:
        yield block.pre_bn, "pre_bn", position
    numbers = {"conv": 0, "bn": 0}
    for layer in block.residual_layers():
        role = "conv" if isinstance(layer, PaddedConv2D) else "bn"
        numbers[role] += 1
        yield layer, role, {**position, "Layer": numbers[role]}
    pooled = "pooled_" if block.shortcut == "pooled_projection" else ""
    if block.projection_conv is not None:
        yield block.projection_conv, f"{pooled}projection_conv", position
    if block.projection_bn is not None:
        yield block.projection_bn, f"{pooled}projection_bn", position
    if block.attention is not None:
        yield block.attention.squeeze, "squeeze", position
        yield block.attention.excite, "excite", position


class Dialect(NamedTuple):
    """How files name tensors; the classifier's names begin with `head`."""

    find_targets: Callable
    head: str


DIALECTS = {
    "torch": Dialect(torch_targets, TORCH_NAMES["head"]),
    "keras": Dialect(keras_targets, KERAS_NAMES["head"]),
    "own": Dialect(own_targets, "head"),
}


def _to_hwio(kernel):
    return kernel.transpose(2, 3, 1, 0)


def _to_oihw(kernel):
    return kernel.transpose(3, 2, 0, 1)


def _from_1x1(kernel):
    return kernel[:, :, 0, 0].T


def _to_1x1(kernel):
    return kernel.T[:, :, np.newaxis, np.newaxis]
