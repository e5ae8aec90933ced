"""Loading weights into a model, and saving them.

The tensors of a file and the variables of a model must match exactly. A missing
or unexpected tensor is an error, which leaves the model unchanged. Tensors are
read twice, first to check and then to assign them, so that only one of them is
in memory beside the model.
"""

import contextlib
import difflib
import functools
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.resnet import ResNet
from resnet_layers.weights.architectures import (
    FUNCTION_ARGUMENTS,
    check_function,
    function_arguments,
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
    """Result of `load_weights`.

    Attributes:
      dialect: naming convention of the file: "keras", "torch",
        "transformers", "hub" or "own" (this library).
      head_used: whether the model has the classifier of the file, rather than
        its own.
      preprocessing: `Preprocessing` of the weights.
      notes: tuple of strings, one for each name or kernel that was adapted.
    """

    dialect: str
    head_used: bool
    preprocessing: Preprocessing
    notes: tuple = ()


def load_weights(
    model: tf.keras.Model,
    path: str | os.PathLike[str],
    replace_head: bool = False,
    averaged: bool = True,
    adapt_channels: bool = False,
) -> Loaded:
    """Loads weights from a file, a folder or a run into a built `ResNet`.

    `path` is one of:

    - a `.safetensors` file, or a `.pth`, `.pt` or `.bin` file of `torch.save`,
      with the names of torchvision, timm or transformers;
    - a `.h5`, `.weights.h5` or `.keras` file of keras.applications or of this
      library;
    - the folder of a Keras Hub preset, or its `model.weights.h5`;
    - a folder with such a file, as on the Hugging Face hub;
    - the folder of a run or its checkpoints, for the newest intact checkpoint;
    - the prefix of one checkpoint, for example `checkpoints/ckpt-30`.

    Loading runs no code from the file. Values are cast to the dtypes of the
    variables.

    Args:
      model: a built `ResNet`, or a model that contains one. A file of a model
        around a `ResNet` requires a model with the same other layers; any
        other file sets the weights of the `ResNet` alone.
      path: path of the weights, a string or `pathlib.Path`.
      replace_head: whether the model keeps its own classifier if the file has
        another number of classes. Otherwise this is an error.
      averaged: whether to load the weight average of a run that has one,
        rather than the weights of the last step.
      adapt_channels: whether to adapt the first convolution to the channels of
        the model's images, as in timm. For one channel, kernels are summed;
        for more, they are repeated and scaled, so that activations keep their
        scale.

    Returns:
      A `Loaded` tuple with `dialect`, `head_used`, `preprocessing` (see
      `read_preprocessing`) and `notes`.

    Raises:
      WeightsError: the file is not found, is damaged, contains invalid values
        or is of another architecture; the model is not built; or the package
        that reads the file is not installed. The model stays unchanged.

    Example:
      ```python
      model = VARIANTS["resnet50"](num_classes=37)
      model.build((None, 224, 224, 3))
      loaded = load_weights(
          model, "resnet50.safetensors", replace_head=True
      )
      loaded.head_used  # False: the file has 1,000 classes
      ```
    """
    outer, model = model, _find_resnet(model)
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
            # TensorFlow's variable takes over the tensor. Keras's `assign`
            # checks shapes again and copies arrays once more.
            values = tf.constant(_packed(_read(tensor, target)))
            target.variable.value.assign(values)
    return Loaded(dialect, head_used, preprocessing, notes)


def save_safetensors(
    model: tf.keras.Model, path: str | os.PathLike[str]
) -> None:
    """Saves the weights of a built `ResNet` in torch's format.

    The safetensors file has the tensor names and layouts of torchvision and
    timm, whose models of the same architecture load it. The file is written
    atomically: if saving fails, an existing file stays unchanged.

    Args:
      model: a built `ResNet`, or a model that contains one. Models with
        `preactivation` and biases are unsupported.
      path: path of the file, usually with the suffix `.safetensors`.

    Raises:
      WeightsError: torchvision and timm have no such model, or the model is
        not built.
      OSError: the file cannot be written.

    Example:
      ```python
      save_safetensors(model, "model.safetensors")
      ```

      In timm: `timm.create_model("resnet50d", num_classes=37,
      checkpoint_path="model.safetensors")`.
    """
    tensors = {}
    model = _find_resnet(model)
    for name, target in torch_targets(model).items():
        outline = _outline(target)
        tensors[name] = StoredTensor(
            outline.shape,
            outline.dtype.name,
            # Binds the target of this iteration.
            lambda target=target: target.write(np.asarray(target.variable)),
        )
    arguments = function_arguments(model.get_config())
    # The names of the weights do not show these. They tell such a model from
    # one of timm.
    stated = {
        name: value
        for name, value in arguments.items()
        if name != "shortcut" and value != FUNCTION_ARGUMENTS[name]
    }
    metadata = {"resnet_layers": json.dumps(stated)} if stated else {}
    write_tensors(path, tensors, metadata)


def _find_resnet(model):
    """Returns the only `ResNet` in a model, possibly the model itself."""
    resnets = [n for n in model._flatten_layers() if isinstance(n, ResNet)]
    if len(resnets) != 1:
        raise WeightsError(
            f"{model.name}: must contain one ResNet, and contains "
            f"{len(resnets)}. Pass a single ResNet."
        )
    if not resnets[0].built:
        raise WeightsError(
            f"{model.name}: must be built, and has no weights yet. Call "
            "model.build((None, 224, 224, 3))."
        )
    return resnets[0]


def _pair(outer, model, path, tensors, dialect, replace_head, adapt_channels):
    """Matches tensors to variables by name, shape and dtype.

    Returns:
      ({name: (tensor, `Target`)}, whether the file's classifier is used,
      notes). No values are read.
    """
    dialect = DIALECTS[dialect]
    try:
        targets = dialect.find_targets(model)
    except WeightsError as error:
        # The message begins with the name of the model.
        raise WeightsError(f"{path}: does not match {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise WeightsError(
                f"{path}: {name} of shape {tensor.shape} has the unsupported "
                f"dtype {tensor.dtype}. Save it as a float type."
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
            f"{path}: does not match {model.name}. It has other layers around "
            f"the ResNet ({', '.join(layers)}). Load it into a model with "
            "these layers."
        )
    if around:
        targets |= targets_around(model, outer)
    for name in [*targets, *tensors]:
        if name not in tensors:
            shape = tuple(targets[name].variable.shape)
            raise WeightsError(
                f"{path}: does not match {model.name}. The file has no {name} "
                f"of shape {shape}{_nearest(name, tensors)}. "
                f"{_advice(tensors)}"
            )
        if name not in targets:
            raise WeightsError(
                f"{path}: does not match {model.name}. The model has no {name} "
                f"of shape {tensors[name].shape}{_nearest(name, targets)}. "
                f"{_advice(tensors)}"
            )
    for name, target in targets.items():
        is_first = target.variable is model.stem.convs[0].kernel
        if is_first and adapt_channels:
            target, more = _adapted(target, tensors[name].shape)
            targets[name], notes = target, notes + more
        expected = _outline(target).shape
        if tensors[name].shape != expected:
            advice = _advice(tensors)
            if is_first:
                advice = "Pass adapt_channels=True to adapt the kernel."
            raise WeightsError(
                f"{path}: does not match {model.name}. {name} has shape "
                f"{tensors[name].shape}, and {expected} in the model. {advice}"
            )
    pairs = {name: (tensors[name], targets[name]) for name in targets}
    return pairs, head_used, notes


def _adapted(target, shape):
    """Returns (`Target` that adapts a first kernel's channels, notes).

    Args:
      target: `Target` of the model's kernel.
      shape: shape of the file's kernel.
    """
    channels = target.variable.shape[2]
    if shape == _outline(target).shape or len(shape) != 4:
        return target, ()
    file_channels = target.read(np.broadcast_to(np.float32(0), shape)).shape[2]

    def read(kernel):
        kernel = target.read(kernel)
        if channels == 1:
            return kernel.sum(axis=2, keepdims=True)
        repeated = np.tile(kernel, (1, 1, -(-channels // file_channels), 1))
        return repeated[:, :, :channels] * (file_channels / channels)

    def write(kernel):
        # Only the shape matters.
        return target.write(np.repeat(kernel[:, :, :1], file_channels, axis=2))

    note = (
        "the first convolution was adapted from "
        f"{file_channels} to {channels} channels"
    )
    return target._replace(read=read, write=write), (note,)


def _nearest(name, names):
    """Returns the nearest names, as the end of a sentence."""
    near = difflib.get_close_matches(name, names, 3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


def _advice(tensors):
    """Returns what to do about weights that do not match."""
    other = recognized_model(tensors)
    if other:
        return f"The names are those of {other}."
    return "Pass weights of this architecture, or change the model."


def _outline(target):
    """Returns an array with a file's shape and dtype, without memory."""
    variable = target.variable
    zero = np.zeros((), tf.as_dtype(variable.dtype).as_numpy_dtype)
    return target.write(np.broadcast_to(zero, tuple(variable.shape)))


def _read(tensor, target):
    """Reads a tensor in the layout and dtype of its variable."""
    values = target.read(tensor.read())
    dtype = tf.as_dtype(target.variable.dtype).as_numpy_dtype
    if values.dtype == dtype:
        return values
    # Finite values may overflow in the model's dtype.
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _check_values(values, path, name, target):
    fault = None
    if not np.all(np.isfinite(values)):
        fault = "values that are not finite"
    elif target.variable.name == "moving_variance" and np.any(values < 0):
        fault = "negative values, although it is a variance"
    if fault:
        raise WeightsError(
            f"{path}: {name} of shape {_outline(target).shape} has {fault}. "
            "Pass an intact file of weights."
        )


def _packed(values):
    """Returns an array in C order.

    Kernels of torch are transposed. NumPy's own copy reads a cache line for
    each value of them; slices as wide as a cache line read each line once.
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
    """Removes the file's classifier where the model keeps its own."""
    in_head = {n for n in tensors if n.startswith(prefix)}
    sizes = {tensors[name].shape for name in in_head if "bias" in name}
    fits = model.head is None or sizes == {(model.num_classes,)}
    if model.head is not None and (fits or not replace_head):
        return tensors, targets, True
    tensors = {n: t for n, t in tensors.items() if n not in in_head}
    targets = {n: t for n, t in targets.items() if not n.startswith(prefix)}
    return tensors, targets, False


def _fold_biases(tensors, targets):
    """Moves convolution biases into the means of the following batch norms.

    The convolutions of keras.applications have such biases, which the batch
    norm cancels.
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
