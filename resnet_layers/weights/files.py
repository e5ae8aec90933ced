"""Files of weights: what tells them apart, how they are read and written."""

import contextlib
import functools
import json
import math
import os
import pathlib
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import h5py
import tensorflow as tf

from resnet_layers.weights.configs import config_beside
from resnet_layers.weights.errors import one_line
from resnet_layers.weights.names import TORCH_NORM, TORCH_OTHER, WeightsError

# What a folder of the Hugging Face hub keeps its weights in.
FILES_OF_FOLDERS = ("model.safetensors", "model.weights.h5")
# In Keras Hub's nets alone, stages are stacks.
HUB_PREFIX = "stack0_block0_"

# Between a model and its layers, groups of Keras 3's HDF5 files.
KERAS_CONTAINERS = ("blocks", "layers", "convs", "bns", "pools")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".tar")

# Types of numbers, as safetensors and as NumPy call them.
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


class Stored(NamedTuple):
    """A tensor in a file: its shape, the name of its type, and a function.

    `read()` returns the numbers, read from the file each time.
    """

    shape: tuple
    dtype: str
    read: Callable


def find_file(path):
    """Returns the file or the run that a path of weights stands for.

    That is `path` itself, or what the hub keeps in such a folder.

    Args:
      path: a `pathlib.Path`.

    Raises:
      WeightsError: it cannot be one of weights, or it is a file of torch's or
        Python's own format.
    """
    checkpoints = find_checkpoints(path)
    if path.is_dir() and not checkpoints:
        for name in FILES_OF_FOLDERS:
            if (path / name).is_file():
                return path / name
        raise WeightsError(
            f"{path} holds no weights; expected the folder of a run, with "
            "checkpoints/ckpt-STEP.index in it, or its folder checkpoints, or "
            f"a folder with {' or '.join(FILES_OF_FOLDERS)}"
        )
    if not path.is_file() and not checkpoints:
        raise WeightsError(
            f"{path} is not a file, nor a folder, nor a checkpoint's prefix"
        )
    if path.is_file() and _is_pickle(path):
        raise WeightsError(
            f"{path} is a Python pickle, which runs code when it is read; "
            "convert it where you trust it: safetensors.torch.save_file("
            "torch.load(NAME, weights_only=True), 'NAME.safetensors')"
        )
    return path


def _is_pickle(path):
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        return True
    # A safetensors file may begin with any number.
    if suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        if file.read(1) == b"\x80":
            return True
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        return any(name.endswith("data.pkl") for name in file.namelist())
    return False


def open_tensors(model, path, opened, averaged=True):
    """Returns (dialect, {name: `Stored`}) of whatever `load_weights` takes.

    No numbers are read, but those of checkpoints that must prove to be whole.

    Args:
      model: a built `ResNet`, whose blocks a `.weights.h5` file is read by, or
        None where no name of a block matters.
      path: a `pathlib.Path` that `find_file` has returned.
      opened: a `contextlib.ExitStack`; until it is closed, tensors can be
        read.
      averaged: take the averages of a run that keeps some.

    Raises:
      WeightsError: the package that reads the file is not installed.
      Exception: the file is damaged, or not a file of weights; the readers
        raise whatever they trip over.
    """
    dialect, open_file = _find_reader(path, averaged)
    # Whole numbers are no weights: torch's batch norm counts its calls for a
    # schedule of its own, `StochasticDepth` for its random numbers.
    return dialect, {
        name: tensor
        for name, tensor in open_file(model, path, opened).items()
        if not tensor.dtype.startswith(("int", "uint"))
    }


def find_dialect(path):
    """Returns the row of `DIALECTS` of a file, without reading its tensors.

    Raises:
      Exception: as `open_tensors`.
    """
    return _find_reader(path)[0]


def _find_reader(path, averaged=True):
    """Returns (dialect, function: model, path, stack -> {name: `Stored`})."""
    if not path.is_file():
        parts = ("model", "average") if averaged else ("model",)
        return "own", functools.partial(_open_checkpoints, parts)
    if path.suffix.lower() == ".safetensors":
        return "torch", _open_safetensors
    if zipfile.is_zipfile(path):
        return "own", _open_own_keras
    with h5py.File(path) as file:
        if _find_own_net(file) is not None:
            return "own", _open_own_h5
        if any(n.startswith(HUB_PREFIX) for n in _find_keras_layers(file)):
            return "hub", _open_hub_h5
    return "keras", _open_keras_h5


