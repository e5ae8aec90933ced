"""Residual networks as Keras layers: blocks, whole models, weights.

from resnet_layers import VARIANTS, BasicBlock, BottleneckBlock, ResNet
"""

# ruff: noqa: E402
import os


def check_backend():
    """Raises ImportError where Keras runs on another backend than TensorFlow.

    The error of `tf.keras` names neither the backend nor the variable.
    """
    advice = "Set it before Python starts, or before Keras is imported."
    # What TensorFlow takes for yes.
    if os.environ.get("TF_USE_LEGACY_KERAS") in ("true", "True", "1"):
        raise ImportError(
            "resnet_layers requires Keras 3: TF_USE_LEGACY_KERAS must be 0. "
            f"{advice}"
        )
    try:
        from keras.config import backend

        found = backend()
    except ImportError as error:
        # The backend that it is to run on may not be installed.
        found = os.environ.get("KERAS_BACKEND", f"another one ({error})")
    if found != "tensorflow":
        raise ImportError(
            "resnet_layers requires Keras on TensorFlow, and this process has "
            f"Keras on {found}: KERAS_BACKEND must be tensorflow. {advice}"
        )


# Before anything imports Keras.
check_backend()

from resnet_layers.attention import (
    EfficientChannelAttention,
    SqueezeExcitation,
)
from resnet_layers.blocks import BasicBlock, BottleneckBlock, ResidualBlock
from resnet_layers.convolutions import PaddedConv2D, StandardizedConv2D
from resnet_layers.normalization import BatchNormalization, fold_batch_norms
from resnet_layers.pooling import BlurPool2D, PaddedMaxPooling2D
from resnet_layers.resnet import ResNet
from resnet_layers.stem import Stem
from resnet_layers.stochastic_depth import StochasticDepth
from resnet_layers.variants import VARIANTS
from resnet_layers.weights import (
    NORMALIZATIONS,
    ModelConfig,
    Normalization,
    Preprocessing,
    WeightsError,
    WeightsInfo,
    find_weights,
    is_of_hub,
    load_weights,
    make_config,
    read_config,
    read_num_classes,
    read_preprocessing,
    save_safetensors,
    write_config,
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
    "ModelConfig",
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
    "WeightsInfo",
    "find_weights",
    "fold_batch_norms",
    "is_of_hub",
    "load_weights",
    "make_config",
    "read_config",
    "read_num_classes",
    "read_preprocessing",
    "save_safetensors",
    "write_config",
]


def __getattr__(name):
    """Returns what version 0.1.0 called by another name."""
    if name == "Found":
        return WeightsInfo
    if name == "in_phase":
        # Custom blocks had to hand `training` on by it.
        return lambda training: (
            {} if training is None else {"training": training}
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
