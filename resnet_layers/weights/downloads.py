"""Weights by name: "imagenet", repositories of the hub, paths."""

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


# What is taken from repositories of the Hugging Face hub, by their owner.
HUB_FILES = {
    "timm": ("config.json", "model.safetensors"),
    # Its ResNets are those of transformers.
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
    """Weights, and what is known of them before they are read.

    `path` is for `load_weights`; `variant` is the entry of `VARIANTS` that they
    are of, None if unknown; `preprocessing` is a `Preprocessing`.

        found = find_weights("timm/resnet50d.ra2_in1k")
        model = VARIANTS[found.variant]()
    """

    path: pathlib.Path
    variant: str | None
    preprocessing: Preprocessing


def find_weights(name, variant=None):
    """Returns the weights of a name, downloaded where necessary.

    Tensors are not read. A variant is known from the `config.json` beside a
    file or in the folder of a run, from that of a preset of Keras Hub, and for
    "imagenet".

    Args:
      name: "imagenet" for the file of keras.applications, "timm/NAME" for
        timm's on the Hugging Face hub, "keras/NAME" for a preset of Keras Hub
        there, or a path that `load_weights` accepts, which wins if it exists.
      variant: entry of `VARIANTS` for "imagenet"; resnet50_keras
        if None.

    Returns:
      A `WeightsInfo`.

    Raises:
      WeightsError: there is no such file, it cannot be had, it is not one of
        weights, or of an architecture that has no row in `VARIANTS`.
    """
    if name == "imagenet":
        variant = variant or "resnet50_keras"
        path = _download_imagenet(variant)
        return WeightsInfo(path, variant, read_preprocessing(path))
    if is_of_hub(name):
        files = HUB_FILES[name.partition("/")[0]]
        path = _download_from_hub(name, files)
    else:
        path = pathlib.Path(name).expanduser()
    path = find_file(path)
    return WeightsInfo(path, read_variant(path), read_preprocessing(path))


def is_of_hub(name):
    """Tells whether a name is that of weights on the Hugging Face hub.

    A path that exists is not, whatever its folder is called.
    """
    owner, _, repository = str(name).partition("/")
    return owner in HUB_FILES and repository != "" and not os.path.exists(name)


def _download_imagenet(variant):
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


def _download_from_hub(name, files):
    """Returns the folder with those of the files that there are."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(
            f"{name} needs the extra: pip install 'resnet-layers[weights]'"
        ) from error
    return _download(
        f"https://huggingface.co/{name}",
        lambda: snapshot_download(name, allow_patterns=list(files)),
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
