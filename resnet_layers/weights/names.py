"""Names of weights in each dialect (naming convention) of files."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.base import identity
from resnet_layers.weights.tensors import WeightsError

# Layer names in each dialect. Placeholders with capital letters count from 1,
# those with small letters from 0.
TORCH_NAMES = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    # Three convolutions in a torch.nn.Sequential: conv, norm, ReLU, conv, ...
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
# For timm's resnetv2.py, models with pre-activation.
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
# For Hugging Face transformers, without the prefix `resnet.`.
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

# For presets of Keras Hub.
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

# Variables of a layer: torch's name -> Keras's name.
TORCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
TORCH_OTHER = {"weight": "kernel", "bias": "bias"}

# Substrings of tensor names -> models that have them.
OTHER_MODELS = {
    "res2a_branch2a": (
        "Keras's ResNet-50 from before 2019, whose batch norms have another "
        'epsilon; use the current weights, named "imagenet"'
    ),
    "layer0.conv1": "Cadene's pretrained SENets, which have another layout",
    "block1.unit01": "Google's BiT; use the same weights from timm",
    "patch_embed": "a vision transformer",
    "_blocks.0": "an EfficientNet",
    "denseblock1": "a DenseNet",
    "features.0": "another network than a ResNet",
}

ATTENTION_ROLES = {
    "squeeze": "squeeze",
    "excite": "excite",
    "conv": "neighbors",
}


class Target(NamedTuple):
    """A variable, and its conversions from and to a tensor of a file."""

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


# Conversions from torch's kernels, and back, by the role of the layer.
KERNELS = {
    "conv": (_to_hwio, _to_oihw),
    "head": (np.transpose, np.transpose),
    # A 1x1 convolution in the file is a dense layer here.
    "convolutional_head": (_from_1x1, _to_1x1),
    "squeeze": (_from_1x1, _to_1x1),
    "excite": (_from_1x1, _to_1x1),
    # A 1-D convolution.
    "neighbors": (np.transpose, np.transpose),
}


def torch_targets(model):
    """Returns {torch's name: `Target`} of all weights of a `ResNet`.

    Raises:
      WeightsError: torchvision and timm have no such model.
    """
    names = TORCH_NAMES
    if model.preactivation:
        names = TORCH_V2_NAMES
        if model.use_bias:
            raise WeightsError(
                f"{model.name}: torchvision and timm have no pre-activated "
                "ResNet with biases. Use another format."
            )
    return _torch_targets(model, names, "torchvision and timm")


def _transformers_targets(model):
    """Returns {name in transformers: `Target`} of all weights."""
    return _torch_targets(model, TRANSFORMERS_NAMES, "transformers")


def _torch_targets(model, names, library):
    targets = {}
    for layer, role, position in _layers(model):
        if role == "head" and model.preactivation:
            role = "convolutional_head"
        if role not in names:
            raise _unsupported(library, layer, model)
        prefix = names[role].format(**position)
        norm = role.endswith("bn")
        for torch_name, keras_name in (
            TORCH_NORM if norm else TORCH_OTHER
        ).items():
            variable = getattr(layer, keras_name, None)
            if variable is None:
                continue
            conversions = {}
            if keras_name == "kernel":
                read, write = KERNELS.get(role, KERNELS["conv"])
                conversions = {"read": read, "write": write}
            targets[f"{prefix}.{torch_name}"] = Target(variable, **conversions)
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
            raise _unsupported(library, layer, model)
        prefix = names[role].format(**position)
        for variable in layer.weights:
            targets[f"{prefix}/{variable.name}"] = Target(variable)
    return targets


def _unsupported(library, layer, model):
    return WeightsError(
        f"{model.name}: no model of {library} has a layer like {layer.path}. "
        "Use another format."
    )


def _own_targets(model):
    """Returns {path below the model: `Target`} of all weights."""
    return {
        path_below(model, variable): Target(variable)
        for variable in model.weights
    }


# Prefix of layers outside the ResNet, in a model that contains it.
AROUND = "../"


def targets_around(model, outer):
    """Returns {AROUND + "layer/variable": `Target`} of the other layers.

    Args:
      model: the `ResNet`.
      outer: the model that contains it.
    """
    inside = {id(variable) for variable in model.variables}
    return {
        name_around(variable.path.split("/")): Target(variable)
        for variable in outer.variables
        # Seeds of random number generators are not weights.
        if id(variable) not in inside and "float" in str(variable.dtype)
    }


def name_around(path):
    """Returns the name of a variable outside the ResNet."""
    return AROUND + "/".join(path[-2:])


def path_below(model, variable):
    """Returns the path of a variable without the model's own name."""
    return variable.path.removeprefix(f"{model.path}/")


def _layers(model):
    """Yields (layer, role, position) of every layer with weights.

    Raises:
      WeightsError: a custom block has layers that no library has names for.
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
                    f"{model.name}: no other library has names for the layers "
                    f"of {type(block).__name__}. Use a .weights.h5 file."
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
    """Naming convention of tensors in files.

    `head` has the possible names of the classifier, `separator` separates a
    layer from its variable, and `kernel` is the name of a layer's weights.
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
    """Renames tensors to the names of a dialect.

    It strips a prefix that all tensors of the backbone have. If a file has
    several complete copies, it uses the weight average, recognized by "ema" in
    its prefix. The only matrix with a bias outside the backbone is the
    classifier. Names that do not match stay unchanged.

    Args:
      tensors: {name: `StoredTensor`} of a file.
      targets: {name: `Target`} of a model.
      dialect: `Dialect` of both.

    Returns:
      ({name: tensor}, notes).
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
    notes = [f"tensor names have the prefix {prefix!r}"] if prefix else []
    rest = {name: renamed[name] for name in renamed if name not in body}
    classifiers = find_classifiers(rest, dialect)
    file_head = classifiers[0] if len(classifiers) == 1 else None
    heads = [name for name in targets if name not in body]
    # A model without a classifier has no such names.
    model_head = dialect.head[0]
    if heads:
        model_head = heads[0].rpartition(dialect.separator)[0]
    if file_head not in (None, model_head):
        for variable in (dialect.kernel, "bias"):
            old, new = (
                f"{layer}{dialect.separator}{variable}"
                for layer in (file_head, model_head)
            )
            renamed[new] = renamed.pop(old)
        notes.append(f"the classifier is named {file_head!r}")
    return renamed, tuple(notes)


def recognized_model(names):
    """Returns the model that tensor names belong to, or None if unknown."""
    for part, kind in OTHER_MODELS.items():
        if any(part in name for name in names):
            return kind
    return None


def find_classifiers(tensors, dialect):
    """Returns the names of the layers that can be the classifier.

    Args:
      tensors: {name: `StoredTensor`}.
      dialect: `Dialect` of the names.
    """
    found = []
    for name, tensor in tensors.items():
        layer, _, variable = name.rpartition(dialect.separator)
        bias = tensors.get(f"{layer}{dialect.separator}bias")
        if variable != dialect.kernel or bias is None:
            continue
        is_matrix = len(tensor.shape) == 2
        # A 1x1 convolution in timm's resnetv2.py. Squeeze-and-excitation has
        # 1x1 convolutions too.
        if is_matrix or layer.endswith("head.fc"):
            found.append(layer)
    return found


def _prefixes(tensors, anchor, separator):
    """Returns the prefixes of a name in a file."""
    return [
        name.removesuffix(anchor)
        for name in tensors
        if name == anchor or name.endswith(separator + anchor)
    ]
