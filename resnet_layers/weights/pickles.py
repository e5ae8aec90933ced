"""Files of `torch.save`, read without running code.

A pickle is a program. This reader follows only those instructions that create
numbers, strings, lists and dicts, and calls only those functions that create
tensors from them. Everything else raises before anything runs.
"""

import functools
import math
import os
import pickletools
import zipfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.weights.tensors import StoredTensor, WeightsError

# First object of files from before torch 1.6.
MAGIC = 0x1950A86A20F9469CFC6C
# Keys under which training programs store a state dict.
STATES = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
# Maximum depth of nested state dicts.
MAX_DEPTH = 3

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Size of a file's header in a zip archive, before its name, in bytes.
ZIP_HEADER = 30


class _Storage(NamedTuple):
    """A flat array in a file."""

    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Type(NamedTuple):
    """Placeholder for a torch type that a pickle refers to."""

    name: str


def is_pickle(path):
    """Returns whether a file is one of `torch.save`, or another pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith("data.pkl") for n in archive.namelist())
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def open_pickle(model, path, opened):
    """Returns {name: `StoredTensor`} of a file of `torch.save`.

    In a checkpoint, these are its state dicts, with their keys as prefixes.

    Args:
      model: unused.
      path: `pathlib.Path` of a file for which `is_pickle` is true.
      opened: `contextlib.ExitStack`; tensors can be read until it closes.

    Raises:
      WeightsError: the file would run code, or has no tensors.
      Exception: the file is damaged.
    """
    del model
    file = opened.enter_context(path.open("rb"))
    is_zip = zipfile.is_zipfile(path)
    content, places = (_read_zip if is_zip else _read_legacy)(file)
    tensors = dict(_find_tensors(content))
    if not tensors:
        kind = type(content).__name__
        keys = ", ".join(map(str, content)) if kind == "dict" else kind
        raise WeightsError(
            f"{path}: no named tensors found, only {keys[:200] or 'nothing'}. "
            "Save the tensors with torch.save(model.state_dict(), NAME)."
        )
    return {
        name: _stored(tensor, file, places) for name, tensor in tensors.items()
    }


def _find_tensors(content, depth=0):
    """Yields (name, `_Tensor`) of a state dict, or of those in a checkpoint."""
    if not isinstance(content, dict):
        return
    states = [key for key in STATES if isinstance(content.get(key), dict)]
    if depth < MAX_DEPTH:
        for key in states:
            for name, tensor in _find_tensors(content[key], depth + 1):
                yield f"{key}.{name}", tensor
    if not states:
        for name, value in content.items():
            if isinstance(value, _Tensor) and isinstance(name, str):
                yield name, value


def _read_zip(file):
    """Returns (content, {storage key: (offset, bytes)}) of a zip file."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        [pickled] = [name for name in members if name.endswith("data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise WeightsError(
                f"{file.name}: TorchScript programs are unsupported. Save the "
                "tensors with torch.save(model.state_dict(), NAME)."
            )
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED:
                raise OSError(f"its member {member.filename} is compressed")
        order = members.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise OSError("its byte order is not little-endian")
        with archive.open(pickled) as stream:
            content = _unpickle(stream, file.name)
    places = {}
    for name, member in members.items():
        if name.startswith(f"{folder}data/"):
            file.seek(member.header_offset)
            header = file.read(ZIP_HEADER)
            lengths = np.frombuffer(header[26:30], "<u2")
            begin = member.header_offset + ZIP_HEADER + int(lengths.sum())
            key = name.removeprefix(f"{folder}data/")
            places[key] = begin, member.file_size
    return content, places


def _read_legacy(file):
    """Returns the same of a file from before torch 1.6."""
    read = functools.partial(_unpickle, file, file.name)
    if read() != MAGIC:
        raise WeightsError(
            f"{file.name}: a Python pickle that torch.save did not write. Save "
            "the tensors with torch.save or safetensors."
        )
    read()
    if not read().get("little_endian", True):
        raise OSError("its byte order is not little-endian")
    storages = {}
    content = _unpickle(file, file.name, storages)
    places = {}
    for key in read():
        [size] = np.frombuffer(file.read(8), "<i8")
        width = tf.as_dtype(storages[key].dtype).size
        places[key] = file.tell(), int(size) * width
        file.seek(int(size) * width, os.SEEK_CUR)
    return content, places


