"""ResNets as Keras layers: blocks, models, and pretrained weights.

Example:
  ```python
  from resnet_layers import BottleneckBlock, create_model

  model = create_model("resnet50d", num_classes=37)
  logits = model(images)  # [batch, height, width, 3] -> [batch, 37]
  x = BottleneckBlock(filters=64, strides=2)(x)
  ```
"""

# ruff: noqa: E402
import importlib
import os
import re

# As in setup.cfg. Versions above these were not tried, and are accepted.
VERSIONS = {"tensorflow": ">=2.18,<2.22", "keras": ">=3.10,<3.16"}


def check_version(library):
    """Raises ImportError if the version of a library is too low."""
    version = importlib.import_module(library).__version__
    lowest = re.match(r">=(\d+)\.(\d+)", VERSIONS[library])
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if [*map(int, numbers.groups())] < [*map(int, lowest.groups())]:
        raise ImportError(
            f"{library}=={version}: must be {lowest[0][2:]} or later. Run: "
            f"pip install '{library}{VERSIONS[library]}'"
        )


def check_backend():
    """Raises ImportError unless a supported Keras runs on TensorFlow.

    The error of `tf.keras` names neither the backend nor the variable.
    """
    moment = "before Python starts, or before Keras is imported."
    # The values that TensorFlow accepts as true.
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    if legacy in ("true", "True", "1"):
        raise ImportError(
            f"TF_USE_LEGACY_KERAS={legacy}: must be 0, for Keras 3. Set it "
            f"{moment}"
        )
    check_version("tensorflow")
    try:
        import keras

        backend_name = keras.config.backend()
    except ImportError as error:
        # The configured backend may not be installed.
        backend_name = os.environ.get("KERAS_BACKEND", f"unknown ({error})")
    except AttributeError:
        # Of Keras 2.
        backend_name = "tensorflow"
    if backend_name != "tensorflow":
        raise ImportError(
            f"Keras backend={backend_name}: must be tensorflow. Set "
            f"KERAS_BACKEND=tensorflow {moment}"
        )
    check_version("keras")


# Before any import of Keras.
check_backend()

from resnet_layers.attention import (
    EfficientChannelAttention,
    SqueezeExcitation,
)
from resnet_layers.blocks import BasicBlock, BottleneckBlock, ResidualBlock
from resnet_layers.convolutions import PaddedConv2D, StandardizedConv2D
from resnet_layers.images import ImagePreprocessing
from resnet_layers.models import create_model, list_models
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
    "ImagePreprocessing",
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
    "create_model",
    "find_weights",
    "fold_batch_norms",
    "is_of_hub",
    "list_models",
    "load_weights",
    "make_config",
    "read_config",
    "read_num_classes",
    "read_preprocessing",
    "save_safetensors",
    "write_config",
]


def __getattr__(name):
    """Returns what version 0.1.0 had under another name."""
    if name == "Found":
        return WeightsInfo
    if name == "in_phase":
        # Custom blocks used it to pass `training` on.
        return lambda training: (
            {} if training is None else {"training": training}
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
