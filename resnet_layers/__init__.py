"""Residual networks as Keras layers: blocks, whole models, fused batch norm.

from resnet_layers import VARIANTS, BasicBlock, BottleneckBlock, ResNet
"""

from resnet_layers.blocks import BasicBlock, BottleneckBlock
from resnet_layers.normalization import BatchNormalization
from resnet_layers.parts import (
    PaddedConv2D,
    SqueezeExcitation,
    StochasticDepth,
)
from resnet_layers.resnet import VARIANTS, ResNet, Stem
from resnet_layers.weights import (
    NORMALIZATIONS,
    Normalization,
    Preprocessing,
    WeightsError,
    find_weights,
    load_weights,
    read_preprocessing,
    save_safetensors,
)

__version__ = "0.1.0"

__all__ = [
    "NORMALIZATIONS",
    "VARIANTS",
    "BasicBlock",
    "BatchNormalization",
    "BottleneckBlock",
    "Normalization",
    "PaddedConv2D",
    "Preprocessing",
    "ResNet",
    "SqueezeExcitation",
    "Stem",
    "StochasticDepth",
    "WeightsError",
    "find_weights",
    "load_weights",
    "read_preprocessing",
    "save_safetensors",
]
