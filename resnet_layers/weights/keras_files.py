"""HDF5 and `.keras` files of Keras.

These files may be untrusted. Reading never follows a link out of the file, and
never unpacks data that is much larger than its compressed form.
"""

import json
import re
import tempfile
import zipfile

import h5py
import tensorflow as tf

from resnet_layers.weights.names import (
    TORCH_NORM,
    TORCH_OTHER,
    name_around,
)
from resnet_layers.weights.tensors import (
    StoredTensor,
    WeightsError,
    json_beside,
)

# Layer names that occur in models of Keras Hub alone, where stages are stacks,
# and in those of keras.applications.
HUB_PREFIX = "stack0_block0_"
KERAS_LAYER = "conv1_conv"

# Groups between a model and its layers in the HDF5 files of Keras 3.
KERAS_CONTAINERS = ("blocks", "layers", "convs", "bns", "pools")

# Keras does not compress, and trained weights hardly compress.
MAX_COMPRESSION = 20
# Text compresses well, where a file was compressed again. Up to this size it is
# harmless.
HARMLESS_BYTES = 2**24


def find_keras_dialect(path):
    """Returns the key in `DIALECTS` of an HDF5 or `.keras` file.

    Raises:
      Exception: the file is neither, or has no weights.
    """
    if not zipfile.is_zipfile(path):
        with _opened_hdf5(path) as file:
            if _find_resnet(file) is not None:
                return "own"
    elif read_model_config(path) is not None:
        return "own"
    names = read_layer_names(path)
    if any(name.startswith(HUB_PREFIX) for name in names):
        return "hub"
    if zipfile.is_zipfile(path) and KERAS_LAYER not in names:
        raise OSError(
            "its model has no ResNet of this library, of keras.applications "
            "or of Keras Hub"
        )
    return "keras"


def read_layer_names(path):
    """Returns the names of all layers, nested ones included."""
    if zipfile.is_zipfile(path):
        parts = _parts_of_config(path)
        return [part["name"] for part in parts if "name" in part]
    with _opened_hdf5(path) as file:
        return list(_find_keras_layers(file))


def read_model_config(path):
    """Returns the arguments of the `ResNet` in a `.keras` file, else None."""
    if not zipfile.is_zipfile(path):
        return None
    parts = _parts_of_config(path)
    return next((part for part in parts if "stage_sizes" in part), None)


def _parts_of_config(path):
    """Yields every dict in the config of a `.keras` file, outer ones first."""
    with zipfile.ZipFile(path) as archive:
        _check_packing(archive, "config.json")
        waiting = [json.loads(archive.read("config.json"))]
    for part in waiting:
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _check_packing(archive, name):
    """Raises WeightsError if a member would unpack to far more bytes."""
    member = archive.getinfo(name)
    limit = max(MAX_COMPRESSION * member.compress_size, HARMLESS_BYTES)
    if member.file_size > limit:
        raise WeightsError(
            f"{archive.filename}: its member {name} would unpack to "
            f"{member.file_size:,} bytes from {member.compress_size:,}, more "
            f"than {MAX_COMPRESSION} times as many. Pass a file that Keras "
            "wrote."
        )


def _opened_hdf5(path):
    """Returns an open `h5py.File` that refers to no other file.

    Raises:
      WeightsError: a link or a dataset refers to another file.
    """
    file = h5py.File(path)
    try:
        # A name, or None without an external reference.
        outside = file.visititems_links(
            lambda name, link: (
                None
                if isinstance(link, h5py.HardLink | h5py.SoftLink)
                else name
            )
        ) or file.visititems(
            lambda name, item: (
                name
                if isinstance(item, h5py.Dataset)
                and (item.external or item.is_virtual)
                else None
            )
        )
        if outside:
            raise WeightsError(
                f"{path}: its {outside} is stored in another file. Pass a "
                "file that contains all of its weights."
            )
    except BaseException:
        file.close()
        raise
    return file


def _opened_weights(path, opened):
    """Returns the open `h5py.File` of an HDF5 file, or in a `.keras` file.

    Args:
      path: path of the file.
      opened: `contextlib.ExitStack` that closes it.
    """
    if zipfile.is_zipfile(path):
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        with zipfile.ZipFile(path) as archive:
            _check_packing(archive, "model.weights.h5")
            # HDF5 seeks back and forth. In a zip file, each step back starts
            # again at the beginning.
            path = archive.extract("model.weights.h5", folder)
    return opened.enter_context(_opened_hdf5(path))


def _open_keras(model, path, opened):
    """Returns {"layer/variable": tensor} of a model of Keras layers."""
    file = _opened_weights(path, opened)
    return {
        f"{layer}/{name}": tensor
        for layer, variables in _find_keras_layers(file).items()
        for name, tensor in variables
    }


