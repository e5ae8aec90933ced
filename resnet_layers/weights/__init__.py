"""Pretrained weights: finding, loading and saving them."""

from resnet_layers.weights.architectures import read_num_classes
from resnet_layers.weights.assign import (
    Loaded,
    load_weights,
    save_safetensors,
)
from resnet_layers.weights.downloads import (
    IMAGENET_FILES,
    WeightsInfo,
    find_weights,
    is_of_hub,
)
from resnet_layers.weights.preprocessing import (
    NORMALIZATIONS,
    ModelConfig,
    Normalization,
    Preprocessing,
    make_config,
    read_config,
    read_preprocessing,
    write_config,
)
from resnet_layers.weights.tensors import WeightsError

__all__ = [
    "IMAGENET_FILES",
    "NORMALIZATIONS",
    "Loaded",
    "ModelConfig",
    "Normalization",
    "Preprocessing",
    "WeightsError",
    "WeightsInfo",
    "find_weights",
    "is_of_hub",
    "load_weights",
    "make_config",
    "read_config",
    "read_num_classes",
    "read_preprocessing",
    "save_safetensors",
    "write_config",
]
