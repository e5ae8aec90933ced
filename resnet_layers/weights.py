"""This file answers: how do weights get into our models, and out again?

Files of keras.applications, torchvision, timm and our own runs are read by
name, and both sides must come out even: a tensor that is missing or left over
is an error. What the pictures must go through comes along.
"""

import json
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.weight_files import (
    find_checkpoints,
    import_safetensors,
    one_line,
    read_tensors,
    refuse_pickle,
)
from resnet_layers.weight_names import DIALECTS, WeightsError, torch_targets

# Where keras.applications keeps its weights, and what they must hash to (MD5).
IMAGENET_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    "{}_weights_tf_dim_ordering_tf_kernels.h5"
)
IMAGENET_FILES = {
    "resnet50_keras": ("resnet50", "2cb95161c43110f7111970584f804107"),
    "resnet101_keras": ("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
    "resnet152_keras": ("resnet152", "100835be76be38e30d865e96f2aaae62"),
    "resnet50_v2": ("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0"),
    "resnet101_v2": ("resnet101v2", "6343647c601c52e1368623803854d971"),
    "resnet152_v2": ("resnet152v2", "a49b44d1979771252814e80f8ec446f9"),
}


class Preprocessing(NamedTuple):
    """What pictures go through before a model with these weights sees them.

    Every field is None where it is not known.

    `mean` and `stddev` are three numbers each, for pixels from 0 to 255, in
    the order in which the model takes the channels: blue, green, red if
    `bgr`, else red, green, blue. The others are those of evaluation:
    `image_size` is the height and width, `crop_fraction` the side of the
    middle square that is kept, as a part of the picture's shorter side, and
    `interpolation` the name of how it is resized, such as "bicubic".
    """

    mean: tuple | None = None
    stddev: tuple | None = None
    bgr: bool | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None


# keras.applications documents no crop and no interpolation.
KERAS_V1 = Preprocessing(
    mean=(103.939, 116.779, 123.68),
    stddev=(1.0, 1.0, 1.0),
    bgr=True,
    image_size=224,
)
KERAS_V2 = Preprocessing(
    mean=(127.5,) * 3, stddev=(127.5,) * 3, bgr=False, image_size=224
)
TORCH = Preprocessing(
    mean=(123.675, 116.28, 103.53), stddev=(58.395, 57.12, 57.375), bgr=False
)


class Loaded(NamedTuple):
    """What `load_weights` found.

    `dialect` is "keras", "torch" or "own"; `head_used` tells whether the
    file's classifier was taken, or the model kept its own; `preprocessing` is
    a `Preprocessing`.
    """

    dialect: str
    head_used: bool
    preprocessing: Preprocessing


def load_weights(model, path, replace_head=False):
    """Reads weights from a file or a run into a built `ResNet`.

    Args:
      model: a `ResNet` whose `build` has been called.
      path: a `.h5` or `.weights.h5` file of keras.applications, a
        `.safetensors` file with the names of torchvision or timm, a
        `.weights.h5` or `.keras` file of ours, the folder of a run or of its
        checkpoints, of which the newest that can be read is taken, or the
        prefix of one checkpoint, such as `checkpoints/ckpt-30`.
      replace_head: keep the model's own classifier where the file has another
        number of classes.

    Returns:
      A `Loaded`. Its preprocessing is what keras.applications does, what
      timm's `config.json` beside a `.safetensors` file says, or else
      ImageNet's mean and standard deviation; of our own files it is not known.

    Raises:
      WeightsError: the file is of another architecture, damaged, or not a
        file of weights; the model is as it was then. Or the package that
        reads the file is not installed, or the model is not built.
    """
    _check_built(model)
    path = pathlib.Path(path)
    _check_file(path)
    try:
        dialect, tensors = read_tensors(model, path)
    except WeightsError:
        raise
    # Keras, h5py and TensorFlow raise whatever they trip over.
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights: {one_line(error)}"
        ) from error
    preprocessing = _find_preprocessing(model, path, dialect)
    head_used = _assign(model, path, tensors, dialect, replace_head)
    return Loaded(dialect, head_used, preprocessing)


def find_weights(name, variant):
    """Returns the path of a file of weights, downloaded where necessary.

    Args:
      name: "imagenet" for the file of keras.applications, "timm/NAME" for
        timm's on the Hugging Face hub, or a path that `load_weights` takes.
      variant: row of `VARIANTS` that the weights are for.

    Raises:
      WeightsError: there is no such file, it cannot be had, or a folder holds
        no checkpoints.
    """
    if name == "imagenet":
        if variant not in IMAGENET_FILES:
            raise WeightsError(
                f"keras.applications has no weights for {variant}, only for "
                f"{', '.join(IMAGENET_FILES)}"
            )
        stem, md5 = IMAGENET_FILES[variant]
        url = IMAGENET_URL.format(stem)
        return _download(
            url,
            lambda: tf.keras.utils.get_file(
                origin=url, cache_subdir="models", file_hash=md5
            ),
        )
    if name.startswith("timm/"):
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            raise WeightsError(
                f"{name} needs the extra: pip install 'resnet-layers[weights]'"
            ) from error
        return _download(
            f"https://huggingface.co/{name}",
            # Both land in the same folder.
            lambda: [
                hf_hub_download(name, file)
                for file in ("config.json", "model.safetensors")
            ][-1],
        )
    path = pathlib.Path(name).expanduser()
    _check_file(path)
    return path


def _check_built(model):
    if not model.built:
        raise WeightsError(
            f"{model.name} has no weights yet; call "
            "model.build((None, 224, 224, 3)) first"
        )


