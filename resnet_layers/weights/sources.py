"""The places where weights come from: servers, the hub, paths."""

import pathlib

import tensorflow as tf

from resnet_layers.weights.files import check_file, one_line
from resnet_layers.weights.names import WeightsError

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
        return _download_imagenet(variant)
    if name.startswith("timm/"):
        return _download_timm(name)
    path = pathlib.Path(name).expanduser()
    check_file(path)
    return path


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


def _download_timm(name):
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


def _download(url, download):
    try:
        return pathlib.Path(download())
    # Keras raises plain exceptions, and the hub a dozen kinds.
    except Exception as error:
        raise WeightsError(
            f"{url} could not be downloaded ({one_line(error)}); on a machine "
            "that reaches it download the file, and name its path"
        ) from error
