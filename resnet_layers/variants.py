"""Named ResNet variants: `VARIANTS`."""

import difflib
from typing import Any, NamedTuple

from resnet_layers.images import DEFAULT_PREPROCESSING
from resnet_layers.resnet import ResNet


class Feature(NamedTuple):
    """Design features that variants share: descriptions, `ResNet` arguments."""

    descriptions: tuple
    arguments: dict

    def __or__(self, other):
        return Feature(
            (*self.descriptions, *other.descriptions),
            {**self.arguments, **other.arguments},
        )


class Variant:
    """A named configuration of `ResNet`: call it to create a model.

    Its `__doc__` describes it in a sentence; `arguments` are those of
    `ResNet`, as a dict.

    Args:
      name: default name of the models.
      feature: `Feature` that combines the features of the variant.

    Example:
      ```python
      model = VARIANTS["resnet50"](num_classes=37, stride_site="1x1")
      ```
    """

    def __init__(self, name, feature):
        self.__name__ = name
        blocks, *others = feature.descriptions
        self.__doc__ = f"ResNet of {blocks}{_in_words(others)}."
        self.arguments = {"name": name, **feature.arguments}

    def __call__(self, **arguments: Any) -> ResNet:
        """Creates a model.

        Args:
          **arguments: arguments of `ResNet` that replace those of the variant.

        Returns:
          A `ResNet`, not built yet.

        Raises:
          ValueError: an argument is invalid or unknown.
        """
        return ResNet(**{**self.arguments, **arguments})

    @property
    def preprocessing(self):
        """`Preprocessing` without weights; 32 pixels for models of CIFAR."""
        if self.arguments.get("stem") == "small":
            return DEFAULT_PREPROCESSING._replace(
                image_size=32, crop_fraction=1.0
            )
        return DEFAULT_PREPROCESSING

    def __repr__(self):
        return f"<{self.__name__}: {self.__doc__}>"


def _in_words(descriptions):
    if not descriptions:
        return ""
    *first, last = descriptions
    return f" with {', '.join(first)} and {last}" if first else f" with {last}"


class UnknownVariantError(KeyError):
    """KeyError for an unknown variant, with a one-line message."""

    def __str__(self):
        return self.args[0]


def nearest_names(name, names):
    """Returns up to four of `names`: those that start with, or resemble, one.

    Args:
      name: name to look up.
      names: known names.
    """
    longer = [other for other in names if other.startswith(name)]
    return longer[:4] or difflib.get_close_matches(name, names, 4, cutoff=0.5)


class Variants(dict[str, Variant]):
    """{name: `Variant`}; an unknown name raises with the nearest ones."""

    def __missing__(self, name):
        near = nearest_names(str(name), self)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else "Use a name in VARIANTS."
        )
        raise UnknownVariantError(f"variant={name}: unknown. {hint}")


def _feature(*descriptions, **arguments):
    return Feature(descriptions, arguments)


def _basic(*stage_sizes, **arguments):
    return _stages("basic", stage_sizes, arguments)


def _bottleneck(*stage_sizes, **arguments):
    return _stages("bottleneck", stage_sizes, arguments)


def _stages(block, stage_sizes, arguments):
    return _feature(
        f"{block} blocks ({', '.join(map(str, stage_sizes))} per stage)",
        block=block,
        stage_sizes=stage_sizes,
        **arguments,
    )


def _groups(groups, base_width):
    return _feature(
        f"{groups} groups of width {base_width} (ResNeXt)",
        groups=groups,
        base_width=base_width,
    )


def _wide(factor):
    return _feature(
        f"{factor}x width inside the blocks (Wide ResNet)",
        base_width=64 * factor,
    )


def _bit(factor):
    return _feature(
        f"{factor}x width",
        "pre-activation",
        "group norm",
        "weight standardization (BiT)",
        width=64 * factor,
        stem={"kind": "imagenet", "pool": "zero_padded_max"},
        preactivation=True,
        use_bias=False,
        norm="group",
        weight_standardization=True,
        zero_last_gamma=False,
    )


_R18 = _basic(2, 2, 2, 2)
_R34 = _basic(3, 4, 6, 3)
_R26 = _bottleneck(2, 2, 2, 2)
_R50 = _bottleneck(3, 4, 6, 3)
_R101 = _bottleneck(3, 4, 23, 3)
_R152 = _bottleneck(3, 8, 36, 3)
_R200 = _bottleneck(3, 24, 36, 3)
_R269 = _bottleneck(3, 30, 48, 8)

