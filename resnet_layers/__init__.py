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
    Preprocessing,
    WeightsError,
    find_weights,
    load_weights,
    save_safetensors,
)

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "BasicBlock",
    "BatchNormalization",
    "BottleneckBlock",
    "PaddedConv2D",
    "Preprocessing",
    "ResNet",
    "SqueezeExcitation",
    "Stem",
    "StochasticDepth",
    "WeightsError",
    "find_weights",
    "load_weights",
    "save_safetensors",
]
