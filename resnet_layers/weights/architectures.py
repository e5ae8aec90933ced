"""Architecture of weights, and whether it matches a model."""

import contextlib
import json
import os
import pathlib
import re

from resnet_layers.variants import VARIANTS, nearest_names
from resnet_layers.weights.files import (
    find_dialect,
    find_file,
    open_tensors,
    read_metadata,
)
from resnet_layers.weights.keras_files import (
    read_layer_names,
    read_model_config,
)
from resnet_layers.weights.names import DIALECTS, find_classifiers
from resnet_layers.weights.preprocessing import (
    CONFIG,
    config_of_ours,
    read_architecture,
)
from resnet_layers.weights.tensors import (
    WeightsError,
    errors_as_one_line,
    json_beside,
)

# Architectures in Keras Hub's configs: filters and kernel sizes of the stem,
# filters and strides of the stages, block type, blocks per stage, and whether
# the model is pre-activated. Its basic blocks of type "vd" match no variant:
# their first shortcut has a convolution although the shapes match.
_PLAIN = ([64], [7], [64, 128, 256, 512], [1, 2, 2, 2])
_DEEP = ([32, 32, 64], [3, 3, 3], *_PLAIN[2:])
HUB_VARIANTS = {
    "resnet18": (*_PLAIN, "basic_block", [2, 2, 2, 2], False),
    "resnet34": (*_PLAIN, "basic_block", [3, 4, 6, 3], False),
    "resnet26": (*_PLAIN, "bottleneck_block", [2, 2, 2, 2], False),
    "resnet50": (*_PLAIN, "bottleneck_block", [3, 4, 6, 3], False),
    "resnet101": (*_PLAIN, "bottleneck_block", [3, 4, 23, 3], False),
    "resnet152": (*_PLAIN, "bottleneck_block", [3, 8, 36, 3], False),
    "resnetv2_50": (*_PLAIN, "bottleneck_block", [3, 4, 6, 3], True),
    "resnetv2_101": (*_PLAIN, "bottleneck_block", [3, 4, 23, 3], True),
    "resnetv2_152": (*_PLAIN, "bottleneck_block", [3, 8, 36, 3], True),
    "resnet50d": (*_DEEP, "bottleneck_block_vd", [3, 4, 6, 3], False),
    "resnet101d": (*_DEEP, "bottleneck_block_vd", [3, 4, 23, 3], False),
    "resnet_vd_200": (*_DEEP, "bottleneck_block_vd", [3, 12, 48, 3], False),
    "resnet152d": (*_DEEP, "bottleneck_block_vd", [3, 8, 36, 3], False),
}

# Stage sizes of the models of keras.applications.
KERAS_SIZES = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}

# Block type and stage sizes in the configs of transformers.
TRANSFORMERS_VARIANTS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}

# Arguments of `ResNet` that change the function of a model but not the names
# and shapes of its weights, with their defaults.
FUNCTION_ARGUMENTS = {
    "stride_site": "3x3",
    "shortcut": "projection",
    "downsample": "first",
    "antialias": None,
    "pool": "max",
    "weight_standardization": False,
}
# Values of these that all files of a dialect share.
DIALECT_ARGUMENTS = {
    "torch": {"stride_site": "3x3", "downsample": "first"},
    "transformers": {"downsample": "first", "antialias": None},
    "hub": {"stride_site": "3x3", "downsample": "first", "antialias": None},
}


def read_variant(path):
    """Returns the name of the variant of weights, None if unknown.

    It does not read any tensors.

    Args:
      path: `pathlib.Path` from `find_file`.

    Raises:
      WeightsError: the architecture is unsupported, the file is not one of
        weights, or the `config.json` beside it is damaged.
    """
    name = None
    with errors_as_one_line(path):
        dialect = find_dialect(path)
        if dialect == "keras":
            name = _of_keras(read_layer_names(path))
    if dialect in READERS:
        with _config_of(path, dialect) as config:
            name = READERS[dialect](config)
            if not isinstance(name, str | None):
                raise ValueError(f"architecture {name} is not a string")
    if name is None or name in VARIANTS:
        return name
    near = nearest_names(name, VARIANTS)
    examples = f", such as {' or '.join(near)}" if near else ""
    raise WeightsError(
        f"{path}: unsupported architecture {name}. Use weights of a variant in "
        f"VARIANTS{examples}."
    )


def read_num_classes(path: str | os.PathLike[str]) -> int | None:
    """Returns the number of classes of weights, None if unknown.

    It does not read any tensors.

    Args:
      path: path for `load_weights`.

    Returns:
      The number of outputs of the classifier.

    Raises:
      WeightsError: the file is not found, or is not one of weights.

    Example:
      ```python
      read_num_classes("resnet50.safetensors")  # 1000
      ```
    """
    path = find_file(pathlib.Path(path))
    with errors_as_one_line(path), contextlib.ExitStack() as opened:
        name, tensors = open_tensors(None, path, opened)
        dialect = DIALECTS[name]
        layers = [
            layer
            for layer in dialect.head
            if f"{layer}{dialect.separator}bias" in tensors
        ]
        # A weight average in the same file has a classifier of the same size.
        sizes = {
            tensors[f"{layer}{dialect.separator}bias"].shape
            for layer in layers or find_classifiers(tensors, dialect)
        }
    return sizes.pop()[0] if len(sizes) == 1 else None