_C = _feature("a deep stem (ResNet-C)", stem="deep")
_D = _feature(
    "a deep stem",
    "pooled shortcuts (ResNet-D)",
    stem="deep",
    shortcut="pooled_projection",
)
_T = _feature(
    "a tiered stem",
    "pooled shortcuts (ResNet-T)",
    stem="tiered",
    shortcut="pooled_projection",
)
_S = _feature(
    "a wide deep stem (ResNet-S)", stem={"kind": "deep", "filters": 128}
)
_LIGHT = _feature("pooled shortcuts", shortcut="pooled_projection")
_RS = _feature(
    "a deep stem with a convolution as pooling",
    "pooled shortcuts",
    "squeeze-and-excitation of ratio 1/4 (ResNet-RS)",
    stem={"kind": "deep", "pool": "convolution"},
    shortcut="pooled_projection",
    attention={"kind": "se", "ratio": 0.25},
)
_SE = _feature("squeeze-and-excitation", attention="se")
_ECA = _feature("efficient channel attention", attention="eca")
_AA = _feature("average pooling instead of strides", antialias="average")
_BLUR = _feature("blur pooling instead of strides", antialias="blur")
_GN = _feature("group norm", norm="group")
_SENET = _feature(
    "a wide deep stem",
    "3x3 shortcuts",
    "half the filters in the first convolution of a block (SENet)",
    stem={"kind": "deep", "filters": 128},
    shortcut="projection_3x3",
    first_reduction=2,
)
_V1 = _feature(
    "the stride in the first 1x1 convolution (v1, as in the paper)",
    stride_site="1x1",
)
_KERAS_NORM = {"norm": {"kind": "batch", "momentum": 0.99, "epsilon": 1.001e-5}}
_KERAS_V1 = _V1 | _feature(
    "the batch norm of keras.applications", **_KERAS_NORM
)
_KERAS_V2 = _feature(
    "pre-activation",
    "biases",
    "the stride in the last block of a stage (V2 of keras.applications)",
    preactivation=True,
    downsample="last",
    stem={"kind": "imagenet", "pool": "zero_padded_max"},
    **_KERAS_NORM,
)
_V2 = _feature("pre-activation (ResNet V2)", preactivation=True, use_bias=False)
_CIFAR = _feature(
    "16 filters",
    "a small stem",
    "parameter-free shortcuts (the paper's model for CIFAR-10)",
    num_classes=10,
    width=16,
    stem="small",
    shortcut="zero_padding",
)
_TINY = _feature(
    "16 filters", "a small stem, for experiments", width=16, stem="small"
)
_TEST = _feature(
    "bottleneck blocks in the third stage",
    "few filters (timm's test model)",
    block=("basic", "basic", "bottleneck", "basic"),
    width=(32, 48, 48, 96),
)
_X32X4, _X32X8, _X64X4 = _groups(32, 4), _groups(32, 8), _groups(64, 4)

