"""Weights of others and of our own: found, read into models, written again."""

from resnet_layers.weights.assign import (
    Loaded,
    load_weights,
    save_safetensors,
)
from resnet_layers.weights.names import WeightsError
from resnet_layers.weights.preprocessing import (
    NORMALIZATIONS,
    Normalization,
    Preprocessing,
    read_preprocessing,
)
from resnet_layers.weights.sources import (
    IMAGENET_FILES,
    Found,
    find_weights,
    is_of_hub,
)
from resnet_layers.weights.variants import read_num_classes

__all__ = [
    "IMAGENET_FILES",
    "NORMALIZATIONS",
    "Found",
    "Loaded",
    "Normalization",
    "Preprocessing",
    "WeightsError",
    "find_weights",
    "is_of_hub",
    "load_weights",
    "read_num_classes",
    "read_preprocessing",
    "save_safetensors",
]
