"""The preprocessing that pictures went through when weights were trained."""

import math
import pathlib
from typing import NamedTuple

import numpy as np

from resnet_layers.weights.configs import config_beside
from resnet_layers.weights.errors import errors_as_one_line
from resnet_layers.weights.files import (
    find_dialect,
    find_file,
)
from resnet_layers.weights.hdf5 import read_layer_names
from resnet_layers.weights.runs import settings_beside


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
        """Returns what a row of `NORMALIZATIONS` or M:M:M:S:S:S stands for.

        Args:
          text: a name, or three means and three standard deviations, with
            `:bgr` behind them for that order, or one of each: M:S.

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
        """Returns the normalization for a model of so many channels.

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


# By the numbers that Pillow has for them.
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class Preprocessing(NamedTuple):
    """What pictures go through before a model with these weights sees them.

    Every field is None where it is not known.

    `normalization` is a `Normalization`. The others are those of evaluation:
    `image_size` is the height and width, `crop_fraction` the side of the
    middle square that is kept, as a part of the picture's shorter side, and
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
      `preprocessor.json` of a preset of Keras Hub says; what a run of
      `train_loop` did; of any other file nothing is known.

    Raises:
      WeightsError: there is no such file, it is not a file of weights, or the
        config beside it is damaged.
    """
    path = find_file(pathlib.Path(path))
    with errors_as_one_line(path):
        return PREPROCESSINGS[find_dialect(path)](path)


def _of_torch(path):
    torch = NORMALIZATIONS["imagenet"]
    with config_beside(path, "config.json") as content:
        if "model_type" in content:
            return _of_transformers(path)
        # Older files have at the top what newer ones have in there.
        content = content.get("pretrained_cfg", content)
        channels = content.get("input_size", [3])[0]
        return Preprocessing(
            torch.for_channels(channels)._replace(
                **_read_fields(content, NORMALIZATION_KEYS)
            ),
            **_read_fields(content, EVALUATION_KEYS),
        )


def _of_transformers(path):
    with config_beside(path, "preprocessor_config.json") as content:
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
    with config_beside(path, "preprocessor.json") as content:
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
            # The largest middle part, else all of the picture, out of shape.
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


def _of_run(path):
    settings = settings_beside(path)
    preprocessing = Preprocessing(
        **{
            field: read(settings[field])
            for field, read in RUN_FIELDS.items()
            if field in settings
        }
    )
    if "channels" not in settings or preprocessing.normalization is None:
        return preprocessing
    channels = int(settings["channels"])
    normalization = preprocessing.normalization.for_channels(channels)
    return preprocessing._replace(normalization=normalization)


# By dialect.
PREPROCESSINGS = {
    "torch": _of_torch,
    "keras": _of_keras,
    "hub": _of_hub,
    "own": _of_run,
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
# Our fields, from the texts in a run's `flags.txt`.
RUN_FIELDS = {
    "normalization": Normalization.of_text,
    "image_size": int,
    "crop_fraction": float,
    "interpolation": str,
}
