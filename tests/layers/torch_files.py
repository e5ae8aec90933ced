"""Files as `torch.save` writes them, in either format, without torch."""

import struct
import zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
}


class Call:
    """A function that a pickle calls by name, with arguments."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Name:
    """An object that a pickle refers to by name."""

    def __init__(self, name):
        self.name = name


class Tensor:
    """A tensor with an explicit, possibly invalid, place in its storage."""

    def __init__(self, array, offset, shape, strides):
        self.array, self.place = array, (offset, shape, strides)

    @classmethod
    def of(cls, array):
        strides = tuple(n // array.itemsize for n in array.strides)
        return cls(array, 0, array.shape, strides)


def pickled(value, arrays=None):
    """Returns the pickle of a value.

    Args:
      value: dicts, lists, tuples, strings, numbers, arrays, and the classes
        above.
      arrays: list that receives the arrays, whose values are stored outside.
    """
    return b"\x80\x02" + b"".join(_opcodes(value, arrays)) + b"."


def _opcodes(value, arrays):
    def put(*values):
        for each in values:
            yield from _opcodes(each, arrays)

    if isinstance(value, np.ndarray):
        yield from put(Tensor.of(value))
    elif isinstance(value, Tensor):
        key = str(len(arrays))
        arrays.append(value.array)
        storage = Name(f"torch\n{STORAGES[value.array.dtype.name]}")
        yield b"ctorch._utils\n_rebuild_tensor_v2\n("
        yield from put(("storage", storage, key, "cpu", value.array.size))
        yield b"Q"
        yield from put(*value.place, False)
        yield from put(Call("collections\nOrderedDict"))
        yield b"tR"
    elif isinstance(value, Call):
        yield f"c{value.name}\n".encode()
        yield from put(value.arguments)
        yield b"R"
    elif isinstance(value, Name):
        yield f"c{value.name}\n".encode()
    elif isinstance(value, dict):
        yield from put(Call("collections\nOrderedDict"))
        yield b"("
        for name, item in value.items():
            yield from put(name, item)
        # Followed by the versions of the layers, as in torch.
        yield b"u}X\x09\x00\x00\x00_metadata}sb"
    elif isinstance(value, tuple | list):
        is_tuple = isinstance(value, tuple)
        yield b"(" if is_tuple else b"]("
        yield from put(*value)
        yield b"t" if is_tuple else b"e"
    elif isinstance(value, bool):
        yield b"\x88" if value else b"\x89"
    elif isinstance(value, int) and abs(value) < 2**31:
        yield b"J" + struct.pack("<i", value)
    elif isinstance(value, int):
        content = value.to_bytes(10, "little")
        yield b"\x8a" + bytes([len(content)]) + content
    elif isinstance(value, float):
        yield b"G" + struct.pack(">d", value)
    elif value is None:
        yield b"N"
    else:
        content = value.encode()
        yield b"X" + struct.pack("<I", len(content)) + content


def bytes_of(array):
    """Returns the values of an array in memory order."""
    return array.ravel("K").tobytes()


def write_torch(path, value, compression=zipfile.ZIP_STORED):
    """Writes the format of torch 1.6 and later."""
    arrays = []
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled(value, arrays))
        file.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            file.writestr(f"archive/data/{key}", bytes_of(array))


def write_old_torch(path, value):
    """Writes the format from before torch 1.6."""
    arrays = []
    content = pickled(value, arrays)
    keys = [str(key) for key in range(len(arrays))]
    with path.open("wb") as file:
        file.write(pickled(MAGIC) + pickled(1001))
        file.write(pickled({"little_endian": True}) + content + pickled(keys))
        for array in arrays:
            file.write(struct.pack("<q", array.size) + bytes_of(array))
