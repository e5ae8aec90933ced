"""Weight files: format detection, reading, writing.


No other module knows the format of a run's checkpoints.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import re
import tempfile
import warnings

import tensorflow as tf

from resnet_layers.weights.keras_files import KERAS_READERS, find_keras_dialect
from resnet_layers.weights.pickles import is_pickle, open_pickle
from resnet_layers.weights.tensors import StoredTensor, WeightsError, one_line

# Weight files in a folder of the Hugging Face hub, in order of preference.
FILES_OF_FOLDERS = (
    "model.safetensors",
    "model.weights.h5",
    "pytorch_model.bin",
)

# A name that only files of transformers have, not torchvision's and timm's.
TRANSFORMERS_STEM = "embedder.embedder.convolution.weight"

# Name of a checkpoint by its step, and the folder of a run that has them.
CHECKPOINT = "ckpt-{}"
CHECKPOINTS = "checkpoints"
# Parts of a checkpoint with weights: those of the last step, and the weight
# average, if any.
MODEL, AVERAGE = "model", "average"
# TensorFlow treats the name of a checkpoint as a pattern, in which a bracket or
# a backslash does not match itself.
PATTERN_LETTERS = frozenset("*?[]\\")

# Dtypes in safetensors and in NumPy.
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


def find_file(path):
    """Returns the file of weights, or the run, at a path.

    That is `path` itself, or the weight file in a folder of the hub.

    Args:
      path: a `pathlib.Path`.

    Raises:
      WeightsError: there are no weights at the path.
    """
    checkpoints = _find_checkpoints(path)
    if path.is_dir() and not checkpoints:
        for name in FILES_OF_FOLDERS:
            if (path / name).is_file():
                return path / name
        raise WeightsError(
            f"{path}: no weights found. Pass a run's folder with "
            "checkpoints/ckpt-STEP.index, its folder checkpoints, or a folder "
            f"with {' or '.join(FILES_OF_FOLDERS)}."
        )
    if not path.is_file() and not checkpoints:
        raise WeightsError(
            f"{path}: not found. Pass a file, a folder or a checkpoint's "
            "prefix."
        )
    return path


def open_tensors(model, path, opened, averaged=True):
    """Opens the tensors of everything that `load_weights` accepts.

    It reads no values, except to check that a checkpoint is intact.

    Args:
      model: a built `ResNet`, for the block names in a `.weights.h5` file; or
        None if these do not matter.
      path: `pathlib.Path` from `find_file`.
      opened: `contextlib.ExitStack`; tensors can be read until it closes.
      averaged: whether to read the weight average of a run that has one.

    Returns:
      (dialect, {name: `StoredTensor`}).

    Raises:
      WeightsError: the package that reads the file is not installed.
      Exception: the file is damaged or not a file of weights. Readers raise
        all kinds of exceptions.
    """
    dialect, open_file = _find_reader(path, averaged)
    tensors = open_file(model, path, opened)
    if any(name.endswith(TRANSFORMERS_STEM) for name in tensors):
        dialect = "transformers"
        tensors = {
            name.removeprefix("resnet."): tensor
            for name, tensor in tensors.items()
        }
    # Integers are not weights: torch's batch norm counts its calls, and
    # `StochasticDepth` its random draws.
    return dialect, {
        name: tensor
        for name, tensor in tensors.items()
        if not tensor.dtype.startswith(("int", "uint"))
    }


def find_dialect(path):
    """Returns the key in `DIALECTS` of a file, without reading its tensors.

    Files of transformers count as "torch": tensor names are not checked.

    Raises:
      Exception: as `open_tensors`.
    """
    return _find_reader(path)[0]


def _find_reader(path, averaged=True):
    """Returns (dialect, function (model, path, stack) -> {name: tensor})."""
    if not path.is_file():
        parts = (MODEL, AVERAGE) if averaged else (MODEL,)
        return "own", functools.partial(_open_checkpoints, parts)
    if path.suffix.lower() == ".safetensors":
        return "torch", _open_safetensors
    if is_pickle(path):
        return "torch", open_pickle
    dialect = find_keras_dialect(path)
    return dialect, KERAS_READERS[dialect]


def _find_checkpoints(path):
    """Returns the prefixes of a run's checkpoints, newest first.

    The path is the folder of the run, its checkpoints, or such a prefix.
    """
    if not path.is_dir():
        return [path] if pathlib.Path(f"{path}.index").is_file() else []
    found = [*list_checkpoints(path), *list_checkpoints(path / CHECKPOINTS)]
    return [prefix for _, prefix in sorted(found, reverse=True)]


def list_checkpoints(folder):
    """Returns [(step, prefix)] of the checkpoints in a folder, newest first."""
    # TensorFlow's own list is in a file that can be lost while the checkpoints
    # still exist.
    pattern = re.escape(CHECKPOINT).replace(r"\{\}", r"(\d+)") + r"\.index"
    found = [
        (int(match[1]), index.with_suffix(""))
        for index in folder.glob(CHECKPOINT.format("*.index"))
        if (match := re.fullmatch(pattern, index.name))
    ]
    return sorted(found, reverse=True)


def _open_checkpoints(parts, model, path, opened):
    """Returns {path below the model: tensor} of the newest readable one."""
    prefixes = _find_checkpoints(path)
    for prefix in prefixes:
        try:
            tensors = _open_checkpoint(prefix, parts, opened)
            for tensor in tensors.values():
                tensor.read()
            return tensors
        # TensorFlow raises an IndexError for a truncated file.
        except (tf.errors.OpError, IndexError) as error:
            reason = f"{prefix.name}: {one_line(error)}"
            if prefix is not prefixes[-1]:
                warnings.warn(
                    f"{prefix}: cannot be read and was skipped "
                    f"({one_line(error)}). An older checkpoint is loaded.",
                    # Points at the caller of `load_weights`.
                    stacklevel=4,
                )
    raise OSError(reason)


def _open_checkpoint(prefix, parts, opened):
    """Returns {path below the model: tensor}; later parts win.

    Args:
      prefix: prefix of a checkpoint.
      parts: names of its parts, such as `MODEL` and `AVERAGE`.
      opened: see `open_tensors`.
    """
    readable = opened.enter_context(readable_prefix(prefix))
    reader = tf.train.load_checkpoint(readable)
    shapes = reader.get_variable_to_shape_map()
    types = reader.get_variable_to_dtype_map()
    return {
        _unescape(key.split("/")[1]): StoredTensor(
            tuple(shapes[key]),
            types[key].name,
            functools.partial(reader.get_tensor, key),
        )
        for part in parts
        for key in sorted(shapes)
        if key.startswith(f"{part}/")
    }


@contextlib.contextmanager
def readable_prefix(prefix):
    """Yields a prefix by which TensorFlow finds a checkpoint.

    Args:
      prefix: prefix of the checkpoint.

    Yields:
      The prefix as a string. If TensorFlow would treat it as a pattern, the
      prefix of links in a temporary folder.
    """
    if PATTERN_LETTERS.isdisjoint(str(prefix)):
        yield str(prefix)
        return
    prefix = pathlib.Path(prefix).absolute()
    with tempfile.TemporaryDirectory() as folder:
        for path in prefix.parent.iterdir():
            if path.name.startswith(f"{prefix.name}."):
                name = path.name.replace(prefix.name, "ckpt", 1)
                pathlib.Path(folder, name).symlink_to(path)
        yield f"{folder}/ckpt"


def _unescape(name):
    # TensorFlow escapes "/" as ".S" and "." as ".." in the keys of checkpoints.
    return re.sub(r"\.([.S])", lambda match: match[1].replace("S", "/"), name)


def _open_safetensors(model, path, opened):
    safetensors = _import_safetensors()
    try:
        # With "mmap", pages would count as memory of the process.
        file = opened.enter_context(
            safetensors.safe_open(path, framework="np", backend="pread")
        )
    except safetensors.SafetensorError as error:
        raise OSError(error) from error
    tensors = {}
    for name in file.offset_keys():
        header = file.get_slice(name)
        dtype = header.get_dtype()
        tensors[name] = StoredTensor(
            tuple(header.get_shape()),
            SAFETENSORS_TYPES.get(dtype, dtype),
            functools.partial(file.get_tensor, name),
        )
    return tensors


def read_metadata(path):
    """Returns the metadata of a safetensors file, {name: text}."""
    if path.suffix.lower() != ".safetensors":
        return {}
    with _import_safetensors().safe_open(path, framework="np") as file:
        return file.metadata() or {}


def _import_safetensors():
    """Returns the package, an optional dependency, or raises WeightsError."""
    try:
        import safetensors
    except ImportError as error:
        raise WeightsError(
            "safetensors: package not found. Install it with pip install "
            "'resnet-layers[weights]'."
        ) from error
    return safetensors


def write_tensors(path, tensors, metadata=None):
    """Writes a safetensors file, one tensor after the other.

    The file is written atomically: an existing file stays until the new one is
    complete.

    Args:
      path: path of the file.
      tensors: {name: `StoredTensor`}; each is read only when it is written.
      metadata: {name: text} for `read_metadata`.

    Raises:
      OSError: the file cannot be written.
    """
    codes = {dtype: code for code, dtype in SAFETENSORS_TYPES.items()}
    # Byte for byte what the package writes for torch.
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
    # Written to a private folder beside the target and then renamed, so that a
    # failure never leaves half a file.
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        unfinished = pathlib.Path(folder, path.name)
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, tensor in sorted(tensors.items()):
                file.write(tensor.read().tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