def find_checkpoints(path):
    """Returns the prefixes of a run's checkpoints, newest first.

    The path is that of the run, of its checkpoints, or itself such a prefix.
    """
    if not path.is_dir():
        return [path] if pathlib.Path(f"{path}.index").is_file() else []
    found = [
        (int(match[1]), index.with_suffix(""))
        for folder in (path, path / "checkpoints")
        for index in folder.glob("ckpt-*.index")
        if (match := re.fullmatch(r"ckpt-(\d+)\.index", index.name))
    ]
    return [prefix for _, prefix in sorted(found, reverse=True)]


def _open_checkpoints(parts, model, path, opened):
    """Returns {path below the model: `Stored`} of the newest that is whole."""
    prefixes = find_checkpoints(path)
    for prefix in prefixes:
        try:
            tensors = _open_checkpoint(prefix, parts)
            for tensor in tensors.values():
                tensor.read()
            return tensors
        # The second is how TensorFlow says that a file is too short.
        except (tf.errors.OpError, IndexError) as error:
            reason = f"{prefix.name}: {one_line(error)}"
            if prefix is not prefixes[-1]:
                warnings.warn(
                    f"skipping a checkpoint that cannot be read, {reason}",
                    # Points at whoever called `load_weights`.
                    stacklevel=4,
                )
    raise OSError(reason)


def _open_checkpoint(prefix, parts):
    """Returns {path below the model: `Stored`}, of the last part that has it.

    Args:
      prefix: of a checkpoint.
      parts: of it, such as "model" and "average".
    """
    reader = tf.train.load_checkpoint(str(prefix))
    shapes = reader.get_variable_to_shape_map()
    types = reader.get_variable_to_dtype_map()
    return {
        _unescape(key.split("/")[1]): Stored(
            tuple(shapes[key]),
            types[key].name,
            functools.partial(reader.get_tensor, key),
        )
        for part in parts
        for key in sorted(shapes)
        if key.startswith(f"{part}/")
    }


def _unescape(name):
    # In the keys of checkpoints TensorFlow writes ".S" for "/", ".." for ".".
    return re.sub(r"\.([.S])", lambda match: match[1].replace("S", "/"), name)


def _open_safetensors(model, path, opened):
    safetensors = _import_safetensors()
    try:
        # Not "mmap", whose pages count as memory of the process.
        file = opened.enter_context(
            safetensors.safe_open(path, framework="np", backend="pread")
        )
    except safetensors.SafetensorError as error:
        raise OSError(error) from error
    tensors = {}
    for name in file.offset_keys():
        header = file.get_slice(name)
        dtype = header.get_dtype()
        tensors[name] = Stored(
            tuple(header.get_shape()),
            SAFETENSORS_TYPES.get(dtype, dtype),
            functools.partial(file.get_tensor, name),
        )
    return tensors


def read_metadata(path):
    """Returns {name: text} that a safetensors file says of itself."""
    with _import_safetensors().safe_open(path, framework="np") as file:
        return file.metadata() or {}


def _import_safetensors():
    """Returns the package, which is an extra, or raises `WeightsError`."""
    try:
        import safetensors
    except ImportError as error:
        raise WeightsError(
            "safetensors files need the extra: pip install "
            "'resnet-layers[weights]'"
        ) from error
    return safetensors


