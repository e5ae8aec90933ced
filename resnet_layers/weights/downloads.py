"""Weights by name: "imagenet", hub repositories, paths."""

import os
import pathlib
from typing import NamedTuple

import tensorflow as tf

from resnet_layers.weights.architectures import read_variant
from resnet_layers.weights.files import find_file
from resnet_layers.weights.preprocessing import (
    Preprocessing,
    read_preprocessing,
)
from resnet_layers.weights.tensors import WeightsError, one_line

# Weights of keras.applications: variant -> (file name, MD5 hash).
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


# Files to download from repositories of the Hugging Face hub, by owner.
HUB_FILES = {
    "timm": ("config.json", "model.safetensors"),
    # Its ResNets are those of the transformers library.
    "microsoft": (
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ),
    "keras": (
        "config.json",
        "model.weights.h5",
        "preprocessor.json",
        "task.json",
        "task.weights.h5",
    ),
}


class WeightsInfo(NamedTuple):
    """Path and metadata of weights, known before reading them.

    Attributes:
      path: path for `load_weights`.
      variant: name in `VARIANTS`, None if unknown.
      preprocessing: `Preprocessing` of the weights.

    Example:
      ```python
      info = find_weights("timm/resnet50d.ra2_in1k")
      model = VARIANTS[info.variant]()
      model.build((None, 224, 224, 3))
      load_weights(model, info.path)
      ```
    """

    path: pathlib.Path
    variant: str | None
    preprocessing: Preprocessing


def find_weights(
    name: str | os.PathLike[str], variant: str | None = None
) -> WeightsInfo:
    """Finds weights by name, and downloads them where necessary.

    It does not read any tensors. The variant is known for "imagenet", and for
    weights with a `config.json` beside them, in the run's folder or in the
    Keras Hub preset. Downloads go to the caches of Keras and of
    `huggingface_hub`.

    Args:
      name: "imagenet" for weights of keras.applications, "timm/NAME" or
        "microsoft/NAME" for weights on the Hugging Face hub, "keras/NAME" for
        a preset of Keras Hub on it, or a path for `load_weights`. An existing
        path wins over a hub name.
      variant: name in `VARIANTS` for "imagenet"; "resnet50_keras" by default.

    Returns:
      A `WeightsInfo`.

    Raises:
      WeightsError: the weights are not found, cannot be downloaded, are not a
        file of weights, or belong to an unsupported architecture.

    Example:
      ```python
      info = find_weights("timm/resnet50d.ra2_in1k")
      info.variant  # "resnet50d"
      info.preprocessing.image_size  # 224
      ```
    """
    if name == "imagenet":
        variant = variant or "resnet50_keras"
        path = _download_imagenet(variant)
        return WeightsInfo(path, variant, read_preprocessing(path))
    if is_of_hub(name):
        files = HUB_FILES[str(name).partition("/")[0]]
        path = _download_from_hub(name, files)
    else:
        path = pathlib.Path(name).expanduser()
    path = find_file(path)
    return WeightsInfo(path, read_variant(path), read_preprocessing(path))


def is_of_hub(name: str | os.PathLike[str]) -> bool:
    """Returns whether a name refers to weights on the Hugging Face hub.

    That is "timm/NAME", "microsoft/NAME" or "keras/NAME", unless a path of
    that name exists.

    Args:
      name: name for `find_weights`.

    Example:
      ```python
      is_of_hub("timm/resnet50d.ra2_in1k")  # True
      is_of_hub("imagenet")  # False
      ```
    """
    owner, _, repository = str(name).partition("/")
    return owner in HUB_FILES and repository != "" and not os.path.exists(name)


def _download_imagenet(variant):
    if variant not in IMAGENET_FILES:
        raise WeightsError(
            f"variant={variant}: has no weights in keras.applications. Use "
            f"one of {', '.join(IMAGENET_FILES)}."
        )
    stem, md5 = IMAGENET_FILES[variant]
    url = IMAGENET_URL.format(stem)
    return _download(
        url,
        lambda: tf.keras.utils.get_file(
            origin=url, cache_subdir="models", file_hash=md5
        ),
    )


def _download_from_hub(name, files):
    """Downloads those of `files` that exist and returns their folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(
            f"{name}: requires huggingface_hub. Install it with pip install "
            "'resnet-layers[weights]'."
        ) from error
    return _download(
        f"https://huggingface.co/{name}",
        lambda: snapshot_download(name, allow_patterns=list(files)),
    )


def _download(url, download):
    try:
        return pathlib.Path(download())
    # Keras raises plain exceptions, huggingface_hub a dozen kinds.
    except Exception as error:
        raise WeightsError(
            f"{url}: cannot be downloaded ({one_line(error)}). Download it on "
            "a machine with access, and pass the path of the file."
        ) from error