def _open_hub(model, path, opened):
    """Returns the same of a Keras Hub preset, its classifier included."""
    tensors = _open_keras(model, path, opened)
    head = path.with_name("task.weights.h5")
    if head.is_file() and not zipfile.is_zipfile(path):
        with json_beside(path, "task.json") as task:
            pooling = task.get("config", {}).get("pooling", "avg")
        if pooling != "avg":
            raise WeightsError(
                f"{path}: unsupported pooling {pooling} of its classifier. "
                "Use a preset with average pooling."
            )
        tensors |= _open_keras(model, head, opened)
    return tensors


def _find_keras_layers(file):
    """Returns {layer: [(variable, `StoredTensor`)]} of either Keras format.

    Layers of nested models are included.
    """
    # The file of a whole model has the weights in a group.
    file = file.get("model_weights", file)
    layers = {}

    def add(layer, variables):
        if variables and layer in layers:
            raise OSError(f"two of its layers are named {layer}")
        if variables:
            layers[layer] = variables

    def add_group(path, group):
        # A compiled model has its optimizer beside the layers.
        if path.endswith("/vars") and not path.startswith("optimizer/"):
            add(_text(group.attrs["name"]), _open_variables(group))

    if "layer_names" in file.attrs:
        for layer in map(_text, file.attrs["layer_names"]):
            for name, variables in _split_legacy(layer, file[layer]).items():
                add(name, variables)
    else:
        file.visititems(add_group)
    if not layers:
        raise OSError("it has no Keras layers")
    return layers


def _split_legacy(layer, group):
    """Returns {layer: [(variable, tensor)]} of a group of the legacy format.

    A nested model has one group for all of its layers.
    """
    layers = {}
    for path in map(_text, group.attrs["weight_names"]):
        *owners, name = path.split("/")
        owner = owners[-1] if owners else layer
        tensor = _open_dataset(group[path])
        layers.setdefault(owner, []).append((name.split(":")[0], tensor))
    # The names of a layer need not match those of its variables.
    return layers if len(layers) > 1 else {layer: sum(layers.values(), [])}


def _open_own(model, path, opened):
    """Returns {path below the model: `StoredTensor`} of this library's files.

    Keras's own loading overwrites half of a model before it notices a
    mismatch, ignores unexpected tensors, and runs code from a `.keras` file.
    """
    tensors = {}

    def add(name, group):
        # A compiled model has its optimizer beside the layers.
        if name.startswith("optimizer/"):
            return
        if not name.endswith("/vars") or not len(group):
            return
        owners = name.removeprefix(prefix).split("/")[:-2]
        # Blocks have numbers: bottleneck_block, bottleneck_block_1.
        if owners[:1] == ["blocks"]:
            number = int(re.search(r"\d*$", owners[1])[0] or 0)
            if model is not None and number < len(model.blocks):
                owners[1] = model.blocks[number].path.split("/")[-1]
        layer = [part for part in owners if part not in KERAS_CONTAINERS]
        layer.append(_layer_name(name, group))
        for variable, tensor in _open_variables(group):
            whole = "/".join([*layer, variable])
            if not name.startswith(prefix):
                whole = name_around([*layer, variable])
            tensors[whole] = tensor

    file = _opened_weights(path, opened)
    resnet = _find_resnet(file)
    if resnet is None:
        raise OSError("it has no ResNet of this library")
    prefix = f"{resnet}/" if resnet else ""
    file.visititems(add)
    return tensors


# By dialect: (model, path, `contextlib.ExitStack`) -> {name: tensor}.
KERAS_READERS = {"own": _open_own, "hub": _open_hub, "keras": _open_keras}


def _find_resnet(file):
    """Returns the path of a `ResNet` in a `.weights.h5` file, or None.

    The path is "" in a file of the `ResNet` alone.
    """
    if "blocks" in file:
        return ""
    return file.visit(
        lambda name: (
            name.removesuffix("/blocks") if name.endswith("/blocks") else None
        )
    )


def _layer_name(path, group):
    """Returns the name with which a layer was built."""
    name, attribute = _text(group.attrs["name"]), path.split("/")[-2]
    # `ResNet.features` prefixes the names of its layers with the model's.
    return attribute if name.endswith(f"_{attribute}") else name


def _open_variables(group):
    """Returns [(name, `StoredTensor`)] of a layer's group in Keras 3."""
    tensors = [_open_dataset(group[key]) for key in sorted(group)]
    norm = len(tensors) == len(TORCH_NORM)
    names = (TORCH_NORM if norm else TORCH_OTHER).values()
    return list(zip(names, tensors, strict=False))


def _open_dataset(dataset):
    # HDF5 has no bfloat16. Keras writes the bytes, and the dtype beside them.
    if dataset.attrs.get("dtype") == "bfloat16":
        dtype = tf.bfloat16.as_numpy_dtype
        return StoredTensor(
            dataset.shape, "bfloat16", lambda: dataset[()].view(dtype)
        )
    return StoredTensor(dataset.shape, dataset.dtype.name, lambda: dataset[()])


def _text(name):
    return name.decode() if isinstance(name, bytes) else name
