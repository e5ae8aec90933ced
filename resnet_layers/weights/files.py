"""The readers of all files of weights, and what tells the files apart."""

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
from resnet_layers.weights.names import (
    TORCH_NORM,
    TORCH_OTHER,
    WeightsError,
    path_below,
)

# Between a model and its layers, groups of Keras 3's HDF5 files.
KERAS_CONTAINERS = ("blocks", "layers", "convs", "bns", "pools")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".tar")


def check_file(path):
    """Raises WeightsError for a path that cannot be one of weights.

    Nor may it be a file of torch's or Python's own format.
    """
    if path.is_file():
        if _is_pickle(path):
            raise WeightsError(
                f"{path} is a Python pickle, which runs code when it is read; "
                "convert it where you trust it: safetensors.torch.save_file("
                "torch.load(NAME, weights_only=True), 'NAME.safetensors')"
            )
    elif path.is_dir():
        if not find_checkpoints(path):
            raise WeightsError(
                f"{path} holds no checkpoints; expected the folder of a run, "
                "with checkpoints/ckpt-STEP.index in it, or its folder "
                "checkpoints"
            )
    elif not find_checkpoints(path):
        raise WeightsError(
            f"{path} is not a file, nor a run's folder, nor a checkpoint's "
            "prefix"
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
      path: a `pathlib.Path` that `check_file` has let through.

    Raises:
      WeightsError: the package that reads the file is not installed.
      Exception: the file is damaged, or not a file of weights; the readers
        raise whatever they trip over.
    """
    dialect, read = _find_reader(path)
    # Whole numbers are no weights: torch's batch norm counts its calls for a
    # schedule of its own, `StochasticDepth` for its random numbers.
    return dialect, {
        name: tensor
        for name, tensor in read(model, path).items()
        if tensor.dtype.kind not in "iu"
    }


def find_dialect(path):
    """Returns the row of `DIALECTS` of a file, without reading its tensors.

    Raises:
      Exception: as `read_tensors`.
    """
    return _find_reader(path)[0]


def _find_reader(path):
    """Returns (dialect, function: model and path -> {name: array})."""
    if not path.is_file():
        return "own", _read_checkpoints
    if path.suffix.lower() == ".safetensors":
        return "torch", _read_safetensors
    if zipfile.is_zipfile(path):
        return "own", _read_own_keras
    with h5py.File(path) as file:
        if _find_own_net(file) is not None:
            return "own", _read_own_h5
    return "keras", _read_keras_h5


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


def _read_checkpoints(model, path):
    """Returns {path below the model: array} of the newest that is whole."""
    prefixes = find_checkpoints(path)
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


def _read_safetensors(model, path):
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


def read_layer_names(path):
    """Returns the names of the layers in a file of keras.applications."""
    with h5py.File(path) as file:
        return list(_find_keras_layers(file))


def _read_keras_h5(model, path):
    """Returns {"layer/variable": array} of a file of keras.applications."""
    with h5py.File(path) as file:
        return {
            f"{layer}/{name}": value
            for layer, group in _find_keras_layers(file).items()
            for name, value in _read_variables(group)
        }


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


def _read_own_keras(model, path):
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
        owners = name.removeprefix(prefix).split("/")[:-2]
        # Blocks go by number there: bottleneck_block, bottleneck_block_1.
        if owners[:1] == ["blocks"]:
            number = int(re.search(r"\d*$", owners[1])[0] or 0)
            if number < len(model.blocks):
                owners[1] = model.blocks[number].path.split("/")[-1]
        layer = [part for part in owners if part not in KERAS_CONTAINERS]
        layer.append(_layer_name(name, group))
        for variable, value in _read_variables(group):
            tensors["/".join([*layer, variable])] = value

    with h5py.File(path) as file:
        prefix = f"{_find_own_net(file)}/"
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


def _read_variables(group):
    """Returns [(name, array)] of one layer's group."""
    # Only Keras 2 wrote the names down.
    if "weight_names" in group.attrs:
        return [
            (name.split("/")[-1].split(":")[0], group[name][()])
            for name in map(_text, group.attrs["weight_names"])
        ]
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


@contextlib.contextmanager
def errors_as_one_line(path):
    """Raises a WeightsError in place of all errors in reading a file."""
    try:
        yield
    except WeightsError:
        raise
    # Keras, h5py and TensorFlow raise whatever they trip over.
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights: {one_line(error)}"
        ) from error


def one_line(error):
    """Returns what an error says, without line breaks and cut short."""
    return " ".join(str(error).split())[:300]