def _check_file(path):
    if path.is_file() or find_checkpoints(path):
        refuse_pickle(path)
        return
    if path.is_dir():
        raise WeightsError(
            f"{path} holds no checkpoints; expected the folder of a run, with "
            "checkpoints/ckpt-STEP.index in it, or its folder checkpoints"
        )
    raise WeightsError(
        f"{path} is not a file, nor a run's folder, nor a checkpoint's prefix"
    )


def _download(url, download):
    try:
        return pathlib.Path(download())
    # Keras raises plain exceptions, and the hub a dozen kinds.
    except Exception as error:
        raise WeightsError(
            f"{url} could not be downloaded ({one_line(error)}); on a machine "
            "that reaches it download the file, and name its path"
        ) from error


def save_safetensors(model, path):
    """Writes the weights of a built `ResNet` with torch's names.

    torchvision's and timm's models of the same architecture load the file.

    Args:
      model: a built `ResNet`; torch has no net of the pre-activation kind.
      path: of the file, usually ending in `.safetensors`. If writing fails,
        a file that was there stays as it was.

    Raises:
      WeightsError: torch has no such net, the model is not built, or the
        package that writes the file is not installed.
      OSError: the file cannot be written.
    """
    _check_built(model)
    safetensors = import_safetensors()
    tensors = {
        name: np.ascontiguousarray(target.write(np.asarray(target.variable)))
        for name, target in torch_targets(model).items()
    }
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    # Beside and then renamed, so that a failure never leaves half of it.
    unfinished = pathlib.Path(f"{path}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _assign(model, path, tensors, dialect, replace_head):
    try:
        targets = DIALECTS[dialect].find_targets(model)
    except WeightsError as error:
        raise WeightsError(
            f"{path} does not fit {model.name}: {error}"
        ) from error
    for name, tensor in tensors.items():
        if not _is_float(tensor.dtype):
            raise WeightsError(
                f"{path} cannot be used: {name}, of shape {tensor.shape}, has "
                f"the type {tensor.dtype}; weights are real numbers"
            )
    if dialect == "keras":
        _fold_biases(tensors, targets)
    tensors, targets, head_used = _settle_head(
        model, tensors, targets, DIALECTS[dialect].head, replace_head
    )
    for name in [*targets, *tensors]:
        if name not in tensors:
            shape = tuple(targets[name].variable.shape)
            raise WeightsError(
                f"{path} does not fit {model.name}: it has no {name}, which "
                f"the model has with shape {shape}"
            )
        if name not in targets:
            raise WeightsError(
                f"{path} does not fit {model.name}: the model has no {name}, "
                f"which the file has with shape {tensors[name].shape}"
            )
    values = {}
    for name, target in targets.items():
        expected = target.write(np.asarray(target.variable)).shape
        if tensors[name].shape != expected:
            raise WeightsError(
                f"{path} does not fit {model.name}: {name} has shape "
                f"{tensors[name].shape} there, and {expected} in the model"
            )
        dtype = tf.as_dtype(target.variable.dtype).as_numpy_dtype
        # Some that are finite are not any more in the model's type.
        with np.errstate(over="ignore"):
            values[name] = target.read(tensors[name]).astype(dtype)
        wrong = None
        if not np.all(np.isfinite(values[name])):
            wrong = "numbers that are not finite"
        elif target.variable.name == "moving_variance" and (
            np.any(values[name] < 0)
        ):
            wrong = "negative numbers, which no variance is"
        if wrong:
            raise WeightsError(
                f"{path} cannot be used: {name}, of shape {expected}, has "
                f"{wrong}"
            )
    for name, target in targets.items():
        target.variable.assign(values[name])
    return head_used


def _is_float(dtype):
    try:
        return tf.as_dtype(dtype).is_floating
    except TypeError:
        return False


def _settle_head(model, tensors, targets, prefix, replace_head):
    """Takes the classifier out where the model does not want the file's."""
    in_head = {n for n in tensors if n.startswith(prefix)}
    sizes = {tensors[name].shape for name in in_head if "bias" in name}
    fits = model.head is None or sizes == {(model.num_classes,)}
    if model.head is not None and (fits or not replace_head):
        return tensors, targets, True
    tensors = {n: t for n, t in tensors.items() if n not in in_head}
    targets = {n: t for n, t in targets.items() if not n.startswith(prefix)}
    return tensors, targets, False


def _fold_biases(tensors, targets):
    """Moves biases in front of a batch norm into its moving mean.

    The convolutions of keras.applications have biases that the norm behind
    them takes out again.
    """
    for name in [n for n in tensors if n.endswith("_conv/bias")]:
        if name not in targets:
            mean = name.replace("_conv/bias", "_bn/moving_mean")
            if mean in tensors and tensors[mean].shape == tensors[name].shape:
                tensors[mean] = tensors[mean] - tensors.pop(name)


def _find_preprocessing(model, path, dialect):
    if dialect == "own":
        return Preprocessing()
    if dialect == "keras":
        return KERAS_V2 if model.preactivation else KERAS_V1
    config = path.with_name("config.json")
    if not config.is_file():
        return TORCH
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        # Older files have at the top what newer ones have in there.
        content = content.get("pretrained_cfg", content)
        return TORCH._replace(
            **{
                field: read(content[key])
                for key, field, read in CONFIG_KEYS
                if content.get(key) is not None
            }
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{config} is damaged: {one_line(error)}; mend it, or move "
            f"{path.name} to a folder without it"
        ) from error


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


# timm's key, our field, and the way there. Where timm also names a larger size
# for tests, this is the one that the weights were trained for.
CONFIG_KEYS = (
    ("mean", "mean", _to_pixels),
    ("std", "stddev", _to_stddev),
    ("input_size", "image_size", _to_side),
    ("crop_pct", "crop_fraction", _to_fraction),
    ("interpolation", "interpolation", _to_name),
)
