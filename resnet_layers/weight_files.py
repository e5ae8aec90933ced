"""This file answers: what is in a file of weights, and under which names?"""

import contextlib
import pathlib
import re
import warnings
import zipfile

import h5py
import numpy as np
import tensorflow as tf
from keras.src.saving.serialization_lib import SafeModeScope

from resnet_layers.resnet import ResNet
from resnet_layers.weight_names import (
    TORCH_NORM,
    TORCH_OTHER,
    WeightsError,
    path_below,
)

# Between a model and its layers, groups of Keras 3's HDF5 files.
KERAS_CONTAINERS = ("blocks", "layers", "convs", "bns")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".tar")


def refuse_pickle(path):
    """Raises WeightsError for a file of torch's or Python's own format."""
    if path.is_file() and _is_pickle(path):
        raise WeightsError(
            f"{path} is a Python pickle, which runs code when it is read; "
            "convert it where you trust it: safetensors.torch.save_file("
            "torch.load(NAME, weights_only=True), 'NAME.safetensors')"
        )


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


def read_tensors(model, path):
    """Returns (dialect, {name: array}) of whatever `load_weights` takes.

    Args:
      model: a built `ResNet`; a `.weights.h5` file only counts its blocks.
      path: a `pathlib.Path` that exists, or is the prefix of a checkpoint.

    Raises:
      WeightsError: the package that reads the file is not installed.
      Exception: the file is damaged, or not a file of weights; the readers
        raise whatever they trip over.
    """
    if not path.is_file():
        dialect, tensors = "own", _read_checkpoints(find_checkpoints(path))
    elif path.suffix.lower() == ".safetensors":
        dialect, tensors = "torch", _read_safetensors(path)
    elif zipfile.is_zipfile(path):
        dialect, tensors = "own", _read_own_keras(path)
    elif _is_own_h5(path):
        dialect, tensors = "own", _read_own_h5(model, path)
    else:
        dialect, tensors = "keras", _read_keras_h5(path)
    # Whole numbers are no weights: torch's batch norm counts its calls for a
    # schedule of its own, `StochasticDepth` for its random numbers.
    return dialect, {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.dtype.kind not in "iu"
    }


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


def _read_checkpoints(prefixes):
    """Returns {path below the model: array} of the first that can be read."""
    for prefix in prefixes:
        try:
            return _read_checkpoint(prefix)
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


def _read_checkpoint(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {
        _unescape(key.split("/")[1]): np.asarray(reader.get_tensor(key))
        for key in sorted(reader.get_variable_to_shape_map())
        if key.startswith("model/")
    }


def _unescape(name):
    # In the keys of checkpoints TensorFlow writes ".S" for "/", ".." for ".".
    return re.sub(r"\.([.S])", lambda match: match[1].replace("S", "/"), name)


def _read_safetensors(path):
    safetensors = import_safetensors()
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise OSError(error) from error


def import_safetensors():
    """Returns the package, which is an extra, or raises `WeightsError`."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise WeightsError(
            "safetensors files need the extra: pip install "
            "'resnet-layers[weights]'"
        ) from error
    return safetensors


def _read_keras_h5(path):
    """Returns {"layer/variable": array} of a file of keras.applications."""
    tensors = {}
    with h5py.File(path) as whole:
        # Of a whole model, weights are a part.
        file = whole.get("model_weights", whole)
        if "layer_names" in file.attrs:
            for layer in map(_text, file.attrs["layer_names"]):
                for name in map(_text, file[layer].attrs["weight_names"]):
                    variable = name.split("/")[-1].split(":")[0]
                    tensors[f"{layer}/{variable}"] = file[layer][name][()]
            return tensors
        for group in file["layers"].values():
            layer = _text(group["vars"].attrs["name"])
            for name, value in _read_variables(group["vars"]):
                tensors[f"{layer}/{name}"] = value
    return tensors


def _is_own_h5(path):
    with h5py.File(path) as file:
        return "blocks" in file


def _read_own_keras(path):
    """Returns {path below the `ResNet` in the file: array}."""
    # Without the scope, the process may have allowed a file to run its code.
    with SafeModeScope(True):
        loaded = tf.keras.models.load_model(path, compile=False)
    nets = [n for n in loaded._flatten_layers() if isinstance(n, ResNet)]
    if not nets:
        raise OSError("there is no ResNet of this library in it")
    return {path_below(nets[0], v): np.asarray(v) for v in loaded.weights}


def _read_own_h5(model, path):
    """Returns {path below the model: array} of a `.weights.h5` file.

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
        owners = name.split("/")[:-2]
        # Blocks go by number there: bottleneck_block, bottleneck_block_1.
        if owners[:1] == ["blocks"]:
            number = int(re.search(r"\d*$", owners[1])[0] or 0)
            known = number < len(model.blocks)
            owners[1] = model.blocks[number].name if known else owners[1]
        layer = [part for part in owners if part not in KERAS_CONTAINERS]
        layer.append(_text(group.attrs["name"]))
        for variable, value in _read_variables(group):
            tensors["/".join([*layer, variable])] = value

    with h5py.File(path) as file:
        file.visititems(add)
    return tensors


def _read_variables(group):
    """Returns [(name, array)] of what Keras 3 keeps of one layer."""
    values = [_read_array(group[key]) for key in sorted(group)]
    norm = len(values) == len(TORCH_NORM)
    names = (TORCH_NORM if norm else TORCH_OTHER).values()
    return list(zip(names, values, strict=False))


def _read_array(dataset):
    # HDF5 has no bfloat16; Keras writes the bytes, and says so beside them.
    if dataset.attrs.get("dtype") == "bfloat16":
        return dataset[()].view(tf.bfloat16.as_numpy_dtype)
    return dataset[()]


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


def one_line(error):
    """Returns what an error says, without line breaks and cut short."""
    return " ".join(str(error).split())[:300]
