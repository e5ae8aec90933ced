"""Files of weights: what tells them apart, how they are read and written.

The format of a run's checkpoints is known here alone.
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

# What a folder of the Hugging Face hub keeps its weights in.
FILES_OF_FOLDERS = (
    "model.safetensors",
    "model.weights.h5",
    "pytorch_model.bin",
)

# What tells transformers' names from torchvision's and timm's.
TRANSFORMERS_STEM = "embedder.embedder.convolution.weight"

# A checkpoint of a step, and the folder of a run in which it is written.
CHECKPOINT = "ckpt-{}"
CHECKPOINTS = "checkpoints"
# Its parts that hold weights, by path below the model: those of the step, and
# their average, if any.
MODEL, AVERAGE = "model", "average"
# TensorFlow treats the name of a checkpoint as a pattern. A bracket or a
# backslash in it does not match itself.
PATTERN_LETTERS = frozenset("*?[]\\")

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


def find_file(path):
    """Returns the file or the run that a path of weights stands for.

    That is `path` itself, or what the hub keeps in such a folder.

    Args:
      path: a `pathlib.Path`.

    Raises:
      WeightsError: it cannot be one of weights.
    """
    checkpoints = _find_checkpoints(path)
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
    return path


def open_tensors(model, path, opened, averaged=True):
    """Returns (dialect, {name: tensor}) of all that `load_weights` accepts.

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
    tensors = open_file(model, path, opened)
    if any(name.endswith(TRANSFORMERS_STEM) for name in tensors):
        dialect = "transformers"
        tensors = {
            name.removeprefix("resnet."): tensor
            for name, tensor in tensors.items()
        }
    # Whole numbers are no weights: torch's batch norm counts its calls for a
    # schedule of its own, `StochasticDepth` for its random numbers.
    return dialect, {
        name: tensor
        for name, tensor in tensors.items()
        if not tensor.dtype.startswith(("int", "uint"))
    }


def find_dialect(path):
    """Returns the name in `DIALECTS` of a file, without reading its tensors.

    Files of transformers count as "torch": their names are not looked at.

    Raises:
      Exception: as `open_tensors`.
    """
    return _find_reader(path)[0]


def _find_reader(path, averaged=True):
    """Returns (dialect, function: model, path, stack -> {name: tensor})."""
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

    The path is that of the run, of its checkpoints, or itself such a prefix.
    """
    if not path.is_dir():
        return [path] if pathlib.Path(f"{path}.index").is_file() else []
    found = [*list_checkpoints(path), *list_checkpoints(path / CHECKPOINTS)]
    return [prefix for _, prefix in sorted(found, reverse=True)]


def list_checkpoints(folder):
    """Returns [(step, prefix)] of the checkpoints in a folder, newest first."""
    # Not the list that TensorFlow keeps in a file of its own, which can be lost
    # while the checkpoints are still there.
    pattern = re.escape(CHECKPOINT).replace(r"\{\}", r"(\d+)") + r"\.index"
    found = [
        (int(match[1]), index.with_suffix(""))
        for index in folder.glob(CHECKPOINT.format("*.index"))
        if (match := re.fullmatch(pattern, index.name))
    ]
    return sorted(found, reverse=True)


def _open_checkpoints(parts, model, path, opened):
    """Returns {path below the model: tensor} of the newest that is whole."""
    prefixes = _find_checkpoints(path)
    for prefix in prefixes:
        try:
            tensors = _open_checkpoint(prefix, parts, opened)
            for tensor in tensors.values():
                tensor.read()
            return tensors
        # The second is how TensorFlow says that a file is too short.
        except (tf.errors.OpError, IndexError) as error:
            reason = f"{prefix.name}: {one_line(error)}"
            if prefix is not prefixes[-1]:
                warnings.warn(
                    f"skipping a checkpoint that cannot be read, {reason}",
                    # Points at the caller of `load_weights`.
                    stacklevel=4,
                )
    raise OSError(reason)


def _open_checkpoint(prefix, parts, opened):
    """Returns {path below the model: tensor}, of the last part that has it.

    Args:
      prefix: of a checkpoint.
      parts: of it, such as `MODEL` and `AVERAGE`.
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
      prefix: of the checkpoint.

    Yields:
      A string; where TensorFlow would take the prefix for a pattern, that of
      links in a temporary folder.
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
    """Returns the package, which is an extra, or raises `WeightsError`."""
    try:
        import safetensors
    except ImportError as error:
        raise WeightsError(
            "safetensors files need the extra: pip install "
            "'resnet-layers[weights]'"
        ) from error
    return safetensors


def write_tensors(path, tensors, metadata=None):
    """Writes a file of safetensors, one tensor after the other.

    A file that was there stays as it was until the new one is whole.

    Args:
      path: of the file.
      tensors: {name: `StoredTensor`}; each is read when its turn comes.
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
    # Beside, in a folder that no other process knows, and then renamed, so
    # that a failure never leaves half of it.
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
