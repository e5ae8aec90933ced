"""Weights into a model's variables, and out again.

Both sides must come out even: a tensor that is missing or left over is an
error, and the model is then as it was. Tensors are read twice, first to be
checked and then to be assigned, so that no more than one of them is in memory
beside the model.
"""

import contextlib
import difflib
import functools
import json
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.resnet import ResNet
from resnet_layers.weights.architectures import (
    TRAITS,
    check_function,
    find_traits,
)
from resnet_layers.weights.files import (
    find_file,
    open_tensors,
    write_tensors,
)
from resnet_layers.weights.names import (
    AROUND,
    DIALECTS,
    recognized_model,
    rename,
    targets_around,
    torch_targets,
)
from resnet_layers.weights.preprocessing import (
    Preprocessing,
    read_preprocessing,
)
from resnet_layers.weights.tensors import (
    StoredTensor,
    WeightsError,
    errors_as_one_line,
)

FLOATS = ("float16", "bfloat16", "float32", "float64")
CACHE_LINE_BYTES = 64


class Loaded(NamedTuple):
    """What `load_weights` found.

    `dialect` is "keras", "torch", "transformers", "hub" or "own"; `head_used`
    tells whether the file's classifier was taken, or the model kept its own;
    `preprocessing` is a `Preprocessing`. `notes` report what was renamed or
    adapted.
    """

    dialect: str
    head_used: bool
    preprocessing: Preprocessing
    notes: tuple = ()


def load_weights(
    model, path, replace_head=False, averaged=True, adapt_channels=False
):
    """Reads weights from a file or a run into a built `ResNet`.

    Args:
      model: a `ResNet` whose `build` has been called, or a model that
        contains one. A file of a model around a `ResNet` fits a model with the
        same layers; all other files are for the `ResNet` alone.
      path: a `.h5`, `.weights.h5` or `.keras` file of keras.applications, a
        `.safetensors` file, or one of `torch.save` (`.pth`, `.pt`, `.bin`),
        with the names of torchvision, timm or transformers, a `.weights.h5` or
        `.keras` file of ours, the `model.weights.h5` of a preset of Keras Hub,
        a folder with such a file as the Hugging Face hub
        has it, the folder of a run or of its checkpoints, of which the newest
        that can be read is taken, or the prefix of one checkpoint, such as
        `checkpoints/ckpt-30`.
      replace_head: keep the model's own classifier where the file has another
        number of classes.
      averaged: take the averaged weights of a run that keeps some, not those of
        its last step.
      adapt_channels: fit the first convolution to the channels of the model's
        images, as timm does: for one channel the kernels are summed, for more
        they are repeated and scaled, so that activations keep their size.

    Returns:
      A `Loaded`. Its preprocessing is what `read_preprocessing` returns.

    Raises:
      WeightsError: the file is of another architecture, damaged, or not a
        file of weights; the model is as it was then. Or the package that
        reads the file is not installed, or the model is not built.
    """
    outer, model = model, _built_net(model)
    path = find_file(pathlib.Path(path))
    preprocessing = read_preprocessing(path)
    with errors_as_one_line(path), contextlib.ExitStack() as opened:
        dialect, tensors = open_tensors(model, path, opened, averaged)
        pairs, head_used, notes = _pair(
            *(outer, model, path, tensors),
            *(dialect, replace_head, adapt_channels),
        )
        check_function(model, path, dialect)
        for name, (tensor, target) in pairs.items():
            _check_values(_read(tensor, target), path, name, target)
        for tensor, target in pairs.values():
            # TensorFlow's own variable takes a tensor over as it is. Keras's
            # way looks at shapes again, and copies arrays once more.
            values = tf.constant(_packed(_read(tensor, target)))
            target.variable.value.assign(values)
    return Loaded(dialect, head_used, preprocessing, notes)


def save_safetensors(model, path):
    """Writes the weights of a built `ResNet` with torch's names.

    torchvision's and timm's models of the same architecture load the file.

    Args:
      model: a built `ResNet`, or a model with one in it; torch has no net of
        the pre-activation kind.
      path: of the file, usually ending in `.safetensors`. If writing fails,
        a file that was there stays as it was.

    Raises:
      WeightsError: torch has no such net, or the model is not built.
      OSError: the file cannot be written.
    """
    tensors = {}
    model = _built_net(model)
    for name, target in torch_targets(model).items():
        outline = _outline(target)
        tensors[name] = StoredTensor(
            outline.shape,
            outline.dtype.name,
            # Not the loop's own, which is another one by then.
            lambda target=target: target.write(np.asarray(target.variable)),
        )
    traits = find_traits(model.get_config())
    # What no name shows, so that it is not taken for a model of theirs.
    stated = {
        name: value
        for name, value in traits.items()
        if name != "shortcut" and value != TRAITS[name]
    }
    metadata = {"resnet_layers": json.dumps(stated)} if stated else {}
    write_tensors(path, tensors, metadata)


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