# Names follow timm and torchvision where these have the model. `*_v1` has the
# stride site of the paper, `*_keras` and `*_v2` are from keras.applications,
# resnet_vd_200 is from Keras Hub, and resnet20 to resnet110 are the paper's
# CIFAR models.
VARIANTS = Variants(
    (name, Variant(name, feature))
    for name, feature in {
        "resnet_tiny": _bottleneck(1, 1, 1) | _TINY,
        "resnet10t": _basic(1, 1, 1, 1) | _T,
        "resnet14t": _bottleneck(1, 1, 1, 1) | _T,
        "resnet18": _R18,
        "resnet18d": _R18 | _D,
        "resnet26": _R26,
        "resnet26d": _R26 | _D,
        "resnet26t": _R26 | _T,
        "resnet34": _R34,
        "resnet34d": _R34 | _D,
        "resnet50": _R50,
        "resnet50c": _R50 | _C,
        "resnet50d": _R50 | _D,
        "resnet50s": _R50 | _S,
        "resnet50t": _R50 | _T,
        "resnet50_gn": _R50 | _GN,
        "resnet101": _R101,
        "resnet101c": _R101 | _C,
        "resnet101d": _R101 | _D,
        "resnet101s": _R101 | _S,
        "resnet152": _R152,
        "resnet152c": _R152 | _C,
        "resnet152d": _R152 | _D,
        "resnet152s": _R152 | _S,
        "resnet200": _R200,
        "resnet200d": _R200 | _D,
        "wide_resnet50_2": _R50 | _wide(2),
        "wide_resnet101_2": _R101 | _wide(2),
        "resnext50_32x4d": _R50 | _X32X4,
        "resnext50d_32x4d": _R50 | _X32X4 | _D,
        "resnext101_32x4d": _R101 | _X32X4,
        "resnext101_32x8d": _R101 | _X32X8,
        "resnext101_32x16d": _R101 | _groups(32, 16),
        "resnext101_32x32d": _R101 | _groups(32, 32),
        "resnext101_64x4d": _R101 | _X64X4,
        "seresnet18": _R18 | _SE,
        "seresnet34": _R34 | _SE,
        "seresnet50": _R50 | _SE,
        "seresnet50t": _R50 | _T | _SE,
        "seresnet101": _R101 | _SE,
        "seresnet152": _R152 | _SE,
        "seresnet152d": _R152 | _D | _SE,
        "seresnet200d": _R200 | _D | _SE,
        "seresnet269d": _R269 | _D | _SE,
        "seresnext26d_32x4d": _R26 | _X32X4 | _D | _SE,
        "seresnext26t_32x4d": _R26 | _X32X4 | _T | _SE,
        "seresnext50_32x4d": _R50 | _X32X4 | _SE,
        "seresnext101_32x4d": _R101 | _X32X4 | _SE,
        "seresnext101_32x8d": _R101 | _X32X8 | _SE,
        "seresnext101d_32x8d": _R101 | _X32X8 | _D | _SE,
        "seresnext101_64x4d": _R101 | _X64X4 | _SE,
        "senet154": _R152 | _X64X4 | _SENET | _SE,
        "ecaresnet26t": _R26 | _T | _ECA,
        "ecaresnet50d": _R50 | _D | _ECA,
        "ecaresnet50t": _R50 | _T | _ECA,
        "ecaresnet101d": _R101 | _D | _ECA,
        "ecaresnet200d": _R200 | _D | _ECA,
        "ecaresnet269d": _R269 | _D | _ECA,
        "ecaresnetlight": _bottleneck(1, 1, 11, 3) | _LIGHT | _ECA,
        "ecaresnext26t_32x4d": _R26 | _X32X4 | _T | _ECA,
        "ecaresnext50t_32x4d": _R50 | _X32X4 | _T | _ECA,
        "resnetblur18": _R18 | _BLUR,
        "resnetblur50": _R50 | _BLUR,
        "resnetblur50d": _R50 | _D | _BLUR,
        "resnetblur101d": _R101 | _D | _BLUR,
        "resnetaa34d": _R34 | _D | _AA,
        "resnetaa50": _R50 | _AA,
        "resnetaa50d": _R50 | _D | _AA,
        "resnetaa101d": _R101 | _D | _AA,
        "seresnetaa50d": _R50 | _D | _AA | _SE,
        "seresnextaa101d_32x8d": _R101 | _X32X8 | _D | _AA | _SE,
        "seresnextaa201d_32x8d": (
            _bottleneck(3, 24, 36, 4) | _X32X8 | _LIGHT | _S | _AA | _SE
        ),
        "resnetrs50": _R50 | _RS,
        "resnetrs101": _R101 | _RS,
        "resnetrs152": _R152 | _RS,
        "resnetrs200": _R200 | _RS,
        "resnetrs270": _bottleneck(4, 29, 53, 4) | _RS,
        "resnetrs350": _bottleneck(4, 36, 72, 4) | _RS,
        "resnetrs420": _bottleneck(4, 44, 87, 4) | _RS,
        "test_resnet": _basic(1, 1, 1, 1) | _D | _TEST,
        "resnetv2_18": _R18 | _V2,
        "resnetv2_18d": _R18 | _D | _V2,
        "resnetv2_34": _R34 | _V2,
        "resnetv2_34d": _R34 | _D | _V2,
        "resnetv2_50": _R50 | _V2,
        "resnetv2_50d": _R50 | _D | _V2,
        "resnetv2_50d_gn": _R50 | _D | _V2 | _GN,
        "resnetv2_50t": _R50 | _T | _V2,
        "resnetv2_101": _R101 | _V2,
        "resnetv2_101d": _R101 | _D | _V2,
        "resnetv2_152": _R152 | _V2,
        "resnetv2_152d": _R152 | _D | _V2,
        "resnetv2_50x1_bit": _R50 | _bit(1),
        "resnetv2_50x3_bit": _R50 | _bit(3),
        "resnetv2_101x1_bit": _R101 | _bit(1),
        "resnetv2_101x3_bit": _R101 | _bit(3),
        "resnetv2_152x2_bit": _R152 | _bit(2),
        "resnetv2_152x4_bit": _R152 | _bit(4),
        "resnet_vd_200": _bottleneck(3, 12, 48, 3) | _D,
        "resnet50_v1": _R50 | _V1,
        "resnet101_v1": _R101 | _V1,
        "resnet152_v1": _R152 | _V1,
        "resnet50_keras": _R50 | _KERAS_V1,
        "resnet101_keras": _R101 | _KERAS_V1,
        "resnet152_keras": _R152 | _KERAS_V1,
        "resnet50_v2": _R50 | _KERAS_V2,
        "resnet101_v2": _R101 | _KERAS_V2,
        "resnet152_v2": _R152 | _KERAS_V2,
        "resnet20": _basic(3, 3, 3) | _CIFAR,
        "resnet32": _basic(5, 5, 5) | _CIFAR,
        "resnet44": _basic(7, 7, 7) | _CIFAR,
        "resnet56": _basic(9, 9, 9) | _CIFAR,
        "resnet110": _basic(18, 18, 18) | _CIFAR,
    }.items()
)
"""Named variants: {name: `Variant`}, for example `VARIANTS["resnet50d"]`.

A `Variant` is a callable: `VARIANTS["resnet50d"](num_classes=37)` returns a
`ResNet`. Keyword arguments replace those of the variant, which are in its
`arguments`. Its `__doc__` is a one-sentence description. An unknown name raises
a `KeyError` with the nearest names.

Example:
  ```python
  list(VARIANTS)  # all names
  model = VARIANTS["resnet50d"](num_classes=37)
  print(VARIANTS["resnet50d"].__doc__)
  ```
"""
