"""The preprocessing that pictures went through when weights were trained."""

import json
import math
import pathlib
from typing import NamedTuple

from resnet_layers.weights.files import (
    check_file,
    errors_as_one_line,
    find_dialect,
    one_line,
    read_layer_names,
)
from resnet_layers.weights.names import WeightsError


class Normalization(NamedTuple):
    """How pixels become a model's inputs: less the mean, by the deviation.

    `mean` and `stddev` are three numbers each, for pixels from 0 to 255, in
    the order in which the model takes the channels: blue, green, red if
    `bgr`, else red, green, blue.
    """

    mean: tuple
    stddev: tuple
    bgr: bool = False


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


class Preprocessing(NamedTuple):
    """What pictures go through before a model with these weights sees them.

    Every field is None where it is not known.

    `normalization` is a `Normalization`. The others are those of evaluation:
    `image_size` is the height and width, `crop_fraction` the side of the
    middle square that is kept, as a part of the picture's shorter side, and
    `interpolation` the name of how it is resized, such as "bicubic".
    """

    normalization: Normalization | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None


def read_preprocessing(path):
    """Returns the `Preprocessing` that belongs to weights, as far as known.

    Tensors are not read: whether they are whole, `load_weights` finds out.

    Args:
      path: what `load_weights` takes.

    Returns:
      What keras.applications does for a file of one of its ResNets; what
      timm's `config.json` beside a `.safetensors` file says, over ImageNet's
      mean and standard deviation; of any other file nothing is known.

    Raises:
      WeightsError: there is no such file, it is not a file of weights, or the
        `config.json` beside it is damaged.
    """
    path = pathlib.Path(path)
    check_file(path)
    with errors_as_one_line(path):
        return PREPROCESSINGS[find_dialect(path)](path)


def _of_torch(path):
    torch = NORMALIZATIONS["imagenet"]
    config = path.with_name("config.json")
    if not config.is_file():
        return Preprocessing(torch)
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        # Older files have at the top what newer ones have in there.
        content = content.get("pretrained_cfg", content)
        return Preprocessing(
            torch._replace(**_read_fields(content, NORMALIZATION_KEYS)),
            **_read_fields(content, EVALUATION_KEYS),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{config} is damaged: {one_line(error)}; mend it, or move "
            f"{path.name} to a folder without it"
        ) from error


def _of_keras(path):
    layers = read_layer_names(path)
    # keras.applications documents no crop and no interpolation.
    if "post_bn" in layers:
        return Preprocessing(NORMALIZATIONS["symmetric"], image_size=224)
    if "conv1_conv" in layers:
        return Preprocessing(NORMALIZATIONS["caffe"], image_size=224)
    return Preprocessing()


# By dialect. What our own runs did, their files do not say.
PREPROCESSINGS = {
    "torch": _of_torch,
    "keras": _of_keras,
    "own": lambda path: Preprocessing(),
}


def _read_fields(content, keys):
    return {
        field: read(content[key])
        for field, (key, read) in keys.items()
        if content.get(key) is not None
    }


def _to_pixels(numbers):
    # Rounded, because 0.406 * 255 is not 103.53 to the last bit.
    values = tuple(round(number * 255, 6) for number in numbers)
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(f"{numbers} are not the numbers of 3 channels")
    return values


def _to_stddev(numbers):
    values = _to_pixels(numbers)
    if min(values) <= 0:
        raise ValueError(f"{numbers} are not all positive")
    return values


def _to_side(input_size):
    channels, height, width = input_size
    whole = isinstance(height, int) and height > 0
    if not (whole and channels == 3 and height == width):
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
