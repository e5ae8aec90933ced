"""Residual networks as Keras layers: blocks, whole models, fused batch norm.

from resnet_layers import VARIANTS, BasicBlock, BottleneckBlock, ResNet
"""

# ruff: noqa: E402
from resnet_layers.backend import check_backend

# Before anything imports Keras.
check_backend()

from resnet_layers.attention import (
    EfficientChannelAttention,
    SqueezeExcitation,
)
from resnet_layers.blocks import BasicBlock, BottleneckBlock, ResidualBlock
from resnet_layers.convolutions import PaddedConv2D, StandardizedConv2D
from resnet_layers.folding import fold_batch_norms
from resnet_layers.normalization import BatchNormalization
from resnet_layers.phases import in_phase
from resnet_layers.pooling import BlurPool2D, PaddedMaxPooling2D
from resnet_layers.resnet import ResNet
from resnet_layers.stem import Stem
from resnet_layers.stochastic_depth import StochasticDepth
from resnet_layers.variants import VARIANTS
from resnet_layers.weights import (
    NORMALIZATIONS,
    Found,
    Normalization,
    Preprocessing,
    WeightsError,
    find_weights,
    is_of_hub,
    load_weights,
    read_num_classes,
    read_preprocessing,
    save_safetensors,
)

__version__ = "0.1.0"

__all__ = [
    "NORMALIZATIONS",
    "VARIANTS",
    "BasicBlock",
    "BatchNormalization",
    "BlurPool2D",
    "BottleneckBlock",
    "EfficientChannelAttention",
    "Found",
    "Normalization",
    "PaddedConv2D",
    "PaddedMaxPooling2D",
    "Preprocessing",
    "ResNet",
    "ResidualBlock",
    "SqueezeExcitation",
    "StandardizedConv2D",
    "Stem",
    "StochasticDepth",
    "WeightsError",
    "find_weights",
    "fold_batch_norms",
    "in_phase",
    "is_of_hub",
    "load_weights",
    "read_num_classes",
    "read_preprocessing",
    "save_safetensors",
]
