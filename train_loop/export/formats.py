"""The formats that a classifier is shipped in."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from train_loop.errors import UserError, check_choice
from train_loop.export.comparison import File
from train_loop.export.keras_file import write_keras
from train_loop.export.litert_files import write_litert
from train_loop.export.onnx_file import write_onnx
from train_loop.export.safetensors_file import (
    read_safetensors,
    write_safetensors,
)
from train_loop.export.saved_model import write_saved_model


class Format(NamedTuple):
    """How a format is written, what comes of it, and which packages it takes.

    `write` is a function of a `Shipment` and the path of one of the files.
    If no runtime is listed for the only file, `read` returns the classifier in
    it: a function of one like it and a path.
    """

    write: Callable
    files: tuple
    packages: tuple = ()
    read: Callable | None = None


FORMATS = {
    "saved_model": Format(
        write_saved_model,
        # By its signature of pixels, and by that of files. TensorFlow Serving
        # looks for the versions of a model below its folder.
        (File("1", "saved_model"), File("1", "serving")),
    ),
    "keras": Format(write_keras, (File("model.keras", "keras"),)),
    "litert": Format(
        write_litert,
        (
            File("model.tflite", "litert"),
            File("model_float16.tflite", "litert", is_exact=False),
            File("model_int8.tflite", "litert", is_exact=False),
        ),
        ("ai_edge_litert",),
    ),
    "onnx": Format(
        write_onnx,
        (File("model.onnx", "onnx"),),
        ("onnx", "onnxruntime", "tf2onnx"),
    ),
    "safetensors": Format(
        write_safetensors,
        (File("model.safetensors"),),
        ("safetensors",),
        read_safetensors,
    ),
}


def parse_formats(text):
    """Returns the names in a text with commas between them.

    Raises:
      UserError: there is none of a name, or its packages are not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        check_choice("--format", name, FORMATS)
        for package in FORMATS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--format={name} needs {package}, of the extra export: "
                    "pip install 'resnet-layers[export]'"
                )
    return list(dict.fromkeys(names))
