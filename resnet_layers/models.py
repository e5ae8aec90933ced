"""Models by name, with weights and preprocessing: `create_model`."""

import fnmatch
import os
from typing import Any

import tensorflow as tf

from resnet_layers.arguments import integer
from resnet_layers.variants import VARIANTS
from resnet_layers.weights import (
    WeightsError,
    find_weights,
    load_weights,
    read_num_classes,
)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of models, sorted.

    Args:
      pattern: text that a name must match, in which `*` stands for any
        characters and `?` for one.

    Returns:
      A list of names in `VARIANTS`; empty if none matches.

    Example:
      ```python
      list_models("resnet50*")  # ["resnet50", "resnet50_gn", ...]
      ```
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create_model(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    features_only: bool = False,
    **options: Any,
) -> tf.keras.Model:
    """Creates a built model by its name, with or without pretrained weights.

    Args:
      name: name in `VARIANTS`, for example "resnet50d"; see `list_models`.
      weights: weights to load: "imagenet", "timm/NAME", "keras/NAME" or a path,
        as for `find_weights`; None for random weights.
      num_classes: number of classes. None for those of the weights, or 1,000
        without weights; 0 for no classifier, so that the model returns
        embeddings. The classifier of the weights is loaded if it has as many
        classes.
      in_channels: channels of the images. If the weights have others, the
        first convolution is adapted, as in timm.
      features_only: whether to return a model of the feature maps: a
        functional model that returns a dict of the last feature map of each
        stage, as `ResNet.features`.
      **options: other arguments of `ResNet`, such as `dtype`,
        `stochastic_depth` or `output_stride`.

    Returns:
      A `ResNet`. Its `preprocessing` is that of the weights, and
      `model.preprocess(images)` applies it. With `features_only`, a
      `keras.Model`.

    Raises:
      KeyError: the name is unknown.
      ValueError: an argument is invalid.
      WeightsError: the weights are not found, cannot be downloaded, or do not
        fit the model.

    Example:
      ```python
      model = create_model("resnet50", num_classes=37)
      model = create_model("resnet50", weights="timm/resnet50.a1_in1k")
      logits = model(model.preprocess(photos))  # photos: uint8, any size

      maps = create_model("resnet18", features_only=True)(images)
      maps["P5"]  # [batch, height / 32, width / 32, 512]
      ```
    """
    variant = VARIANTS[name]
    channels = integer("in_channels", in_channels)
    classes = integer("num_classes", num_classes, optional=True, at_least=0)
    found = None
    if weights is not None:
        found = find_weights(weights, name)
        if found.variant not in (None, name):
            raise WeightsError(
                f"{weights}: weights of {found.variant}, not of {name}. Create "
                f"a {found.variant}, or pass other weights."
            )
    if classes is None:
        classes = (found and read_num_classes(found.path)) or 1000
    model = variant(
        num_classes=None if features_only else classes or None,
        **{"preprocessing": _preprocessing(variant, found, channels)} | options,
    )
    model.build((None, None, None, channels))
    if found is not None:
        replaces_head = features_only or num_classes is not None
        load_weights(model, found.path, replaces_head, adapt_channels=True)
    if not features_only:
        return model
    inputs = tf.keras.Input([None, None, channels])
    return tf.keras.Model(inputs, model.features(inputs), name=model.name)


def _preprocessing(variant, found, channels):
    """Returns the `Preprocessing` of weights or, without any, of a variant.

    None for other images than RGB and grayscale ones.
    """
    if channels not in (1, 3):
        return None
    preprocessing = variant.preprocessing
    if found is not None:
        preprocessing = found.preprocessing.over(preprocessing)
    normalization = preprocessing.normalization.for_channels(channels)
    return preprocessing._replace(normalization=normalization)
