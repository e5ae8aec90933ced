"""Files of `torch.save`, read without running code.

A pickle is a program. Of its instructions only those are followed that make
numbers, texts, lists and dicts; of what it may call, only what makes tensors
of these. Everything else is an error before anything is done.
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

# What files of before torch 1.6 begin with.
MAGIC = 0x1950A86A20F9469CFC6C
# Where training programs keep a state beside other things.
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
# Of states in states.
DEEPEST = 3

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
# The bytes of a header of a file in a zip file, before its name.
ZIP_HEADER = 30


class _Storage(NamedTuple):
    """A row of numbers in a file."""

    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Type(NamedTuple):
    """What stands for a type of torch's, which a pickle may name."""

    name: str


def is_pickle(path):
    """Tells whether a file is one of `torch.save`, or another pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith("data.pkl") for n in archive.namelist())
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def open_pickle(model, path, opened):
    """Returns {name: `StoredTensor`} of a file of `torch.save`.

    Of a checkpoint, these are the states in it, their keys in front.

    Args:
      model: not needed.
      path: a `pathlib.Path` of a file for which `is_pickle` is true.
      opened: a `contextlib.ExitStack`; until it is closed, tensors can be
        read.

    Raises:
      WeightsError: it would run code, or holds no tensors.
      Exception: it is damaged.
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
            f"{path} has no tensors by name; expected those of a model's "
            f"state_dict(), and it has {keys[:200] or 'nothing'}"
        )
    return {
        name: _stored(tensor, file, places) for name, tensor in tensors.items()
    }


def _find_tensors(content, depth=0):
    """Yields (name, `_Tensor`) of a state, or of the states in a checkpoint."""
    if not isinstance(content, dict):
        return
    states = [key for key in STATES if isinstance(content.get(key), dict)]
    if depth < DEEPEST:
        for key in states:
            for name, tensor in _find_tensors(content[key], depth + 1):
                yield f"{key}.{name}", tensor
    if not states:
        for name, value in content.items():
            if isinstance(value, _Tensor) and isinstance(name, str):
                yield name, value


def _read_zip(file):
    """Returns (content, {storage's key: (offset, bytes)}) of a newer file."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        [pickled] = [name for name in members if name.endswith("data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise WeightsError(
                f"{file.name} is a program of TorchScript, with code in it; "
                "save the state_dict() of the model"
            )
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED:
                raise OSError(f"{member.filename} is packed in it")
        order = members.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise OSError("its numbers are of another byte order")
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
    """Returns the same of a file as torch wrote it before 1.6."""
    read = functools.partial(_unpickle, file, file.name)
    if read() != MAGIC:
        raise WeightsError(
            f"{file.name} is a Python pickle, and not one of torch.save; "
            "save its tensors with torch.save or safetensors"
        )
    read()
    if not read().get("little_endian", True):
        raise OSError("its numbers are of another byte order")
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
      OSError: it is not within what the file has.
    """
    storage, offset, shape, strides = tensor
    dtype = np.dtype(tf.as_dtype(storage.dtype).as_numpy_dtype)
    begin, available = places[storage.key]
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = last + 1 if math.prod(shape) else 0
    end = begin + (offset + count) * dtype.itemsize
    if min(offset, *shape, *strides, 0) < 0 or end > begin + available:
        raise OSError(f"a tensor of shape {shape} reaches out of its storage")

    def read():
        file.seek(begin + offset * dtype.itemsize)
        numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        if len(numbers) < count:
            raise OSError("it is too short")
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
        raise ValueError("it makes a tensor of something else than numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _same(value, *others):
    del others
    return value


def _make_dict(pairs=()):
    pairs = list(pairs)
    # To hash tuples of tuples may take forever.
    if any(isinstance(key, tuple) for key, _ in pairs):
        raise ValueError("it has dicts with other keys than names")
    return dict(pairs)


def _make_size(sizes=()):
    return tuple(sizes)


# What a pickle may call, by the name that it has there.
FUNCTIONS = {
    "collections OrderedDict": _make_dict,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _same,
    "torch Size": _make_size,
    "torch device": _same,
}
# What it may only name.
TYPES = {
    **{f"torch {name}": _Type(name) for name in STORAGES},
    **{
        f"torch {name}": _Type(name)
        for name in ("float16", "bfloat16", "float32", "float64", "int64")
    },
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
# Whose argument is the value.
VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(stream, path, storages=None):
    """Returns what the next pickle in a stream makes.

    Args:
      stream: a file, read up to the end of the pickle.
      path: of the file, for errors.
      storages: a dict that gets the `_Storage`s, by their keys.

    Raises:
      WeightsError: it has an instruction, or names something, that no state
        of a model needs.
    """
    stack, marks, memo = [], [], {}

    def pop(count):
        values = stack[len(stack) - count :]
        if len(values) < count:
            raise ValueError("it takes more than it has made")
        del stack[len(stack) - count :]
        return values

    def pop_to_mark():
        return pop(len(stack) - marks.pop())

    def find(name):
        if name in FUNCTIONS:
            return FUNCTIONS[name]
        if name in TYPES:
            return TYPES[name]
        raise _would_run(path, name.replace(" ", "."))

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
                raise _would_run(path, "something that it makes")
            stack.append(function(*_checked(arguments, tuple)))
        elif name == "BUILD":
            # Attributes of a dict: versions of the layers.
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
            raise _would_run(path, f"the instruction {name}")
    raise ValueError("it has no end")


def _checked(value, kind):
    """Returns a value of a kind, or raises ValueError."""
    if type(value) is not kind:
        raise ValueError("it is no pickle of tensors, lists and dicts")
    return value


def _would_run(path, what):
    return WeightsError(
        f"{path} cannot be used: beside tensors it needs {what}, and reading "
        "that may run code; where you trust the file, save the tensors alone: "
        "torch.save(model.state_dict(), NAME)"
    )
