"""The architectures that weights are of, and what these compute."""

import contextlib
import json
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

# What Keras Hub's configs say of a net: filters and sizes of the kernels of
# its stem, filters and strides of its stages, kind of its blocks, how many of
# them a stage has, and whether they are of the pre-activation kind. Its basic
# blocks of kind "vd" are of no variant: the first one's shortcut goes through
# a convolution although the shapes match.
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

# By the stages of keras.applications' models.
KERAS_SIZES = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}

# By what transformers' configs say: kind and number of blocks.
TRANSFORMERS_VARIANTS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}

# Arguments of `ResNet` that change what the same names and shapes compute, and
# their defaults.
TRAITS = {
    "stride_site": "3x3",
    "shortcut": "projection",
    "downsample": "first",
    "antialias": None,
    "pool": "max",
    "weight_standardization": False,
}
# What all files of a dialect have in common, where nothing else is known.
COMMON_TRAITS = {
    "torch": {"stride_site": "3x3", "downsample": "first"},
    "transformers": {"downsample": "first", "antialias": None},
    "hub": {"stride_site": "3x3", "downsample": "first", "antialias": None},
}


def read_variant(path):
    """Returns the name of the variant that weights are of, None if unknown.

    Tensors are not read.

    Args:
      path: a `pathlib.Path` that `find_file` has returned.

    Raises:
      WeightsError: they are of a net that has no row, they are not weights,
        or the `config.json` beside them is damaged.
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
                raise ValueError(f"{name} is not the name of an architecture")
    if name is None or name in VARIANTS:
        return name
    near = nearest_names(name, VARIANTS)
    nearest = f"; the nearest are {', '.join(near)}" if near else ""
    raise WeightsError(
        f"{path} is of the architecture {name}, which is no row of VARIANTS"
        f"{nearest}"
    )


def read_num_classes(path):
    """Returns how many classes weights have, None if unknown.

    Tensors are not read.

    Args:
      path: what `load_weights` takes.

    Raises:
      WeightsError: there is no such file, or it is not a file of weights.
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
        # Averages beside the last weights have one of the same size.
        sizes = {
            tensors[f"{layer}{dialect.separator}bias"].shape
            for layer in layers or find_classifiers(tensors, dialect)
        }
    return sizes.pop()[0] if len(sizes) == 1 else None


def find_traits(arguments):
    """Returns {name: value} of `TRAITS` of a model.

    Args:
      arguments: {name: value} of a `ResNet`.
    """
    stem = arguments.get("stem")
    pool = stem.get("pool") if isinstance(stem, dict) else None
    traits = {**arguments, "pool": pool or TRAITS["pool"]}
    return {name: traits.get(name, TRAITS[name]) for name in TRAITS}


def check_function(model, path, dialect):
    """Raises WeightsError where a file's model computes something else.

    Names and shapes do not show it: a stride in another convolution, say.

    Args:
      model: a built `ResNet`.
      path: a `pathlib.Path` that `find_file` has returned.
      dialect: of the file.
    """
    origin, traits = _read_traits(path, dialect)
    own = find_traits(model.get_config())
    if not model.preactivation:
        # Behind a ReLU, zeros and infinities pad alike.
        traits.pop("pool", None)
    if dialect in ("torch", "transformers"):
        # Names show it there.
        traits.pop("shortcut", None)
    if not hasattr(model.blocks[0], "stride_site"):
        traits.pop("stride_site", None)
    for name, value in traits.items():
        if own[name] != value:
            raise WeightsError(
                f"{path} does not fit {model.name}: it is of {origin}, with "
                f"{name}={value!r}, and the model has {name}={own[name]!r}; "
                "load it into a model of that kind"
            )


def _config_of(path, dialect):
    """Returns a context of the content of the `config.json` of weights."""
    if dialect == "own":
        return config_of_ours(path)
    return json_beside(path, CONFIG)


def _read_traits(path, dialect):
    """Returns (what a file is of, in words, and the traits of its model)."""
    if dialect == "keras":
        layers = read_layer_names(path)
        name = _of_keras(layers)
        if name is None:
            name = "resnet50_v2" if "post_bn" in layers else "resnet50_keras"
        return "keras.applications", find_traits(VARIANTS[name].arguments)
    if dialect == "own" and path.is_file():
        config = read_model_config(path)
        if config is not None:
            return "a ResNet", find_traits(config)
    with _config_of(path, dialect) as config:
        name = READERS[dialect](config)
    if isinstance(name, str) and name in VARIANTS:
        return name, find_traits(VARIANTS[name].arguments)
    stated = {}
    if dialect == "torch":
        stated = json.loads(read_metadata(path).get("resnet_layers", "{}"))
    common = COMMON_TRAITS.get(dialect, {})
    return f"the {dialect} kind", {**common, **stated}


def _of_keras(layers):
    """Returns the variant that layers of keras.applications are of."""
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
    """Returns what a config of timm or of transformers is of."""
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
    known = (
        config["model_type"] == "resnet"
        and name is not None
        and config.get("hidden_sizes", widths) == widths
        and config.get("embedding_size", 64) == 64
        and config.get("hidden_act", "relu") == "relu"
        and not config.get("downsample_in_first_stage", False)
    )
    if not known:
        return f"{config['model_type']} of transformers, {kind} {depths}"
    first = config.get("downsample_in_bottleneck", False)
    return f"{name}_v1" if first and kind == "bottleneck" else name


def _of_hub(config):
    if not config:
        return None
    net = config["config"]
    row = (
        net["input_conv_filters"],
        net["input_conv_kernel_sizes"],
        net["stackwise_num_filters"],
        net["stackwise_num_strides"],
        net["block_type"],
        net["stackwise_num_blocks"],
        net.get("use_pre_activation", False),
    )
    for variant, known in HUB_VARIANTS.items():
        if row == known:
            return variant
    return f"{config['class_name']} with {', '.join(map(str, row))}"


# By dialect: from the `config.json` beside weights to a name.
READERS = {
    "torch": _of_torch,
    "transformers": _of_torch,
    "hub": _of_hub,
    "own": read_architecture,
}