def _stored(tensor, file, places):
    """Returns the `StoredTensor` of a tensor.

    Raises:
      OSError: the tensor exceeds its storage.
    """
    storage, offset, shape, strides = tensor
    dtype = np.dtype(tf.as_dtype(storage.dtype).as_numpy_dtype)
    begin, available = places[storage.key]
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = last + 1 if math.prod(shape) else 0
    end = begin + (offset + count) * dtype.itemsize
    if min(offset, *shape, *strides, 0) < 0 or end > begin + available:
        raise OSError(f"a tensor of shape {shape} exceeds its storage")

    def read():
        file.seek(begin + offset * dtype.itemsize)
        numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        if len(numbers) < count:
            raise OSError("it is truncated")
        if not count:
            return np.zeros(shape, dtype)
        return np.lib.stride_tricks.as_strided(
            numbers, shape, [s * dtype.itemsize for s in strides]
        )

    return StoredTensor(shape, storage.dtype, read)


def _rebuild_tensor(storage, offset, shape, strides, *others):
    del others
    whole = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(
        type(number) is int for number in whole
    ):
        raise ValueError("one of its tensors has an unknown storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _same(value, *others):
    del others
    return value


def _make_dict(pairs=()):
    pairs = list(pairs)
    # Hashing nested tuples can take forever.
    if any(isinstance(key, tuple) for key, _ in pairs):
        raise ValueError("one of its dicts has a tuple as key")
    return dict(pairs)


def _make_size(sizes=()):
    return tuple(sizes)


# Functions that a pickle may call, by their names in it.
FUNCTIONS = {
    "collections OrderedDict": _make_dict,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _same,
    "torch Size": _make_size,
    "torch device": _same,
}
# Types that it may only refer to.
TYPES = {
    **{f"torch {name}": _Type(name) for name in STORAGES},
    **{
        f"torch {name}": _Type(name)
        for name in ("float16", "bfloat16", "float32", "float64", "int64")
    },
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
# Instructions whose argument is the value.
VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(stream, path, storages=None):
    """Returns the value of the next pickle in a stream.

    Args:
      stream: file, read up to the end of the pickle.
      path: path of the file, for errors.
      storages: dict that receives the `_Storage`s by key.

    Raises:
      WeightsError: the pickle has an instruction, or refers to something, that
        no state dict needs.
    """
    stack, marks, memo = [], [], {}

    def pop(count):
        values = stack[len(stack) - count :]
        if len(values) < count:
            raise ValueError("its pickle is damaged")
        del stack[len(stack) - count :]
        return values

    def pop_to_mark():
        return pop(len(stack) - marks.pop())

    def find(name):
        if name in FUNCTIONS:
            return FUNCTIONS[name]
        if name in TYPES:
            return TYPES[name]
        raise _code_error(path, name.replace(" ", "."))

    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in VALUES:
            stack.append(argument)
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in TUPLES:
            stack.append(tuple(pop(TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            values = pop(1) if name == "APPEND" else pop_to_mark()
            _checked(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = pop(2) if name == "SETITEM" else pop_to_mark()
            pairs = zip(values[::2], values[1::2], strict=True)
            _checked(stack[-1], dict).update(_make_dict(pairs))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(find(argument))
        elif name == "STACK_GLOBAL":
            stack.append(find(" ".join(pop(2))))
        elif name == "REDUCE":
            function, arguments = pop(2)
            if function not in FUNCTIONS.values():
                raise _code_error(path, "a call of a created object")
            stack.append(function(*_checked(arguments, tuple)))
        elif name == "BUILD":
            # Attributes of a dict, such as versions of the layers.
            pop(1)
            _checked(stack[-1], dict)
        elif name == "BINPERSID":
            kind, dtype, key, _, _, *view = _checked(*pop(1), tuple)
            if kind != "storage" or view not in ([], [None]):
                raise ValueError("it has tensors of an unknown kind")
            dtype = STORAGES[_checked(dtype, _Type).name]
            stack.append(_Storage(dtype, _checked(key, str)))
            if storages is not None:
                storages[key] = stack[-1]
        else:
            raise _code_error(path, f"the instruction {name}")
    raise ValueError("its pickle has no end")


def _checked(value, kind):
    """Returns a value of the given type, or raises ValueError."""
    if type(value) is not kind:
        raise ValueError("it is not a pickle of tensors, lists and dicts")
    return value


def _code_error(path, what):
    return WeightsError(
        f"{path}: needs {what} beside tensors, which may run code. If you "
        "trust the file, save the tensors alone with "
        "torch.save(model.state_dict(), NAME)."
    )
