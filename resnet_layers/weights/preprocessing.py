"""Preprocessing of images for weights, and `config.json`."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_layers.images import (
    NORMALIZATIONS,
    Normalization,
    Preprocessing,
)
from resnet_layers.weights.files import CHECKPOINTS, find_dialect, find_file
from resnet_layers.weights.keras_files import read_layer_names
from resnet_layers.weights.tensors import errors_as_one_line, json_beside

# The file beside weights, in the folder of a run, and on the hub.
CONFIG = "config.json"
LABELS = ("label_names", "id2label")
PREPROCESSING_KEYS = ("pretrained_cfg", "preprocessing")

# Interpolations by their numbers in Pillow.
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read_preprocessing(path: str | os.PathLike[str]) -> Preprocessing:
    """Reads the `Preprocessing` of weights, as far as it is known.

    It does not read any tensors, and does not check that they are intact. The
    source depends on the file:

    - files of keras.applications: the preprocessing of their ResNets;
    - files of torch: the `config.json` of timm or the
      `preprocessor_config.json` of transformers beside them, with ImageNet's
      mean and standard deviation by default;
    - presets of Keras Hub: their `preprocessor.json`;
    - files and runs of this library: the `config.json` of `write_config`;
    - other files: none, all fields are None.

    Args:
      path: path for `load_weights`.

    Returns:
      A `Preprocessing`.

    Raises:
      WeightsError: the file is not found, is not one of weights, or the config
        beside it is damaged.

    Example:
      ```python
      preprocessing = read_preprocessing("timm/resnet50/model.safetensors")
      preprocessing.image_size  # 224
      ```
    """
    path = find_file(pathlib.Path(path))
    with errors_as_one_line(path):
        return PREPROCESSINGS[find_dialect(path)](path)


class ModelConfig(NamedTuple):
    """Content of a `config.json` beside weights; None for absent values.

    Attributes:
      architecture: name of a variant.
      class_names: tuple of class names, in the order of the logits.
      preprocessing: `Preprocessing` of the weights.
      extra: dict of all other keys.
    """

    architecture: str | None = None
    class_names: tuple | None = None
    preprocessing: Preprocessing = Preprocessing()
    extra: dict = {}


def make_config(
    architecture: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    **extra: Any,
) -> dict[str, Any]:
    """Creates the content of a `config.json` for weights.

    It has the format of timm's configs on the Hugging Face hub. What timm has
    no key for is under "preprocessing": exact values for pixels from 0 to 255,
    channel order, and EXIF orientation.

    Args:
      architecture: name of a variant.
      class_names: list of class names, in the order of the logits.
      preprocessing: a `Preprocessing`; unknown fields are omitted.
      **extra: additional keys, with JSON-serializable values.

    Returns:
      A JSON-serializable dict.

    Example:
      ```python
      config = make_config(
          "resnet50d", ["cat", "dog"], Preprocessing(image_size=224)
      )
      ```
    """
    normalization, size, crop, interpolation, exif = preprocessing
    exact: dict[str, Any] = {"exif_orientation": exif}
    timm: dict[str, Any] = {"crop_pct": crop, "interpolation": interpolation}
    channels = 3
    if normalization is not None:
        mean, stddev, bgr = normalization
        channels = len(mean)
        exact |= {"mean": list(mean), "stddev": list(stddev), "bgr": bgr}
        timm |= {
            "mean": [number / 255 for number in mean],
            "std": [number / 255 for number in stddev],
        }
    if size is not None:
        timm["input_size"] = [channels, size, size]
    return {
        "architecture": architecture,
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "pretrained_cfg": _without_none(timm),
        "preprocessing": _without_none(exact),
        **extra,
    }


def write_config(
    path: str | os.PathLike[str],
    architecture: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    **extra: Any,
) -> None:
    """Writes the result of `make_config` to a file, as JSON.

    Args:
      path: path of the file, usually `config.json` beside the weights.
      architecture: name of a variant.
      class_names: list of class names, in the order of the logits.
      preprocessing: a `Preprocessing`; unknown fields are omitted.
      **extra: additional keys, with JSON-serializable values.

    Raises:
      OSError: the file cannot be written.

    Example:
      ```python
      save_safetensors(model, "weights/model.safetensors")
      write_config(
          "weights/config.json",
          "resnet50d",
          class_names,
          Preprocessing(NORMALIZATIONS["imagenet"], image_size=224),
      )
      ```
    """
    config = make_config(architecture, class_names, preprocessing, **extra)
    text = json.dumps(config, indent=2) + "\n"
    pathlib.Path(path).write_text(text, encoding="utf-8")


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Reads the `config.json` of weights, of this library, timm or others.

    The result of `write_config` comes back exactly.

    Args:
      path: path of the file or of its folder.

    Returns:
      A `ModelConfig`. If there is no file, all of its fields are empty.

    Raises:
      WeightsError: the file is damaged.

    Example:
      ```python
      config = read_config("weights")
      model = VARIANTS[config.architecture](num_classes=2)
      ```
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path /= CONFIG
    with json_beside(path, path.name) as content:
        known = {"architecture", "num_classes", *LABELS, *PREPROCESSING_KEYS}
        return ModelConfig(
            read_architecture(content),
            _read_class_names(content),
            _to_preprocessing(content),
            {k: v for k, v in content.items() if k not in known},
        )


def read_architecture(content):
    """Returns the architecture in a config of timm or of this library."""
    # Older files have these keys at the top level.
    cfg = content.get("pretrained_cfg", {})
    return content.get("architecture", cfg.get("architecture"))


def config_of_ours(path):
    """Returns a context with the `config.json` of this library's weights.

    Args:
      path: `pathlib.Path` of a file, of a run's folder, of its checkpoints, or
        of one of them. The `config.json` is beside the file, or in the folder
        of the run.
    """
    folders = (path.parent,)
    if not path.is_file():
        folders = (path, *path.parents[:2])
    for folder in folders:
        if (folder / CONFIG).is_file():
            return json_beside(folder / CHECKPOINTS, CONFIG)
    return contextlib.nullcontext({})


def _read_class_names(content):
    names = content.get("label_names")
    # The format of transformers.
    numbered = content.get("id2label")
    if names is None and isinstance(numbered, dict):
        names = [numbered.get(str(number)) for number in range(len(numbered))]
        names = None if None in names else names
    return None if names is None else tuple(names)


def _to_preprocessing(content, default=None):
    """Returns the `Preprocessing` in a config of timm or of this library.

    Args:
      content: content of the JSON file.
      default: `Normalization` if a config of another library has none.
    """
    # Older files have these keys at the top level.
    timm = content.get("pretrained_cfg", content)
    exact = content.get("preprocessing", {})
    if "preprocessing" in content:
        default = None
    channels = timm.get("input_size", [3])[0]
    theirs = _read_fields(timm, NORMALIZATION_KEYS)
    normalization = None
    if "mean" in exact:
        normalization = Normalization(
            tuple(map(float, exact["mean"])),
            tuple(map(float, exact["stddev"])),
            bool(exact["bgr"]),
        )
    elif default is not None or len(theirs) == len(NORMALIZATION_KEYS):
        normalization = (default or NORMALIZATIONS["imagenet"]).for_channels(
            channels
        )
        normalization = normalization._replace(**theirs)
    return Preprocessing(
        normalization,
        **_read_fields(timm, EVALUATION_KEYS),
        exif_orientation=exact.get("exif_orientation"),
    )


def _without_none(values):
    return {name: value for name, value in values.items() if value is not None}


def _of_torch(path):
    torch = NORMALIZATIONS["imagenet"]
    with json_beside(path, CONFIG) as content:
        if "model_type" in content:
            return _of_transformers(path)
        return _to_preprocessing(content, torch)


def _of_transformers(path):
    with json_beside(path, "preprocessor_config.json") as content:
        size = content.get("size")
        if isinstance(size, dict):
            size = size.get("shortest_edge") or size.get("height")
        return Preprocessing(
            NORMALIZATIONS["imagenet"]._replace(
                **_read_fields(
                    content,
                    {
                        "mean": ("image_mean", _to_pixels),
                        "stddev": ("image_std", _to_stddev),
                    },
                )
            ),
            size and _to_side((3, size, size)),
            **_read_fields(
                content,
                {
                    "crop_fraction": ("crop_pct", _to_fraction),
                    "interpolation": ("resample", PILLOW_FILTERS.get),
                },
            ),
        )


def _of_hub(path):
    with json_beside(path, "preprocessor.json") as content:
        converter = content.get("config", {}).get("image_converter")
        if not converter:
            return Preprocessing()
        config = converter["config"]
        size = config.get("image_size")
        if "height" in config:
            size = config["height"], config["width"]
        return Preprocessing(
            _to_normalization(config),
            _to_side((3, *size)) if size else None,
            # The largest center crop, or the whole image, distorted.
            1.0 if config.get("crop_to_aspect_ratio", True) else None,
            _to_name(config["interpolation"]),
        )


def _of_keras(path):
    layers = read_layer_names(path)
    # keras.applications documents no crop and no interpolation.
    if "post_bn" in layers:
        return Preprocessing(NORMALIZATIONS["symmetric"], image_size=224)
    if "conv1_conv" in layers:
        return Preprocessing(NORMALIZATIONS["caffe"], image_size=224)
    return Preprocessing()


def _of_our_config(path):
    with config_of_ours(path) as content:
        return _to_preprocessing(content)


# By dialect: functions that read the preprocessing.
PREPROCESSINGS = {
    "torch": _of_torch,
    "keras": _of_keras,
    "hub": _of_hub,
    "own": _of_our_config,
}


def _read_fields(content, keys):
    return {
        field: read(content[key])
        for field, (key, read) in keys.items()
        if content.get(key) is not None
    }


def _to_normalization(config):
    """Returns the `Normalization` in an image converter of Keras Hub.

    The converter multiplies pixels by a scale and adds an offset, with one or
    three values each. In older configs it multiplies by the scale, subtracts
    the mean, and divides by the root of the variance.
    """
    scale, offset, mean, variance = (
        np.broadcast_to(default if config.get(key) is None else config[key], 3)
        for key, default in (
            ("scale", 1.0),
            ("offset", 0.0),
            ("mean", 0.0),
            ("variance", 1.0),
        )
    )
    # Invalid values are found below.
    with np.errstate(all="ignore"):
        mean = (mean - offset) / scale
        stddev = np.sqrt(variance) / scale
    return Normalization(_to_pixels(mean / 255), _to_stddev(stddev / 255))


def _to_pixels(numbers):
    # Rounded, because 0.406 * 255 is not 103.53 to the last bit.
    values = tuple(round(float(number) * 255, 6) for number in numbers)
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise ValueError(f"{numbers} is not a list of 1 or 3 finite numbers")
    return values


def _to_stddev(numbers):
    values = _to_pixels(numbers)
    if min(values) <= 0:
        raise ValueError(f"{numbers} is not a list of positive numbers")
    return values


def _to_side(input_size):
    channels, height, width = input_size
    is_positive = isinstance(height, int) and height > 0
    if not (is_positive and channels in (1, 3) and height == width):
        raise ValueError(f"{input_size} is not the size [3, side, side]")
    return height


def _to_fraction(number):
    if not 0 < number <= 1:
        raise ValueError(f"{number} is not a fraction of an image's side")
    return float(number)


def _to_name(name):
    if not isinstance(name, str):
        raise ValueError(f"{name} is not a string")
    return name


# Field -> (timm's key, conversion). If timm also lists a larger size for
# tests, this is the one of training.
NORMALIZATION_KEYS = {
    "mean": ("mean", _to_pixels),
    "stddev": ("std", _to_stddev),
}
EVALUATION_KEYS = {
    "image_size": ("input_size", _to_side),
    "crop_fraction": ("crop_pct", _to_fraction),
    "interpolation": ("interpolation", _to_name),
}