def write_safetensors(path, tensors, metadata=None):
    """Writes a file of safetensors, one tensor after the other.

    A file that was there stays as it was until the new one is whole.

    Args:
      path: of the file.
      tensors: {name: `Stored`}; each is read when its turn comes.
      metadata: {name: text} for `read_metadata`.

    Raises:
      OSError: the file cannot be written.
    """
    codes = {dtype: code for code, dtype in SAFETENSORS_TYPES.items()}
    # For torch, as the package itself would write it, to the last byte.
    header, end = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    for name, tensor in sorted(tensors.items()):
        begin = end
        end += math.prod(tensor.shape) * tf.as_dtype(tensor.dtype).size
        header[name] = {
            "dtype": codes[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Beside and then renamed, so that a failure never leaves half of it.
    unfinished = pathlib.Path(f"{path}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, tensor in sorted(tensors.items()):
                file.write(tensor.read().tobytes())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_layer_names(path):
    """Returns the names of the layers in a file of keras.applications."""
    with h5py.File(path) as file:
        return list(_find_keras_layers(file))


def _open_keras_h5(model, path, opened):
    """Returns {"layer/variable": `Stored`} of a file of keras.applications."""
    file = opened.enter_context(h5py.File(path))
    return {
        f"{layer}/{name}": tensor
        for layer, group in _find_keras_layers(file).items()
        for name, tensor in _open_variables(group)
    }


def _open_hub_h5(model, path, opened):
    """Returns the same of a preset of Keras Hub, the classifier included."""
    tensors = _open_keras_h5(model, path, opened)
    head = path.with_name("task.weights.h5")
    if head.is_file():
        with config_beside(path, "task.json") as task:
            pooling = task.get("config", {}).get("pooling", "avg")
        if pooling != "avg":
            raise WeightsError(
                f"{path} is of a classifier with pooling {pooling}; here all "
                "take the mean"
            )
        tensors |= _open_keras_h5(model, head, opened)
    return tensors


def _find_keras_layers(file):
    """Returns {layer: group of its variables} of either format of Keras."""
    # Of a whole model, weights are a part.
    file = file.get("model_weights", file)
    if "layer_names" in file.attrs:
        return {
            name: file[name] for name in map(_text, file.attrs["layer_names"])
        }
    groups = [group["vars"] for group in file["layers"].values()]
    return {_text(group.attrs["name"]): group for group in groups}


def _open_own_keras(model, path, opened):
    """Returns {path below the `ResNet` in a `.keras` file: `Stored`}.

    The file's model is not built: that would take its memory once more, and
    run what code there is in it.
    """
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    with zipfile.ZipFile(path) as archive:
        # HDF5 jumps to and fro, and in a zip file every jump back begins at
        # its beginning.
        weights = archive.extract("model.weights.h5", folder)
    return _open_own_h5(model, weights, opened)


def read_model_config(path):
    """Returns the arguments of the `ResNet` in a `.keras` file, else None."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read("config.json"))
    # The model itself, or a layer of it.
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if "stage_sizes" in part:
                return part
            part = part.values()
        if not isinstance(part, str | int | float | None):
            waiting.extend(part)
    return None


def _open_own_h5(model, path, opened):
    """Returns {path below the model: `Stored`} of a `.weights.h5` file.

    Not by Keras, which overwrites half of a model before it notices that the
    rest does not fit, and does not look at what is left over.
    """
    tensors = {}

    def add(name, group):
        # The optimizer of a compiled model stands beside the layers.
        if name.startswith("optimizer/"):
            return
        if not name.endswith("/vars") or not len(group):
            return
        owners = name.removeprefix(prefix).split("/")[:-2]
        # Blocks go by number there: bottleneck_block, bottleneck_block_1.
        if owners[:1] == ["blocks"]:
            number = int(re.search(r"\d*$", owners[1])[0] or 0)
            if model is not None and number < len(model.blocks):
                owners[1] = model.blocks[number].path.split("/")[-1]
        layer = [part for part in owners if part not in KERAS_CONTAINERS]
        layer.append(_layer_name(name, group))
        for variable, tensor in _open_variables(group):
            tensors["/".join([*layer, variable])] = tensor

    file = opened.enter_context(h5py.File(path))
    net = _find_own_net(file)
    if net is None:
        raise OSError("there is no ResNet of this library in it")
    prefix = f"{net}/"
    file.visititems(add)
    return tensors


def _find_own_net(file):
    """Returns the path of a `ResNet` in a `.weights.h5` file, or None.

    It is "" where the file is of the net alone, not of a model around it.
    """
    if "blocks" in file:
        return ""
    return file.visit(
        lambda name: (
            name.removesuffix("/blocks") if name.endswith("/blocks") else None
        )
    )


def _layer_name(path, group):
    """Returns the name that a layer was built with."""
    name, attribute = _text(group.attrs["name"]), path.split("/")[-2]
    # `ResNet.features` puts the net's name in front of those of its layers.
    return attribute if name.endswith(f"_{attribute}") else name


def _open_variables(group):
    """Returns [(name, `Stored`)] of one layer's group."""
    # Only Keras 2 wrote the names down.
    if "weight_names" in group.attrs:
        return [
            (name.split("/")[-1].split(":")[0], _open_dataset(group[name]))
            for name in map(_text, group.attrs["weight_names"])
        ]
    tensors = [_open_dataset(group[key]) for key in sorted(group)]
    norm = len(tensors) == len(TORCH_NORM)
    names = (TORCH_NORM if norm else TORCH_OTHER).values()
    return list(zip(names, tensors, strict=False))


def _open_dataset(dataset):
    # HDF5 has no bfloat16; Keras writes the bytes, and says so beside them.
    if dataset.attrs.get("dtype") == "bfloat16":
        dtype = tf.bfloat16.as_numpy_dtype
        return Stored(
            dataset.shape, "bfloat16", lambda: dataset[()].view(dtype)
        )
    return Stored(dataset.shape, dataset.dtype.name, lambda: dataset[()])


def _text(name):
    return name.decode() if isinstance(name, bytes) else name
