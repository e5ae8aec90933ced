"""This file answers: how do weights get from other people's files into ours?

Files of keras.applications, torchvision and timm are read by name, and both
sides must come out even: a tensor that is missing or left over is an error.
"""

import pathlib
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import h5py
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


# Where keras.applications keeps its weights, and what they must hash to (MD5).
IMAGENET_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    "{}_weights_tf_dim_ordering_tf_kernels.h5"
)
IMAGENET_FILES = {
    "resnet50_keras": ("resnet50", "2cb95161c43110f7111970584f804107"),
    "resnet101_keras": ("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
    "resnet152_keras": ("resnet152", "100835be76be38e30d865e96f2aaae62"),
    "resnet50_v2": ("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0"),
    "resnet101_v2": ("resnet101v2", "6343647c601c52e1368623803854d971"),
    "resnet152_v2": ("resnet152v2", "a49b44d1979771252814e80f8ec446f9"),
}


class WeightsError(ValueError):
    """A file of weights that cannot be used; its text is one line."""


class Loaded(NamedTuple):
    """What `load_weights` found.

    `dialect` is "keras", "torch" or "own"; `head_used` tells whether the
    file's classifier was taken, or the model kept its own.
    """

    dialect: str
    head_used: bool


class Target(NamedTuple):
    """One of our variables, and the way from and to a foreign tensor."""

    variable: tf.keras.Variable
    read: Callable = np.asarray
    write: Callable = np.asarray


def load_weights(model, path, replace_head=False):
    """Reads weights from a file into a built `ResNet`.

    Args:
      model: a `ResNet` whose `build` has been called.
      path: a `.h5` or `.weights.h5` file of keras.applications, a
        `.safetensors` file with the names of torchvision or timm, or a
        `.weights.h5` or `.keras` file of ours.
      replace_head: keep the model's own classifier where the file has another
        number of classes.

    Returns:
      A `Loaded`.

    Raises:
      WeightsError: the file is of another architecture, damaged, or not a
        file of weights; the model is as it was then. Or the package that
        reads the file is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    if path.suffix in (".pth", ".pt", ".bin"):
        raise WeightsError(
            f"{path} is a Python pickle, which runs code when it is read; "
            "convert it where you trust it: safetensors.torch.save_file("
            "torch.load(NAME, weights_only=True), 'NAME.safetensors')"
        )
    try:
        if path.suffix == ".safetensors":
            tensors, find_targets = _read_safetensors(path), torch_targets
        elif zipfile.is_zipfile(path) or _is_own_h5(path):
            _load_own(model, path)
            return Loaded("own", head_used=True)
        else:
            tensors, find_targets = _read_keras_h5(path), keras_targets
    except (OSError, KeyError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights: {_one_line(error)}"
        ) from error
    head_used = _assign(model, path, tensors, find_targets, replace_head)
    dialect = "torch" if find_targets is torch_targets else "keras"
    return Loaded(dialect, head_used)


def find_weights(name, variant):
    """Returns the path of a file of weights, downloaded where necessary.

    Args:
      name: "imagenet" for the file of keras.applications, "timm/NAME" for
        timm's on the Hugging Face hub, or the path of a file.
      variant: row of `VARIANTS` that the weights are for.

    Raises:
      WeightsError: there is no such file, or it cannot be had.
    """
    if name == "imagenet":
        if variant not in IMAGENET_FILES:
            raise WeightsError(
                f"keras.applications has no weights for {variant}, only for "
                f"{', '.join(IMAGENET_FILES)}"
            )
        stem, md5 = IMAGENET_FILES[variant]
        url = IMAGENET_URL.format(stem)
        return _download(
            url,
            lambda: tf.keras.utils.get_file(
                origin=url, cache_subdir="models", file_hash=md5
            ),
        )
    if name.startswith("timm/"):
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            raise WeightsError(
                f"{name} needs the extra: pip install 'resnet-layers[weights]'"
            ) from error
        return _download(
            f"https://huggingface.co/{name}",
            lambda: hf_hub_download(name, "model.safetensors"),
        )
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    return path


def _download(url, download):
    try:
        return pathlib.Path(download())
    # Keras raises plain exceptions, and the hub a dozen kinds.
    except Exception as error:
        raise WeightsError(
            f"{url} could not be downloaded ({_one_line(error)}); on a machine "
            "that reaches it download the file, and name its path"
        ) from error


def save_safetensors(model, path):
    """Writes the weights of a built `ResNet` with torch's names.

    torchvision's and timm's models of the same architecture load the file.

    Args:
      model: a built `ResNet`; torch has no net of the pre-activation kind.
      path: of the file, usually ending in `.safetensors`.
    """
    safetensors = _import_safetensors()
    tensors = {
        name: np.ascontiguousarray(target.write(np.asarray(target.variable)))
        for name, target in torch_targets(model).items()
    }
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


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


def _assign(model, path, tensors, find_targets, replace_head):
    targets = find_targets(model)
    if find_targets is keras_targets:
        _fold_biases(tensors, targets)
    tensors, targets, head_used = _settle_head(
        model, tensors, targets, find_targets, replace_head
    )
    for name in [*targets, *tensors]:
        if name not in tensors:
            shape = tuple(targets[name].variable.shape)
            raise WeightsError(
                f"{path} does not fit {model.name}: it has no {name}, which "
                f"the model has with shape {shape}"
            )
        if name not in targets:
            raise WeightsError(
                f"{path} does not fit {model.name}: the model has no {name}, "
                f"which the file has with shape {tensors[name].shape}"
            )
    for name, target in targets.items():
        expected = target.write(np.asarray(target.variable)).shape
        if tensors[name].shape != expected:
            raise WeightsError(
                f"{path} does not fit {model.name}: {name} has shape "
                f"{tensors[name].shape} there, and {expected} in the model"
            )
        if not np.all(np.isfinite(tensors[name])):
            raise WeightsError(
                f"{path} cannot be used: {name}, of shape {expected}, has "
                "numbers that are not finite"
            )
    for name, target in targets.items():
        target.variable.assign(target.read(tensors[name]))
    return head_used


def _settle_head(model, tensors, targets, find_targets, replace_head):
    """Takes the classifier out where the model does not want the file's."""
    names = TORCH_NAMES if find_targets is torch_targets else KERAS_NAMES
    in_head = {n for n in tensors if n.startswith(names["head"])}
    sizes = {tensors[name].shape[0] for name in in_head if "bias" in name}
    fits = model.head is None or sizes == {model.num_classes}
    if model.head is not None and (fits or not replace_head):
        return tensors, targets, True
    tensors = {n: t for n, t in tensors.items() if n not in in_head}
    targets = {
        n: t for n, t in targets.items() if not n.startswith(names["head"])
    }
    return tensors, targets, False


def _fold_biases(tensors, targets):
    """Moves biases in front of a batch norm into its moving mean.

    The convolutions of keras.applications have biases that the norm behind
    them takes out again.
    """
    for name in [n for n in tensors if n.endswith("_conv/bias")]:
        if name not in targets:
            mean = name.replace("_conv/bias", "_bn/moving_mean")
            if mean in tensors and tensors[mean].shape == tensors[name].shape:
                tensors[mean] = tensors[mean] - tensors.pop(name)


def _read_safetensors(path):
    safetensors = _import_safetensors()
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise OSError(error) from error
    # A counter that only torch's own momentum schedule reads.
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def _import_safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise WeightsError(
            "safetensors files need the extra: pip install "
            "'resnet-layers[weights]'"
        ) from error
    return safetensors


def _read_keras_h5(path):
    """Returns {"layer/variable": array} of a file of keras.applications."""
    tensors = {}
    with h5py.File(path) as file:
        if "layer_names" in file.attrs:
            for layer in map(_text, file.attrs["layer_names"]):
                for name in map(_text, file[layer].attrs["weight_names"]):
                    variable = name.split("/")[-1].split(":")[0]
                    tensors[f"{layer}/{variable}"] = file[layer][name][()]
            return tensors
        for group in file["layers"].values():
            values = [group["vars"][key][()] for key in sorted(group["vars"])]
            names = list(TORCH_OTHER.values())
            if len(values) == len(TORCH_NORM):
                names = list(TORCH_NORM.values())
            layer = _text(group["vars"].attrs["name"])
            for name, value in zip(names, values, strict=False):
                tensors[f"{layer}/{name}"] = value
    return tensors


def _is_own_h5(path):
    with h5py.File(path) as file:
        return "blocks" in file


def _load_own(model, path):
    try:
        if path.suffix == ".keras":
            loaded = tf.keras.models.load_model(path, compile=False)
            model.set_weights(loaded.get_weights())
        else:
            model.load_weights(path)
    except ValueError as error:
        raise WeightsError(
            f"{path} does not fit {model.name}: {_one_line(error)}"
        ) from error


def _one_line(error):
    return " ".join(str(error).split())[:200]


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


def _to_hwio(kernel):
    return kernel.transpose(2, 3, 1, 0)


def _to_oihw(kernel):
    return kernel.transpose(3, 2, 0, 1)


def _from_1x1(kernel):
    return kernel[:, :, 0, 0].T


def _to_1x1(kernel):
    return kernel.T[:, :, np.newaxis, np.newaxis]
