"""The names of weights in each dialect of files."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.base import identity
from resnet_layers.weights.tensors import WeightsError

# Names of the layers in each dialect. Stages, blocks and layers are counted
# from 1 with capital letters, from 0 with small ones.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    # Three convolutions in a torch.nn.Sequential: conv, norm, ReLU, conv ...
    "deep_stem_conv": "conv1.{sequence}",
    "deep_stem_bn": "conv1.{after}",
    "pool_conv": "maxpool.0",
    "pool_bn": "maxpool.1",
    "conv": "layer{Stage}.{block}.conv{Layer}",
    "bn": "layer{Stage}.{block}.bn{Layer}",
    "projection_conv": "layer{Stage}.{block}.downsample.0",
    "projection_bn": "layer{Stage}.{block}.downsample.1",
    "pooled_projection_conv": "layer{Stage}.{block}.downsample.1",
    "pooled_projection_bn": "layer{Stage}.{block}.downsample.2",
    "squeeze": "layer{Stage}.{block}.se.fc1",
    "excite": "layer{Stage}.{block}.se.fc2",
    "neighbors": "layer{Stage}.{block}.se.conv",
    "head": "fc",
}
# Of timm's resnetv2.py, the nets with pre-activation.
TORCH_V2_NAMES = {
    "stem_conv": "stem.conv",
    "deep_stem_conv": "stem.conv{Layer}",
    "deep_stem_bn": "stem.norm{Layer}",
    "pre_bn": "stages.{stage}.blocks.{block}.norm1",
    "conv": "stages.{stage}.blocks.{block}.conv{Layer}",
    "bn": "stages.{stage}.blocks.{block}.norm{Layer_after_pre}",
    "projection_conv": "stages.{stage}.blocks.{block}.downsample.conv",
    "pooled_projection_conv": "stages.{stage}.blocks.{block}.downsample.conv",
    "post_bn": "norm",
    "convolutional_head": "head.fc",
}
# Of Hugging Face's transformers, without the `resnet.` in front.
TRANSFORMERS_NAMES = {
    "stem_conv": "embedder.embedder.convolution",
    "stem_bn": "embedder.embedder.normalization",
    "conv": "encoder.stages.{stage}.layers.{block}.layer.{layer}.convolution",
    "bn": "encoder.stages.{stage}.layers.{block}.layer.{layer}.normalization",
    "projection_conv": (
        "encoder.stages.{stage}.layers.{block}.shortcut.convolution"
    ),
    "projection_bn": (
        "encoder.stages.{stage}.layers.{block}.shortcut.normalization"
    ),
    "head": "classifier.1",
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

# Of the presets of Keras Hub.
HUB_NAMES = {
    "stem_conv": "conv{Layer}_conv",
    "stem_bn": "conv{Layer}_bn",
    "deep_stem_conv": "conv{Layer}_conv",
    "deep_stem_bn": "conv{Layer}_bn",
    "conv": "stack{stage}_block{block}_{Layer}_conv",
    "bn": "stack{stage}_block{block}_{Layer}_bn",
    "pre_bn": "stack{stage}_block{block}_pre_activation_bn",
    "projection_conv": "stack{stage}_block{block}_0_conv",
    "projection_bn": "stack{stage}_block{block}_0_bn",
    "pooled_projection_conv": "stack{stage}_block{block}_0_conv",
    "pooled_projection_bn": "stack{stage}_block{block}_0_bn",
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

# Parts of names -> the models that have them.
OTHER_MODELS = {
    "res2a_branch2a": (
        "Keras's ResNet-50 from before 2019, whose batch norms have another "
        "epsilon; the current file is --weights=imagenet"
    ),
    "layer0.conv1": "Cadene's pretrained models, of SENet's own layout",
    "block1.unit01": "Google's BiT; timm has the same weights",
    "patch_embed": "a vision transformer",
    "_blocks.0": "an EfficientNet",
    "denseblock1": "a DenseNet",
    "features.0": "a network that is no ResNet",
}

ATTENTION_ROLES = {
    "squeeze": "squeeze",
    "excite": "excite",
    "conv": "neighbors",
}


class Target(NamedTuple):
    """One of our variables, and the way from and to a foreign tensor."""

    variable: tf.keras.Variable
    read: Callable = np.asarray
    write: Callable = np.asarray


def _to_hwio(kernel):
    return kernel.transpose(2, 3, 1, 0)


def _to_oihw(kernel):
    return kernel.transpose(3, 2, 0, 1)


def _from_1x1(kernel):
    return kernel[:, :, 0, 0].T


def _to_1x1(kernel):
    return kernel.T[:, :, np.newaxis, np.newaxis]


# Ways from torch's kernels, and back, by the role of their layer.
KERNELS = {
    "conv": (_to_hwio, _to_oihw),
    "head": (np.transpose, np.transpose),
    # What is a dense layer here is a 1x1 convolution there.
    "convolutional_head": (_from_1x1, _to_1x1),
    "squeeze": (_from_1x1, _to_1x1),
    "excite": (_from_1x1, _to_1x1),
    # A convolution in one dimension.
    "neighbors": (np.transpose, np.transpose),
}


def torch_targets(model):
    """Returns {torch's name: `Target`} of all weights of a `ResNet`."""
    names = TORCH_NAMES
    if model.preactivation:
        names = TORCH_V2_NAMES
        if model.use_bias:
            raise WeightsError(
                "torchvision and timm have no pre-activation net with biases"
            )
    return _torch_targets(model, names, "torchvision and timm have")


def _transformers_targets(model):
    """Returns {name in transformers: `Target`} of all weights."""
    return _torch_targets(model, TRANSFORMERS_NAMES, "transformers has")


def _torch_targets(model, names, libraries_have):
    targets = {}
    for layer, role, position in _layers(model):
        if role == "head" and model.preactivation:
            role = "convolutional_head"
        if role not in names:
            raise WeightsError(
                f"{libraries_have} no net like {model.name}: nothing there is "
                f"like {layer.path}"
            )
        prefix = names[role].format(**position)
        norm = role.endswith("bn")
        for theirs, ours in (TORCH_NORM if norm else TORCH_OTHER).items():
            variable = getattr(layer, ours, None)
            if variable is None:
                continue
            ways = {}
            if ours == "kernel":
                read, write = KERNELS.get(role, KERNELS["conv"])
                ways = {"read": read, "write": write}
            targets[f"{prefix}.{theirs}"] = Target(variable, **ways)
    return targets


def keras_targets(model):
    """Returns {keras.applications' name: `Target`} of all weights."""
    return _keras_targets(model, KERAS_NAMES, "keras.applications")


def _hub_targets(model):
    """Returns {Keras Hub's name: `Target`} of all weights."""
    return _keras_targets(model, HUB_NAMES, "Keras Hub")


def _keras_targets(model, names, library):
    targets = {}
    for layer, role, position in _layers(model):
        if role not in names:
            raise WeightsError(
                f"{library} has no net like {model.name}: nothing there is "
                f"like {layer.path}"
            )
        prefix = names[role].format(**position)
        for variable in layer.weights:
            targets[f"{prefix}/{variable.name}"] = Target(variable)
    return targets


def _own_targets(model):
    """Returns {path below the model: `Target`} of all weights."""
    return {
        path_below(model, variable): Target(variable)
        for variable in model.weights
    }


# In front of what stands in a model around the ResNet.
AROUND = "../"


def targets_around(model, outer):
    """Returns {AROUND + "layer/variable": `Target`} of the layers around.

    Args:
      model: the `ResNet`.
      outer: the model that it is a layer of.
    """
    inside = {id(variable) for variable in model.variables}
    return {
        name_around(variable.path.split("/")): Target(variable)
        for variable in outer.variables
        # Seeds of random numbers are no weights.
        if id(variable) not in inside and "float" in str(variable.dtype)
    }


def name_around(path):
    """Returns what a variable outside of the ResNet is called."""
    return AROUND + "/".join(path[-2:])


def path_below(model, variable):
    """Returns the path of a variable without the model's own name."""
    return variable.path.removeprefix(f"{model.path}/")


def _layers(model):
    """Yields every layer with weights as (layer, role, position).

    Raises:
      WeightsError: a block has layers that no other library's have.
    """
    stem = model.stem
    deep = "deep_" if len(stem.convs) > 1 else ""
    for index, conv in enumerate(stem.convs):
        position = {"sequence": 3 * index, "Layer": index + 1}
        yield conv, f"{deep}stem_conv", position
    for index, bn in enumerate(stem.bns):
        last = index == len(stem.convs) - 1
        position = {"after": 3 * index + 1, "Layer": index + 1}
        yield bn, "stem_bn" if last else "deep_stem_bn", position
    for layer in stem.pools:
        if layer.weights:
            yield layer, layer.name, {}
    blocks = iter(model.blocks)
    for stage, size in enumerate(model.stage_sizes):
        for index in range(size):
            position = {
                "stage": stage,
                "Stage": stage + 1,
                "Stage_after_stem": stage + 2,
                "block": index,
                "Block": index + 1,
            }
            block = next(blocks)
            found = list(_block_layers(block, position))
            known = sum(len(layer.weights) for layer, *_ in found)
            if known < len(block.weights):
                raise WeightsError(
                    f"{type(block).__name__} has layers of its own, which no "
                    "other library has names for"
                )
            yield from found
    if model.preactivation:
        yield model.post_bn, "post_bn", {}
    if model.head is not None:
        yield model.head, "head", {}


def _block_layers(block, position):
    pooled = "pooled_" if block.shortcut == "pooled_projection" else ""
    layers = [
        (block.pre_bn, "pre_bn", {}),
        (block.projection_conv, f"{pooled}projection_conv", {}),
        (block.projection_bn, f"{pooled}projection_bn", {}),
    ]
    for number in (1, 2, 3):
        counts = {
            "layer": number - 1,
            "Layer": number,
            "Layer_after_pre": number + 1,
        }
        layers += [
            (getattr(block, f"conv{number}", identity), "conv", counts),
            (getattr(block, f"bn{number}", identity), "bn", counts),
        ]
    for name, role in ATTENTION_ROLES.items():
        layers.append((getattr(block.attention, name, identity), role, {}))
    for layer, role, counts in layers:
        if layer is not identity:
            yield layer, role, {**position, **counts}


class Dialect(NamedTuple):
    """How files name tensors.

    `head` has the names that the classifier may have; `separator` stands
    between a layer and its variable, `kernel` is what weights are called.
    """

    find_targets: Callable
    head: tuple
    separator: str = "/"
    kernel: str = "kernel"


DIALECTS = {
    "torch": Dialect(
        torch_targets,
        (TORCH_NAMES["head"], TORCH_V2_NAMES["convolutional_head"]),
        ".",
        "weight",
    ),
    "transformers": Dialect(
        _transformers_targets, (TRANSFORMERS_NAMES["head"],), ".", "weight"
    ),
    "keras": Dialect(keras_targets, (KERAS_NAMES["head"],)),
    "hub": Dialect(_hub_targets, (HUB_NAMES["head"],)),
    "own": Dialect(_own_targets, ("head",)),
}


def rename(tensors, targets, dialect):
    """Returns ({name: tensor} as the dialect names them, notes about it).

    A prefix is stripped where everything fits without it. If a file has
    several whole copies, the average is used, known by "ema" in its prefix.
    The only matrix with a bias beside the backbone is the classifier. Names
    that do not fit stay as they are.

    Args:
      tensors: {name: `StoredTensor`} of a file.
      targets: {name: `Target`} of a model.
      dialect: the `Dialect` of both.
    """
    body = [name for name in targets if not name.startswith(dialect.head)]
    prefixes = [
        prefix
        for prefix in _prefixes(tensors, body[0], dialect.separator)
        if all(prefix + name in tensors for name in body)
    ]
    averages = [prefix for prefix in prefixes if "ema" in prefix.lower()]
    chosen = averages if len(prefixes) > 1 else prefixes
    if len(chosen) != 1:
        return tensors, ()
    [prefix] = chosen
    others = tuple(other for other in prefixes if other != prefix)
    renamed = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) or not name.startswith(others)
    }
    notes = [f"its names begin with {prefix}"] if prefix else []
    rest = {name: renamed[name] for name in renamed if name not in body}
    found = find_classifiers(rest, dialect)
    theirs = found[0] if len(found) == 1 else None
    heads = [name for name in targets if name not in body]
    # A model without a classifier has none of these names.
    ours = dialect.head[0]
    if heads:
        ours = heads[0].rpartition(dialect.separator)[0]
    if theirs not in (None, ours):
        for variable in (dialect.kernel, "bias"):
            old, new = (
                f"{layer}{dialect.separator}{variable}"
                for layer in (theirs, ours)
            )
            renamed[new] = renamed.pop(old)
        notes.append(f"its classifier is called {theirs}")
    return renamed, tuple(notes)


def recognized_model(names):
    """Returns the model that names are known to be of, to end a sentence."""
    for part, kind in OTHER_MODELS.items():
        if any(part in name for name in names):
            return f"; its names are those of {kind}"
    return ""


def find_classifiers(tensors, dialect):
    """Returns the names of the layers that can be the classifier.

    Args:
      tensors: {name: `StoredTensor`}.
      dialect: the `Dialect` of their names.
    """
    found = []
    for name, tensor in tensors.items():
        layer, _, variable = name.rpartition(dialect.separator)
        bias = tensors.get(f"{layer}{dialect.separator}bias")
        if variable != dialect.kernel or bias is None:
            continue
        is_matrix = len(tensor.shape) == 2
        # A 1x1 convolution in timm's resnetv2.py; squeeze-and-excitation has
        # such ones too.
        if is_matrix or layer.endswith("head.fc"):
            found.append(layer)
    return found


def _prefixes(tensors, anchor, separator):
    """Returns the prefixes that a name has in a file."""
    return [
        name.removesuffix(anchor)
        for name in tensors
        if name == anchor or name.endswith(separator + anchor)
    ]
