"""Invalid arguments of constructors, their errors, and NumPy numbers."""

import json
import re

import numpy as np
import pytest

from resnet_layers import (
    BasicBlock,
    BatchNormalization,
    BlurPool2D,
    BottleneckBlock,
    PaddedConv2D,
    PaddedMaxPooling2D,
    ResNet,
    SqueezeExcitation,
    Stem,
    StochasticDepth,
)

NAN, INFINITY = float("nan"), float("inf")
REQUIRED = {
    PaddedConv2D: {"filters": 4, "kernel_size": 3},
    StochasticDepth: {"stochastic_depth": 0.5},
    BasicBlock: {"filters": 4},
    BottleneckBlock: {"filters": 4},
}
# Each kind of check, for one argument, with each kind of invalid value.
KINDS = [
    (PaddedConv2D, "filters", (0, -1, 1.0, True, np.True_, "8", None, [8])),
    (PaddedConv2D, "kernel_size", (2, NAN, (3, 2), (3, 3, 3), (1.0, 1))),
    (StochasticDepth, "seed", ("x", 1.0, True, 2**63)),
    (
        ResNet,
        "stage_sizes",
        (
            *((), 3, None, "ab", b"ab", {2: 1}, [None], (1.5, 1), (2, 0)),
            *((True,), ("1",), (NAN,), ((1, 2),)),
        ),
    ),
    (ResNet, "output_stride", (0, 1, 12, 64, True, NAN, 8.0, "8", [8], -8)),
    (ResNet, "stem", ("x", None, 3, True, [], {})),
    (ResNet, "preactivation", ("False", 0, 1, None, [])),
    (
        BatchNormalization,
        "epsilon",
        (-1, NAN, INFINITY, None, "a", True, [0.9]),
    ),
    # The exclusive bounds of a number.
    (SqueezeExcitation, "ratio", (0,)),
    (StochasticDepth, "stochastic_depth", (-0.1, 1)),
]
OPTIONS = {
    "norm": "layer",
    "preactivation": 1,
    "antialias": "max",
    "weight_standardization": 1,
    "use_bias": "no",
}
BLOCK_OPTIONS = {
    "shortcut": "x",
    "attention": 1,
    "zero_last_gamma": 1,
    **OPTIONS,
}
BLOCK = {
    "filters": 0,
    "strides": (1, 0),
    "dilation": 0,
    "first_dilation": 0,
    "stochastic_depth": 1,
    **BLOCK_OPTIONS,
}
# Each argument of each constructor that Keras does not check by itself, with an
# invalid value.
ARGUMENTS = {
    PaddedConv2D: {
        "filters": 0,
        "kernel_size": 2,
        "strides": (1, 0),
        "dilation_rate": 0,
        "groups": 0,
        "padding": "valid",
        "data_format": "channels_first",
        "use_bias": 1,
    },
    SqueezeExcitation: {"ratio": 1.5},
    StochasticDepth: {"stochastic_depth": 1, "seed": "x"},
    BatchNormalization: {"momentum": 2, "epsilon": -1, "synchronized": 1},
    BlurPool2D: {"strides": 0},
    PaddedMaxPooling2D: {"strides": 0, "padding": "same"},
    Stem: {"filters": 0, "kind": "x", "pool": "mean", **OPTIONS},
    BasicBlock: BLOCK,
    BottleneckBlock: {
        **BLOCK,
        "groups": 0,
        "base_width": 0,
        "first_reduction": 0,
        "stride_site": "5x5",
    },
    ResNet: {
        "block": "wide",
        "stage_sizes": 3,
        "num_classes": 0,
        "width": 0,
        "stem": "x",
        "downsample": "never",
        "output_stride": 3,
        "stochastic_depth": 1,
        "trainable": 1,
        **BLOCK_OPTIONS,
        "groups": 0,
        "base_width": 0,
        # Arguments of blocks that differ from block to block.
        "filters": 8,
        "strides": 2,
        "dilation": 2,
        "first_dilation": 2,
        "stages": 3,
    },
}
INVALID = {
    f"{make.__name__}-{argument}-{value!r}": (make, argument, value)
    for make, argument, value in (
        *(
            (make, name, value)
            for make, name, values in KINDS
            for value in values
        ),
        *(
            (make, name, value)
            for make, arguments in ARGUMENTS.items()
            for name, value in arguments.items()
        ),
    )
}


