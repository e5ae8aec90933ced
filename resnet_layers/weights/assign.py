"""The way of tensors into a model's variables, and out again.

Both sides must come out even: a tensor that is missing or left over is an
error, and the model is then as it was.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.resnet import ResNet
from resnet_layers.weights.files import (
    check_file,
    errors_as_one_line,
    import_safetensors,
    read_tensors,
)
from resnet_layers.weights.names import DIALECTS, WeightsError, torch_targets
from resnet_layers.weights.preprocessing import (
    Preprocessing,
    read_preprocessing,
)


class Loaded(NamedTuple):
    """What `load_weights` found.

    `dialect` is "keras", "torch" or "own"; `head_used` tells whether the
    file's classifier was taken, or the model kept its own; `preprocessing` is
    a `Preprocessing`.
    """

    dialect: str
    head_used: bool
    preprocessing: Preprocessing


def load_weights(model, path, replace_head=False):
    """Reads weights from a file or a run into a built `ResNet`.

    Args:
      model: a `ResNet` whose `build` has been called, or a model with one
        such net in it.
      path: a `.h5` or `.weights.h5` file of keras.applications, a
        `.safetensors` file with the names of torchvision or timm, a
        `.weights.h5` or `.keras` file of ours, the folder of a run or of its
        checkpoints, of which the newest that can be read is taken, or the
        prefix of one checkpoint, such as `checkpoints/ckpt-30`.
      replace_head: keep the model's own classifier where the file has another
        number of classes.

    Returns:
      A `Loaded`. Its preprocessing is what `read_preprocessing` returns.

    Raises:
      WeightsError: the file is of another architecture, damaged, or not a
        file of weights; the model is as it was then. Or the package that
        reads the file is not installed, or the model is not built.
    """
    model = _built_net(model)
    path = pathlib.Path(path)
    check_file(path)
    with errors_as_one_line(path):
        dialect, tensors = read_tensors(model, path)
    preprocessing = read_preprocessing(path)
    head_used = _assign(model, path, tensors, dialect, replace_head)
    return Loaded(dialect, head_used, preprocessing)


def save_safetensors(model, path):
    """Writes the weights of a built `ResNet` with torch's names.

    torchvision's and timm's models of the same architecture load the file.

    Args:
      model: a built `ResNet`, or a model with one in it; torch has no net of
        the pre-activation kind.
      path: of the file, usually ending in `.safetensors`. If writing fails,
        a file that was there stays as it was.

    Raises:
      WeightsError: torch has no such net, the model is not built, or the
        package that writes the file is not installed.
      OSError: the file cannot be written.
    """
    model = _built_net(model)
    safetensors = import_safetensors()
    tensors = {
        name: np.ascontiguousarray(target.write(np.asarray(target.variable)))
        for name, target in torch_targets(model).items()
    }
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    # Beside and then renamed, so that a failure never leaves half of it.
    unfinished = pathlib.Path(f"{path}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _built_net(model):
    """Returns the only `ResNet` in a model, which may be that model itself."""
    nets = [n for n in model._flatten_layers() if isinstance(n, ResNet)]
    if len(nets) != 1:
        raise WeightsError(
            f"{model.name} has {len(nets)} ResNets in it; give the ResNet "
            "whose weights are meant"
        )
    if not nets[0].built:
        raise WeightsError(
            f"{model.name} has no weights yet; call "
            "model.build((None, 224, 224, 3)) first"
        )
    return nets[0]


def _assign(model, path, tensors, dialect, replace_head):
    try:
        targets = DIALECTS[dialect].find_targets(model)
    except WeightsError as error:
        raise WeightsError(
            f"{path} does not fit {model.name}: {error}"
        ) from error
    for name, tensor in tensors.items():
        if not _is_float(tensor.dtype):
            raise WeightsError(
                f"{path} cannot be used: {name}, of shape {tensor.shape}, has "
                f"the type {tensor.dtype}; weights are real numbers"
            )
    if dialect == "keras":
        _fold_biases(tensors, targets)
    tensors, targets, head_used = _settle_head(
        model, tensors, targets, DIALECTS[dialect].head, replace_head
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
    values = {}
    for name, target in targets.items():
        expected = target.write(np.asarray(target.variable)).shape
        if tensors[name].shape != expected:
            raise WeightsError(
                f"{path} does not fit {model.name}: {name} has shape "
                f"{tensors[name].shape} there, and {expected} in the model"
            )
        dtype = tf.as_dtype(target.variable.dtype).as_numpy_dtype
        # Some that are finite are not any more in the model's type.
        with np.errstate(over="ignore"):
            values[name] = target.read(tensors[name]).astype(dtype)
        wrong = None
        if not np.all(np.isfinite(values[name])):
            wrong = "numbers that are not finite"
        elif target.variable.name == "moving_variance" and (
            np.any(values[name] < 0)
        ):
            wrong = "negative numbers, which no variance is"
        if wrong:
            raise WeightsError(
                f"{path} cannot be used: {name}, of shape {expected}, has "
                f"{wrong}"
            )
    for name, target in targets.items():
        target.variable.assign(values[name])
    return head_used


def _is_float(dtype):
    try:
        return tf.as_dtype(dtype).is_floating
    except TypeError:
        return False


def _settle_head(model, tensors, targets, prefix, replace_head):
    """Takes the classifier out where the model does not want the file's."""
    in_head = {n for n in tensors if n.startswith(prefix)}
    sizes = {tensors[name].shape for name in in_head if "bias" in name}
    fits = model.head is None or sizes == {(model.num_classes,)}
    if model.head is not None and (fits or not replace_head):
        return tensors, targets, True
    tensors = {n: t for n, t in tensors.items() if n not in in_head}
    targets = {n: t for n, t in targets.items() if not n.startswith(prefix)}
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