def _pair(outer, model, path, tensors, dialect, replace_head, adapt_channels):
    """Returns ({name: (tensor, `Target`)}, whether the head is in it, notes).

    Names, shapes and types are checked; numbers are not read.
    """
    dialect = DIALECTS[dialect]
    try:
        targets = dialect.find_targets(model)
    except WeightsError as error:
        raise WeightsError(
            f"{path} does not fit {model.name}: {error}"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise WeightsError(
                f"{path} cannot be used: {name}, of shape {tensor.shape}, has "
                f"the type {tensor.dtype}; weights are real numbers"
            )
    notes = ()
    if dialect is not DIALECTS["own"]:
        tensors, notes = rename(tensors, targets, dialect)
    if dialect is DIALECTS["keras"]:
        tensors = _fold_biases(tensors, targets)
    tensors, targets, head_used = _choose_head(
        model, tensors, targets, dialect.head, replace_head
    )
    around = [name for name in tensors if name.startswith(AROUND)]
    if around and outer is model:
        layers = {name.split("/")[-2]: None for name in around}
        raise WeightsError(
            f"{path} does not fit {model.name}: it is of a model that has "
            f"other layers around the ResNet ({', '.join(layers)}); load it "
            "into a model with the same layers"
        )
    if around:
        targets |= targets_around(model, outer)
    for name in [*targets, *tensors]:
        if name not in tensors:
            shape = tuple(targets[name].variable.shape)
            raise WeightsError(
                f"{path} does not fit {model.name}: it has no {name}, which "
                f"the model has with shape {shape}{_nearest(name, tensors)}"
                f"{recognized_model(tensors)}"
            )
        if name not in targets:
            raise WeightsError(
                f"{path} does not fit {model.name}: the model has no {name}, "
                f"which the file has with shape {tensors[name].shape}"
                f"{_nearest(name, targets)}"
            )
    for name, target in targets.items():
        is_first = target.variable is model.stem.convs[0].kernel
        if is_first and adapt_channels:
            target, more = _adapted(target, tensors[name].shape)
            targets[name], notes = target, notes + more
        expected = _outline(target).shape
        if tensors[name].shape != expected:
            hint = "; `adapt_channels` fits it to other images"
            raise WeightsError(
                f"{path} does not fit {model.name}: {name} has shape "
                f"{tensors[name].shape} there, and {expected} in the model"
                f"{hint if is_first else ''}"
            )
    pairs = {name: (tensors[name], targets[name]) for name in targets}
    return pairs, head_used, notes


def _adapted(target, shape):
    """Returns (`Target` of a first kernel for other channels, notes).

    Args:
      target: for as many as the model has.
      shape: of the file's kernel.
    """
    channels = target.variable.shape[2]
    if shape == _outline(target).shape or len(shape) != 4:
        return target, ()
    theirs = target.read(np.broadcast_to(np.float32(0), shape)).shape[2]

    def read(kernel):
        kernel = target.read(kernel)
        if channels == 1:
            return kernel.sum(axis=2, keepdims=True)
        repeated = np.tile(kernel, (1, 1, -(-channels // theirs), 1))
        return repeated[:, :, :channels] * (theirs / channels)

    def write(kernel):
        # Only the shape matters.
        return target.write(np.repeat(kernel[:, :, :1], theirs, axis=2))

    note = f"its images are of {theirs} channels, fitted to {channels}"
    return target._replace(read=read, write=write), (note,)


def _nearest(name, names):
    """Returns the names nearest to one, as the end of a sentence."""
    near = difflib.get_close_matches(name, names, 3, cutoff=0.5)
    return f"; the nearest there: {', '.join(near)}" if near else ""


def _outline(target):
    """Returns what a file has of a variable, without numbers or memory."""
    variable = target.variable
    zero = np.zeros((), tf.as_dtype(variable.dtype).as_numpy_dtype)
    return target.write(np.broadcast_to(zero, tuple(variable.shape)))


def _read(tensor, target):
    """Returns a file's tensor as the variable has it, in any memory order."""
    values = target.read(tensor.read())
    dtype = tf.as_dtype(target.variable.dtype).as_numpy_dtype
    if values.dtype == dtype:
        return values
    # Some that are finite are not any more in the model's type.
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _check_values(values, path, name, target):
    wrong = None
    if not np.all(np.isfinite(values)):
        wrong = "numbers that are not finite"
    elif target.variable.name == "moving_variance" and np.any(values < 0):
        wrong = "negative numbers, which no variance is"
    if wrong:
        raise WeightsError(
            f"{path} cannot be used: {name}, of shape "
            f"{_outline(target).shape}, has {wrong}"
        )


def _packed(values):
    """Returns an array in C order.

    Kernels of torch are transposed: NumPy, left alone, reads a line of the
    cache for every number of them. In slices as wide as such a line it reads
    each line once.
    """
    if values.flags.c_contiguous:
        return values
    packed = np.empty(values.shape, values.dtype)
    width = CACHE_LINE_BYTES // values.itemsize
    for begin in range(0, values.shape[-1], width):
        part = np.s_[..., begin : begin + width]
        packed[part] = values[part]
    return packed


def _choose_head(model, tensors, targets, prefix, replace_head):
    """Drops the file's classifier where the model keeps its own."""
    in_head = {n for n in tensors if n.startswith(prefix)}
    sizes = {tensors[name].shape for name in in_head if "bias" in name}
    fits = model.head is None or sizes == {(model.num_classes,)}
    if model.head is not None and (fits or not replace_head):
        return tensors, targets, True
    tensors = {n: t for n, t in tensors.items() if n not in in_head}
    targets = {n: t for n, t in targets.items() if not n.startswith(prefix)}
    return tensors, targets, False


def _fold_biases(tensors, targets):
    """Returns the tensors, biases before a batch norm moved into its mean.

    The convolutions of keras.applications have biases that the norm behind
    them takes out again.
    """
    folded = dict(tensors)
    for name, bias in tensors.items():
        if name.endswith("_conv/bias") and name not in targets:
            mean_name = name.replace("_conv/bias", "_bn/moving_mean")
            mean = tensors.get(mean_name)
            if mean is not None and mean.shape == bias.shape:
                del folded[name]
                folded[mean_name] = mean._replace(
                    read=functools.partial(_difference, mean, bias)
                )
    return folded


def _difference(mean, bias):
    return mean.read() - bias.read()