@pytest.mark.parametrize(
    ("make", "argument", "value"), INVALID.values(), ids=INVALID
)
def test_error_states_the_argument_and_its_value(make, argument, value):
    start = re.escape(f"{argument}={value!r}: ")
    with pytest.raises(ValueError, match=f"^{start}.*[.?]$"):
        make(**{**REQUIRED.get(make, {}), argument: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 1, "stem": "deep"},
            "^width=1: must be an integer, at least 2.$",
        ),
        (
            {"width": 1, "base_width": 4},
            "^filters=1, base_width=4.* 64.*Increase",
        ),
        (
            {"width": (8, 16)},
            "^width=.8, 16.: must be .*, or 4, one for each stage",
        ),
        (
            {"block": ["basic"]},
            "^block=.'basic'.: must be .* one for each stage",
        ),
        ({"stem": "x"}, "'imagenet', 'deep', 'tiered', 'small'"),
        ({"norm": "layer"}, "'batch', 'group', or a layer class"),
        (
            {"attention": {"ratio": 1}},
            "^attention=None: must be one of 'se', 'eca'",
        ),
        ({"num_classes": 0}, "an integer, at least 1, or None"),
        ({"output_stride": 64}, "one of None, 4, 8, 16, 32"),
        ({"output_stride": 16, "stem": "small"}, "one of None, 1, 2, 4, 8"),
        (
            {"block": "basic", "groups": 2},
            "^groups=2: unknown argument of ResNet. .*shortcut",
        ),
        ({"filters": 2}, "^filters=2: .*Use one of block, .*width.*groups"),
        ({"grups": 2}, "^grups=2: .* Did you mean groups?"),
        ({"stochastic_depth": 1}, "at least 0 and below 1"),
        ({"stem": "small_"}, "Did you mean 'small'?"),
    ],
    ids=str,
)
def test_error_states_what_is_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (PaddedConv2D, {"filters": 4, "kernel_size": 3, "strides": 2}),
        (SqueezeExcitation, {"ratio": 0.5}),
        (StochasticDepth, {"stochastic_depth": 0.5, "seed": 3}),
        (BatchNormalization, {"momentum": 0.5, "synchronized": True}),
        (Stem, {"filters": 4, "preactivation": True}),
        (BasicBlock, {"filters": 4, "strides": 2, "stochastic_depth": 0.5}),
        (
            BottleneckBlock,
            {
                "filters": 4,
                "dilation": 4,
                "first_dilation": 2,
                "groups": 2,
                "base_width": 32,
                "zero_last_gamma": False,
            },
        ),
        (
            ResNet,
            {
                "stage_sizes": (1, 2),
                "width": 8,
                "num_classes": 5,
                "output_stride": 4,
                "stochastic_depth": 0.5,
                "zero_last_gamma": False,
                "groups": 2,
                "base_width": 32,
                "attention": "se",
            },
        ),
    ],
)
def test_numpy_numbers_are_stored_as_python_numbers(make, arguments, images):
    # Configs must be JSON.
    layer = make(**{name: numpy_value(v) for name, v in arguments.items()})
    expected = make(**arguments, name=layer.name)
    assert json.dumps(layer.get_config()) == json.dumps(expected.get_config())
    assert layer(images).shape == expected(images).shape


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: PaddedConv2D(4, 3, **kw),
        SqueezeExcitation,
        lambda **kw: StochasticDepth(0.5, **kw),
        BatchNormalization,
        lambda **kw: BasicBlock(4, **kw),
        lambda **kw: ResNet(norm={"kind": "batch", **kw}),
    ],
)
def test_keras_rejects_unknown_arguments(make):
    with pytest.raises(ValueError, match="Unrecognized keyword.*stages"):
        make(stages=3)


def numpy_value(value):
    if isinstance(value, str):
        return value
    return np.array(value) if isinstance(value, tuple) else np.array([value])[0]
