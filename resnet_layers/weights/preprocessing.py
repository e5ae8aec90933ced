"""What belongs to weights: the preprocessing of images, and `config.json`."""

import contextlib
import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from resnet_layers.weights.files import CHECKPOINTS, find_dialect, find_file
from resnet_layers.weights.keras_files import read_layer_names
from resnet_layers.weights.tensors import errors_as_one_line, json_beside


class Normalization(NamedTuple):
    """How pixels become a model's inputs: less the mean, by the deviation.

    `mean` and `stddev` are three numbers each, for pixels from 0 to 255, in
    the order in which the model takes the channels: blue, green, red if
    `bgr`, else red, green, blue. For a model of grayscale images they are one
    number each.
    """

    mean: tuple
    stddev: tuple
    bgr: bool = False

    @classmethod
    def of_text(cls, text):
        """Returns the normalization of a name or of M:M:M:S:S:S.

        Args:
          text: a name in `NORMALIZATIONS`, or three means and three standard
            deviations, with `:bgr` behind them for that order, or one of each:
            M:S.

        Raises:
          ValueError: it is neither.
        """
        if text in NORMALIZATIONS:
            return NORMALIZATIONS[text]
        parts = text.split(":")
        bgr = parts[-1] == "bgr"
        numbers = [float(number) for number in parts[: -1 if bgr else None]]
        if (
            len(numbers) not in (2, 6)
            or not all(map(math.isfinite, numbers))
            or min(numbers[len(numbers) // 2 :]) <= 0
            or (bgr and len(numbers) == 2)
        ):
            raise ValueError(f"{text} is no normalization")
        channels = len(numbers) // 2
        return cls(tuple(numbers[:channels]), tuple(numbers[channels:]), bgr)

    def for_channels(self, channels):
        """Returns the normalization for a model of another number of channels.

        Args:
          channels: 1, whose mean and deviation are the means of the three, or
            3, which all have those of the one.
        """
        if len(self.mean) == channels:
            return self
        if channels == 1:
            mean, stddev = (sum(n) / 3 for n in (self.mean, self.stddev))
            return Normalization((mean,), (stddev,))
        return Normalization(self.mean * 3, self.stddev * 3)


# "caffe" and "symmetric" are what keras.applications does to its ResNets of
# either version.
NORMALIZATIONS = {
    "imagenet": Normalization(
        (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    ),
    "caffe": Normalization(
        (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), bgr=True
    ),
    "symmetric": Normalization((127.5,) * 3, (127.5,) * 3),
}


# What stands beside weights, in the folder of a run, and on the hub.
CONFIG = "config.json"
LABELS = ("label_names", "id2label")
PREPROCESSING_KEYS = ("pretrained_cfg", "preprocessing")

# By the numbers that Pillow has for them.
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class Preprocessing(NamedTuple):
    """What images go through before a model with these weights sees them.

    Every field is None where it is not known.

    `normalization` is a `Normalization`. The others are those of evaluation:
    `image_size` is the height and width, `crop_fraction` the side of the
    middle square that is kept, as a fraction of the image's shorter side, and
    `interpolation` the name of how it is resized, such as "bicubic".
    `exif_orientation` is whether image files are decoded as viewers show them:
    rotated and mirrored as their EXIF orientation says, and transparent pixels
    blended with white.
    """

    normalization: Normalization | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None
    exif_orientation: bool | None = None


def read_preprocessing(path):
    """Returns the `Preprocessing` that belongs to weights, as far as known.

    Tensors are not read: whether they are whole, `load_weights` finds out.

    Args:
      path: what `load_weights` takes.

    Returns:
      What keras.applications does for a file of one of its ResNets; what
      timm's `config.json` or transformers' `preprocessor_config.json` beside a
      file of torch says, over ImageNet's mean and standard deviation; what the
      `preprocessor.json` of a preset of Keras Hub says; what `write_config`
      wrote beside a file of ours or into the folder of a run; of any other
      file nothing is known.

    Raises:
      WeightsError: there is no such file, it is not a file of weights, or the
        config beside it is damaged.
    """
    path = find_file(pathlib.Path(path))
    with errors_as_one_line(path):
        return PREPROCESSINGS[find_dialect(path)](path)


class ModelConfig(NamedTuple):
    """What a `config.json` says of weights; None for what it does not say.

    `architecture` is the name of a variant, `class_names` are in the order of
    the logits, `preprocessing` is a `Preprocessing`, `extra` has all other
    keys.
    """

    architecture: str | None = None
    class_names: tuple | None = None
    preprocessing: Preprocessing = Preprocessing()
    extra: dict = {}


def make_config(architecture, class_names, preprocessing, **extra):
    """Returns the content of a `config.json` for weights, a value for JSON.

    It has the form of timm's on the Hugging Face hub. What timm has no key for
    is under "preprocessing": exact numbers for pixels from 0 to 255, the order
    of channels, and EXIF orientation.

    Args:
      architecture: name of a variant.
      class_names: in the order of the logits.
      preprocessing: a `Preprocessing`, which may have gaps.
      **extra: more keys, with values for JSON.
    """
    normalization, size, crop, interpolation, exif = preprocessing
    exact = {"exif_orientation": exif}
    timm = {"crop_pct": crop, "interpolation": interpolation}
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


def write_config(path, architecture, class_names, preprocessing, **extra):
    """Writes what `make_config` returns to a file, as JSON."""
    config = make_config(architecture, class_names, preprocessing, **extra)
    text = json.dumps(config, indent=2) + "\n"
    pathlib.Path(path).write_text(text, encoding="utf-8")


def read_config(path):
    """Returns the `ModelConfig` of a `config.json`, of any library.

    What `write_config` has written comes back exactly.

    Args:
      path: of the file, or of its folder. Without a file nothing is known.

    Raises:
      WeightsError: it is damaged.
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
    """Returns the architecture that a config of timm or of ours names."""
    # Older files have at the top what newer ones have in there.
    cfg = content.get("pretrained_cfg", {})
    return content.get("architecture", cfg.get("architecture"))


def config_of_ours(path):
    """Returns a context of the `config.json` of a file or a run of ours.

    Args:
      path: a `pathlib.Path` of a file; or of a run's folder, of its
        checkpoints, or of one of them. Beside a file, or in the folder of the
        run, stands the `config.json`.
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
    # As transformers has them.
    numbered = content.get("id2label")
    if names is None and isinstance(numbered, dict):
        names = [numbered.get(str(number)) for number in range(len(numbered))]
        names = None if None in names else names
    return None if names is None else tuple(names)


def _to_preprocessing(content, default=None):
    """Returns the `Preprocessing` in a config of timm or of ours.

    Args:
      content: of the JSON file.
      default: the `Normalization` where a config that is not ours has none.
    """
    # Older files have at the top what newer ones have in there.
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
            # The largest middle part, else the whole image, distorted.
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


# By dialect.
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
    """Returns what an image converter of Keras Hub does to pixels.

    It multiplies by a scale and adds an offset, one or three numbers each; in
    older configs it multiplies by the scale, subtracts the mean, and divides
    by the root of the variance.
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
    # Numbers that are not possible are found below.
    with np.errstate(all="ignore"):
        mean = (mean - offset) / scale
        stddev = np.sqrt(variance) / scale
    return Normalization(_to_pixels(mean / 255), _to_stddev(stddev / 255))


def _to_pixels(numbers):
    # Rounded, because 0.406 * 255 is not 103.53 to the last bit.
    values = tuple(round(float(number) * 255, 6) for number in numbers)
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise ValueError(f"{numbers} are not the numbers of 1 or 3 channels")
    return values


def _to_stddev(numbers):
    values = _to_pixels(numbers)
    if min(values) <= 0:
        raise ValueError(f"{numbers} are not all positive")
    return values


def _to_side(input_size):
    channels, height, width = input_size
    whole = isinstance(height, int) and height > 0
    if not (whole and channels in (1, 3) and height == width):
        raise ValueError(f"{input_size} is not the size [3, side, side]")
    return height


def _to_fraction(number):
    if not 0 < number <= 1:
        raise ValueError(f"{number} is not a part of a picture's side")
    return float(number)


def _to_name(name):
    if not isinstance(name, str):
        raise ValueError(f"{name} is not a name")
    return name


# Our fields: timm's key, and the way there. Where timm also names a larger
# size for tests, this is the one that the weights were trained for.
NORMALIZATION_KEYS = {
    "mean": ("mean", _to_pixels),
    "stddev": ("std", _to_stddev),
}
EVALUATION_KEYS = {
    "image_size": ("input_size", _to_side),
    "crop_fraction": ("crop_pct", _to_fraction),
    "interpolation": ("interpolation", _to_name),
}