def function_arguments(arguments):
    """Returns the `FUNCTION_ARGUMENTS` of a model, {name: value}.

    Args:
      arguments: {name: value} of a `ResNet`.
    """
    stem = arguments.get("stem")
    pool = stem.get("pool") if isinstance(stem, dict) else None
    arguments = {**arguments, "pool": pool or FUNCTION_ARGUMENTS["pool"]}
    return {
        name: arguments.get(name, default)
        for name, default in FUNCTION_ARGUMENTS.items()
    }


def check_function(model, path, dialect):
    """Raises WeightsError if the weights need a model of another function.

    For example with the stride in another convolution, which the names and
    shapes of the weights do not show.

    Args:
      model: a built `ResNet`.
      path: `pathlib.Path` from `find_file`.
      dialect: dialect of the file, a key of `DIALECTS`.
    """
    origin, expected = _read_function_arguments(path, dialect)
    actual = function_arguments(model.get_config())
    if not model.preactivation:
        # After a ReLU, padding with zeros or infinities gives the same maxima.
        expected.pop("pool", None)
    if dialect in ("torch", "transformers"):
        # The names show it in these dialects.
        expected.pop("shortcut", None)
    if not hasattr(model.blocks[0], "stride_site"):
        expected.pop("stride_site", None)
    for name, value in expected.items():
        if actual[name] != value:
            raise WeightsError(
                f"{path}: does not match {model.name}. The weights are of "
                f"{origin} with {name}={value!r}; the model has "
                f"{name}={actual[name]!r}. Create the model with "
                f"{name}={value!r}."
            )


def _config_of(path, dialect):
    """Returns a context with the content of the `config.json` of weights."""
    if dialect == "own":
        return config_of_ours(path)
    return json_beside(path, CONFIG)


def _read_function_arguments(path, dialect):
    """Returns (origin of a file in words, `FUNCTION_ARGUMENTS` it needs)."""
    if dialect == "keras":
        layers = read_layer_names(path)
        name = _of_keras(layers)
        if name is None:
            name = "resnet50_v2" if "post_bn" in layers else "resnet50_keras"
        arguments = VARIANTS[name].arguments
        return "keras.applications", function_arguments(arguments)
    if dialect == "own" and path.is_file():
        config = read_model_config(path)
        if config is not None:
            return "a ResNet", function_arguments(config)
    with _config_of(path, dialect) as config:
        name = READERS[dialect](config)
    if isinstance(name, str) and name in VARIANTS:
        return name, function_arguments(VARIANTS[name].arguments)
    stated = {}
    if dialect == "torch":
        stated = json.loads(read_metadata(path).get("resnet_layers", "{}"))
    common = DIALECT_ARGUMENTS.get(dialect, {})
    return f"a {dialect} file", {**common, **stated}


def _of_keras(layers):
    """Returns the variant with these layer names of keras.applications."""
    blocks = {
        match.groups()
        for name in layers
        if (match := re.match(r"conv(\d)_block(\d+)_", name))
    }
    stages = [stage for stage, _ in blocks]
    sizes = tuple(stages.count(stage) for stage in sorted({*stages}))
    name = KERAS_SIZES.get(sizes)
    kind = "v2" if "post_bn" in layers else "keras"
    return name and f"{name}_{kind}"


def _of_torch(config):
    """Returns the architecture in a config of timm or transformers."""
    if "model_type" in config:
        return _of_transformers(config)
    return read_architecture(config)


def _of_transformers(config):
    kind = config.get("layer_type", "bottleneck")
    depths = tuple(config.get("depths", (3, 4, 6, 3)))
    widths = [64, 128, 256, 512]
    if kind == "bottleneck":
        widths = [4 * width for width in widths]
    name = TRANSFORMERS_VARIANTS.get((kind, depths))
    supported = (
        config["model_type"] == "resnet"
        and name is not None
        and config.get("hidden_sizes", widths) == widths
        and config.get("embedding_size", 64) == 64
        and config.get("hidden_act", "relu") == "relu"
        and not config.get("downsample_in_first_stage", False)
    )
    if not supported:
        return f"{config['model_type']} of transformers, {kind} {depths}"
    first = config.get("downsample_in_bottleneck", False)
    return f"{name}_v1" if first and kind == "bottleneck" else name


def _of_hub(config):
    if not config:
        return None
    backbone = config["config"]
    architecture = (
        backbone["input_conv_filters"],
        backbone["input_conv_kernel_sizes"],
        backbone["stackwise_num_filters"],
        backbone["stackwise_num_strides"],
        backbone["block_type"],
        backbone["stackwise_num_blocks"],
        backbone.get("use_pre_activation", False),
    )
    for variant, known in HUB_VARIANTS.items():
        if architecture == known:
            return variant
    return f"{config['class_name']} with {', '.join(map(str, architecture))}"


# By dialect: functions that find the architecture in a `config.json`.
READERS = {
    "torch": _of_torch,
    "transformers": _of_torch,
    "hub": _of_hub,
    "own": read_architecture,
}
