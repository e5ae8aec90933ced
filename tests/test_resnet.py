"""Whole models, and what every public layer must be able to do."""

import functools
import inspect
import json
import re
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import (
    VARIANTS,
    BasicBlock,
    BatchNormalization,
    BottleneckBlock,
    PaddedConv2D,
    ResNet,
    SqueezeExcitation,
    Stem,
    StochasticDepth,
)
from resnet_layers.blocks import SHORTCUTS
from resnet_layers.resnet import DOWNSAMPLINGS


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def small_resnet(**options):
    options = {"stage_sizes": (1, 2), "width": 8, "num_classes": 5, **options}
    return ResNet(**options)


# Name -> constructor, with arguments other than the defaults.
LAYERS = {
    "attention": lambda **kw: SqueezeExcitation(1 / 2, **kw),
    "drop": lambda **kw: StochasticDepth(0.3, **kw),
    "batch_norm": lambda **kw: BatchNormalization(momentum=0.8, **kw),
    "conv": lambda **kw: PaddedConv2D(6, 5, strides=2, **kw),
    "stem": lambda **kw: Stem(8, kind="small", norm_epsilon=1e-3, **kw),
    "basic": lambda **kw: BasicBlock(4, strides=2, norm_momentum=0.8, **kw),
    "bottleneck": lambda **kw: BottleneckBlock(
        4, strides=2, stride_site="1x1", zero_last_gamma=False, **kw
    ),
    "resnet": lambda **kw: small_resnet(stem="small", stride_site="1x1", **kw),
    "resnet_basic": lambda **kw: small_resnet(block="basic", **kw),
    "resnet_stochastic": lambda **kw: small_resnet(stochastic_depth=0.2, **kw),
    "resnet_dilated": lambda **kw: small_resnet(output_stride=4, **kw),
    "resnet_headless": lambda **kw: small_resnet(num_classes=None, **kw),
}


def small_variant(variant, **options):
    """Returns a variant with its options, and three blocks in two stages."""
    options = {
        "stage_sizes": (2, 1),
        "num_classes": 5,
        "width": 16,
        **options,
    }
    return VARIANTS[variant](**options)


# Every variant that is more than another's number of blocks.
DISTINCT = [
    name for name in VARIANTS if not re.search("32$|34|44|56|101|110|152", name)
]
LAYERS |= {name: functools.partial(small_variant, name) for name in DISTINCT}


def scramble(layer, seed=5):
    """Gives all weights, statistics included, values of their own.

    Kernels keep the size of what goes through them, so that nothing saturates.
    """
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        if len(weight.shape) > 1:
            fan_in = np.prod(weight.shape[:-1])
            value = random.normal(size=weight.shape) / np.sqrt(fan_in)
        elif "int" in weight.dtype:
            value = random.integers(1, 9, weight.shape)
        else:
            value = random.uniform(0.1, 1.0, weight.shape)
        weight.assign(value)


def thaw(layer):
    # An attribute that is set to what it is does nothing in Keras, not even to
    # the layers below.
    layer.trainable = False
    layer.trainable = True


def assert_same_weights(layer, other):
    for mine, theirs in zip(layer.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


class Shared(NamedTuple):
    """A scrambled layer that no test changes, with what it makes of `images`.

    `model` is a functional model of the layer alone, `symbolic` its output.
    """

    layer: tf.keras.Layer
    model: tf.keras.Model
    symbolic: tf.keras.KerasTensor
    outputs: tf.Tensor


def share(layer, images):
    inputs = tf.keras.Input(images.shape[1:])
    symbolic = layer(inputs)
    model = tf.keras.Model(inputs, symbolic)
    scramble(layer)
    return Shared(layer, model, symbolic, layer(images))


@pytest.fixture(scope="module", params=LAYERS)
def make_layer(request):
    return LAYERS[request.param]


@pytest.fixture(scope="module")
def shared(make_layer, images):
    return share(make_layer(), images)


@pytest.fixture(scope="module")
def built_twin(make_layer, images):
    return share(make_layer(), images)


@pytest.fixture
def twin(built_twin):
    """As `shared`, but with other weights, and tests may change them."""
    thaw(built_twin.layer)
    scramble(built_twin.layer, seed=6)
    return built_twin


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # torchvision's.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
        # timm's.
        ("seresnet50", 28_088_024),
        # keras.applications'.
        ("resnet50_v2", 25_568_360),
        ("resnet101_v2", 44_577_896),
        ("resnet152_v2", 60_236_904),
        # He et al., table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name, parameters, count_parameters
):
    assert count_parameters(name) == parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_reduction_is_what_the_stages_do(name):
    model = VARIANTS[name](num_classes=3)
    shape = (1, 64, 64, 3)
    for layer in (model.stem, *model.blocks):
        shape = layer.compute_output_shape(shape)
    assert shape[1] == 64 // model.reduction
    assert model.name == name


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2", "resnet50d"])
def test_features_are_the_pyramid(name, images):
    model = small_variant(name, stage_sizes=(2, 2, 2, 2))
    maps = model.features(images)
    expansion = 1 if model.block == "basic" else 4
    assert [tuple(m.shape) for m in maps] == [
        (4, 32 // stride, 32 // stride, 16 * 2**stage * expansion)
        for stage, stride in enumerate((4, 8, 16, 32))
    ]
    pooled = tf.reduce_mean(maps[-1], [1, 2])
    np.testing.assert_array_equal(model.head(pooled), model(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2"])
def test_features_make_a_backbone_for_other_models(name, images):
    inputs = tf.keras.Input([None, None, 3])
    resnet = small_variant(name)
    backbone = tf.keras.Model(inputs, resnet.features(inputs))
    scramble(resnet)
    for ours, expected in zip(
        backbone(images), resnet.features(images), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


# With a shape of its own, and without the mean over all pixels of
# squeeze-and-excitation, which is another mean where there are more pixels.
DILATED = {
    **{
        name: functools.partial(small_variant, name, width=8)
        for name in DISTINCT
        if name not in ("seresnet50", "resnext50_32x4d")
    },
    "resnext": functools.partial(
        small_variant, "resnext50_32x4d", width=8, groups=2, base_width=32
    ),
    **{
        f"{shortcut}, {downsample}": functools.partial(
            small_resnet, shortcut=shortcut, downsample=downsample
        )
        for shortcut in SHORTCUTS
        for downsample in DOWNSAMPLINGS
    },
}


@pytest.mark.parametrize("name", DILATED)
def test_output_stride_computes_the_same_numbers(name):
    options = {"stage_sizes": (1, 2, 2, 2), "zero_last_gamma": False}
    strided = DILATED[name](**options)
    strided.build((None, None, None, 3))
    scramble(strided)
    for factor in (2, 4):
        stride = strided.reduction // factor
        dilated = DILATED[name](**options, output_stride=stride)
        dilated.build((None, None, None, 3))
        assert (dilated.reduction, strided.reduction) == (
            stride,
            stride * factor,
        )
        scramble(dilated)
        assert_same_weights(strided, dilated)
        for height, width in ((64, 64), (77, 50)):
            images = normal(2, height, width, 3)
            coarse = strided.features(images)[-1].numpy()
            fine = dilated.features(images)[-1].numpy()
            assert fine.shape[1] == -(-height // stride)
            np.testing.assert_allclose(
                fine[:, ::factor, ::factor],
                coarse,
                atol=1e-4 * np.abs(coarse).max(),
            )


def test_headless_model_returns_the_embedding(images):
    model = small_resnet(num_classes=None)
    expected = tf.reduce_mean(model.features(images)[-1], [1, 2])
    np.testing.assert_array_equal(model(images), expected)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_embedding_is_what_the_classifier_sees(dtype, images):
    model = small_resnet(dtype=dtype)
    embedding = model.embed(images)
    assert embedding.shape == (4, 64)
    assert embedding.dtype == tf.float32
    np.testing.assert_array_equal(model.head(embedding), model(images))
    headless = small_resnet(num_classes=None, dtype=dtype)
    np.testing.assert_array_equal(headless.embed(images), headless(images))


def test_embedding_uses_batch_statistics_in_training(images):
    model = small_resnet()
    in_training = model.embed(images, training=True)
    assert np.any(in_training != model.embed(images))


def test_embedding_makes_a_model_of_its_own(images):
    inputs = tf.keras.Input([None, None, 3])
    resnet = small_resnet()
    encoder = tf.keras.Model(inputs, resnet.embed(inputs))
    scramble(resnet)
    np.testing.assert_array_equal(encoder(images), resnet.embed(images))


def test_stochastic_depth_rises_to_the_last_block():
    model = ResNet(stage_sizes=(1, 2, 2), stochastic_depth=0.2)
    rates = [block.drop_rate for block in model.blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


def test_weights_start_as_he_et_al_say():
    model = ResNet()
    model.build((None, 224, 224, 3))
    kernel = np.asarray(model.blocks[7].conv2.kernel)
    fan_out = 3 * 3 * kernel.shape[-1]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / fan_out), rel=0.01)
    assert np.mean(kernel) == pytest.approx(0, abs=1e-3)
    assert not np.any(model.blocks[7].bn3.gamma)
    assert np.all(np.asarray(model.blocks[7].bn1.gamma) == 1)
    assert model.blocks[7].bn1.epsilon == 1e-5
    assert model.blocks[7].bn1.momentum == 0.9


def test_symbolic_and_eager_shapes_agree(shared, images):
    layer, _, symbolic, outputs = shared
    assert symbolic.shape[1:] == outputs.shape[1:]
    assert layer.compute_output_shape(images.shape) == outputs.shape
    assert symbolic.dtype == outputs.dtype.name


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (BasicBlock, {"stride_site": "3x3"}),
        (BottleneckBlock, {"stride_site": "1x1", "groups": 4, "base_width": 8}),
        (Stem, {"kind": "deep"}),
        (ResNet, {"stage_sizes": (1, 2), "num_classes": 3, "width": 16}),
    ],
)
def test_config_holds_every_argument(layer, arguments):
    """Each with a value that is not its default, where there is another."""
    parameters = inspect.signature(layer.__init__).parameters.values()
    given = {"filters": 24} if layer is not ResNet else {}
    for parameter in parameters:
        if (
            isinstance(parameter.default, bool)
            and parameter.name != "trainable"
        ):
            given[parameter.name] = not parameter.default
        elif isinstance(parameter.default, float):
            given[parameter.name] = parameter.default / 2 + 0.01
    given |= arguments
    config = layer(**given).get_config()
    assert {name: config[name] for name in given} == given
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    assert named - {"self"} <= set(config)


def test_config_round_trip(make_layer, shared, images):
    layer = make_layer(name="mine")
    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    clone(images)
    scramble(clone)
    np.testing.assert_array_equal(clone(images), shared.outputs)


def test_keras_file_round_trip(shared, images, tmp_path):
    shared.model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), shared.outputs)
    assert type(loaded.layers[1]) is type(shared.layer)
    assert_same_weights(loaded, shared.layer)


@pytest.mark.parametrize(
    "make_layer", [n for n in LAYERS if n != "conv"], indirect=True
)
def test_frozen_layer_comes_back_frozen(twin, images, tmp_path):
    twin.layer.trainable = False
    twin.model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    before = [np.array(v) for v in loaded.variables]
    loaded(images, training=True)
    assert not loaded.trainable_variables
    after = [np.array(v) for v in loaded.variables]
    for value, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(value, other)


def test_resnet_itself_round_trips_through_a_keras_file(images, tmp_path):
    model = small_resnet()
    model(images)
    scramble(model)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is ResNet
    np.testing.assert_array_equal(loaded(images), model(images))


def test_weights_file_round_trip(shared, twin, tmp_path):
    shared.model.save_weights(tmp_path / "model.weights.h5")
    twin.model.load_weights(tmp_path / "model.weights.h5")
    assert_same_weights(twin.layer, shared.layer)


def test_checkpoint_round_trip_holds_every_variable(shared, twin, tmp_path):
    layer = shared.layer
    path = tf.train.Checkpoint(layer=layer).save(tmp_path / "checkpoint")
    keys = [
        key
        for key, _ in tf.train.list_variables(path)
        if key.startswith("layer/")
    ]
    assert len(keys) == len(layer.variables)
    tf.train.Checkpoint(layer=twin.layer).restore(path).assert_consumed()
    assert_same_weights(twin.layer, layer)


def test_own_dtype_policy_reaches_all_children(make_layer, images):
    layer = make_layer(dtype="mixed_bfloat16")
    outputs = layer(images)
    expected = "float32" if isinstance(layer, ResNet) else "bfloat16"
    assert outputs.dtype.name == expected
    assert layer(tf.keras.Input(images.shape[1:])).dtype == expected
    for child in layer._flatten_layers(include_self=False):
        if child.name != "head":
            assert child.compute_dtype == "bfloat16", child.path
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}


def test_own_dtype_policy_wins_over_the_global_one(make_layer, images):
    tf.keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert make_layer(dtype="float32")(images).dtype == tf.float32
        layer = make_layer()
        assert layer.compute_dtype == "bfloat16"
    finally:
        tf.keras.config.set_dtype_policy("float32")


@pytest.fixture
def channels_first():
    before = tf.keras.config.image_data_format()
    tf.keras.config.set_image_data_format("channels_first")
    yield
    tf.keras.config.set_image_data_format(before)


def test_keras_own_image_format_changes_nothing(
    make_layer, shared, images, channels_first
):
    layer = make_layer()
    layer.build(images.shape)
    scramble(layer)
    np.testing.assert_array_equal(layer(images), shared.outputs)
    assert layer.compute_output_shape(images.shape) == shared.outputs.shape
    outputs = layer(tf.keras.Input(images.shape[1:]))
    assert outputs.shape[1:] == shared.outputs.shape[1:]


@pytest.mark.parametrize("name", [name for name in LAYERS if "res" in name])
def test_one_step_changes_every_trainable_weight(name, images):
    model = LAYERS[name](zero_last_gamma=False)
    model.build(images.shape)
    optimizer = tf.keras.optimizers.SGD(0.1)
    before = [np.array(v) for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = tf.reduce_sum(tf.nn.log_softmax(outputs)[:, 0])
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)
    for value, variable in zip(before, model.trainable_variables, strict=True):
        assert np.any(value != np.asarray(variable)), variable.path


@pytest.mark.parametrize(
    "make_layer", [name for name in LAYERS if "res" in name], indirect=True
)
def test_training_flag_reaches_every_batch_norm(twin, images):
    model = twin.layer
    statistics = [np.array(v) for v in model.non_trainable_variables]
    model(images, training=True)
    for value, variable in zip(
        statistics, model.non_trainable_variables, strict=True
    ):
        assert np.any(value != np.asarray(variable)), variable.path


NAN, INFINITY = float("nan"), float("inf")
NOT_WHOLE = (0, -1, 1.0, True, np.True_, "8", None, [8], NAN)
NOT_SIZES = (
    *((), 3, 0, None, "ab", b"ab", {2: 1}, [None], (1.5, 1), (2, 0)),
    *((True,), ("1",), (NAN,), ((1, 2),)),
)
NOT_STRIDES = (0, 1, 2, 3, 5, 7, 12, 31, 64, True, NAN, 8.0, "8", [8], -8)
NOT_BOOL = ("no", "False", 0, 1, None, [])
NOT_NAMES = ("x", None, 3, True, [], {})
NOT_MOMENTUM = (-1, 2, NAN, INFINITY, None, "a", True, [0.9])
NOT_EPSILON = (-1, NAN, INFINITY, None, "a", True)
NOT_RATE = (-0.1, 1, 2, NAN, None, "a", True, [0.1])
NORM = {
    "norm_momentum": NOT_MOMENTUM,
    "norm_epsilon": NOT_EPSILON,
    "synchronized": ("x", *NOT_BOOL),
}
BLOCK_OPTIONS = {
    "stride_site": ("5x5", *NOT_NAMES),
    "shortcut": NOT_NAMES,
    "squeeze_excitation": NOT_BOOL,
    "preactivation": NOT_BOOL,
    "zero_last_gamma": NOT_BOOL,
    **NORM,
}
BOTTLENECK_OPTIONS = {"groups": NOT_WHOLE, "base_width": NOT_WHOLE}
BLOCK = {
    "filters": NOT_WHOLE,
    "strides": (0, 3, 1.0, True, "1", None, [1], NAN),
    "dilation": NOT_WHOLE,
    "first_dilation": [value for value in NOT_WHOLE if value is not None],
    "drop_rate": NOT_RATE,
    **BLOCK_OPTIONS,
    "stages": (3,),
}
# Constructor -> argument -> values that it refuses.
REFUSED = {
    PaddedConv2D: {
        "filters": NOT_WHOLE,
        "kernel_size": (2, 0, (3, 2), (3, 3, 3), *NOT_WHOLE),
        "strides": (0, (1, 0), *NOT_WHOLE),
        "dilation_rate": NOT_WHOLE,
        "groups": NOT_WHOLE,
        "padding": ("valid", *NOT_NAMES),
        "data_format": ("channels_first", *NOT_NAMES),
        "use_bias": NOT_BOOL,
        "rank": (2,),
        "stages": (3,),
    },
    SqueezeExcitation: {
        "ratio": (-1, 0, 1.5, NAN, None, "a", True),
        "stages": (3,),
    },
    StochasticDepth: {
        "rate": NOT_RATE,
        "seed": ("x", 1.0, True, [1], 2**63),
        "stages": (3,),
    },
    BatchNormalization: {
        "momentum": NOT_MOMENTUM,
        "epsilon": NOT_EPSILON,
        "synchronized": NOT_BOOL,
        "stages": (3,),
    },
    Stem: {
        "filters": NOT_WHOLE,
        "kind": NOT_NAMES,
        "preactivation": NOT_BOOL,
        **NORM,
        "stages": (3,),
    },
    BasicBlock: {**BLOCK, "groups": (2,)},
    BottleneckBlock: {**BLOCK, **BOTTLENECK_OPTIONS},
    ResNet: {
        "block": ("wide", *NOT_NAMES),
        "stage_sizes": NOT_SIZES,
        "num_classes": [value for value in NOT_WHOLE if value is not None],
        "width": NOT_WHOLE,
        "stem": NOT_NAMES,
        "downsample": ("never", *NOT_NAMES),
        "output_stride": NOT_STRIDES,
        "stochastic_depth": NOT_RATE,
        "trainable": NOT_BOOL,
        **BLOCK_OPTIONS,
        **BOTTLENECK_OPTIONS,
        # Known to its blocks, but not to be set for all of them.
        "filters": (8,),
        "strides": (2,),
        "dilation": (2,),
        "first_dilation": (2,),
        "drop_rate": (0.1,),
        "stages": (3,),
    },
}
REQUIRED = {
    PaddedConv2D: {"filters": 4, "kernel_size": 3},
    StochasticDepth: {"rate": 0.5},
    BasicBlock: {"filters": 4},
    BottleneckBlock: {"filters": 4},
}


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        pytest.param(
            make, argument, value, id=f"{make.__name__}-{argument}-{value!r}"
        )
        for make, arguments in REFUSED.items()
        for argument, values in arguments.items()
        for value in {repr(value): value for value in values}.values()
    ],
)
def test_refused_arguments_are_named_as_they_were_given(make, argument, value):
    with pytest.raises(ValueError, match=re.escape(f"`{argument}`")) as error:
        make(**{**REQUIRED.get(make, {}), argument: value})
    assert str(error.value).endswith(f"Received: {argument}={value!r}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 1, "stem": "deep"},
            "`width` must be .* at least 2.*width=1$",
        ),
        (
            {"width": 1, "base_width": 4},
            "`width` .* 64.*width=1, base_width=4$",
        ),
        ({"stem": "x"}, "'imagenet', 'deep', 'small'"),
        ({"num_classes": 0}, "a whole number at least 1, or None"),
        ({"output_stride": 64}, r"\(None, 4, 8, 16, 32\)"),
        ({"output_stride": 16, "stem": "small"}, r"\(None, 1, 2, 4, 8\)"),
        ({"block": "basic", "groups": 2}, "takes no `groups`, only .*shortcut"),
        ({"filters": 2}, "takes no `filters`, only block, .*width.*groups"),
        ({"stochastic_depth": 1}, "at least 0 and below 1"),
    ],
    ids=str,
)
def test_refusals_say_what_would_have_been_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


@pytest.mark.parametrize(
    ("stem", "output_strides"),
    [("imagenet", (4, 8, 16)), ("deep", (4, 8, 16)), ("small", (1, 2, 4))],
)
def test_every_doubling_of_the_stem_is_an_output_stride(stem, output_strides):
    for output_stride in output_strides:
        model = small_resnet(
            stage_sizes=(1, 1, 1), stem=stem, output_stride=output_stride
        )
        assert model.reduction == output_stride


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (PaddedConv2D, {"filters": 4, "kernel_size": 3, "strides": 2}),
        (SqueezeExcitation, {"ratio": 0.5}),
        (StochasticDepth, {"rate": 0.5, "seed": 3}),
        (BatchNormalization, {"momentum": 0.5, "synchronized": True}),
        (Stem, {"filters": 4, "norm_epsilon": 0.5, "preactivation": True}),
        (BasicBlock, {"filters": 4, "strides": 2, "drop_rate": 0.5}),
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
                "norm_momentum": 0.5,
                "groups": 2,
                "base_width": 32,
                "squeeze_excitation": True,
            },
        ),
    ],
)
def test_numbers_of_numpy_are_kept_as_those_of_python(make, arguments, images):
    """So that configs can be written."""
    layer = make(**{name: numpy_value(v) for name, v in arguments.items()})
    expected = make(**arguments, name=layer.name)
    assert json.dumps(layer.get_config()) == json.dumps(expected.get_config())
    assert layer(images).shape == expected(images).shape


def numpy_value(value):
    return np.array(value) if isinstance(value, tuple) else np.array([value])[0]


@pytest.mark.parametrize("part", ["stem", "stage1", "stage2", "backbone"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_frozen_parts_do_not_move_by_a_bit(part, preactivation, images):
    model = small_resnet(
        preactivation=preactivation,
        zero_last_gamma=False,
        stage_sizes=(2, 2),
        stochastic_depth=0.2,
    )
    model.build(images.shape)
    frozen = [model.stem]
    if part != "stem":
        frozen += [b for b in model.blocks if b.name[:6] <= part]
    if part == "backbone":
        frozen = [layer for layer in model.layers if layer is not model.head]
    model.freeze(part)
    before = {v.path: np.array(v) for v in model.variables}
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_sum(tf.nn.log_softmax(logits)[:, 0])
    variables = model.trainable_variables
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.apply(tape.gradient(loss, variables), variables)
    kept = {v.path for layer in frozen for v in layer.variables}
    for variable in model.variables:
        same = np.array_equal(before[variable.path], np.asarray(variable))
        assert same == (variable.path in kept), variable.path


def test_frozen_batch_norm_does_not_move(images):
    model = small_resnet(zero_last_gamma=False)
    model.build(images.shape)
    model.freeze_batch_norm()
    before = {v.path: np.array(v) for v in model.variables}
    model(images, training=True)
    for variable in model.variables:
        np.testing.assert_array_equal(before[variable.path], variable)
    assert {v.name for v in model.trainable_variables} == {"kernel", "bias"}


FREEZES = {
    "none": lambda model: None,
    "stem": lambda model: model.freeze("stem"),
    "stage2": lambda model: model.freeze("stage2"),
    "backbone": lambda model: model.freeze("backbone"),
    "batch norm": ResNet.freeze_batch_norm,
    "both": lambda m: (m.freeze("stage1"), m.freeze_batch_norm()),
    "everything": lambda model: setattr(model, "trainable", False),
    "all but a layer": lambda model: (
        model.freeze("backbone"),
        setattr(model.blocks[1].conv2, "trainable", True),
    ),
    "nothing any more": lambda model: (
        model.freeze("backbone"),
        thaw(model),
    ),
}


def trainable_paths(model):
    return [variable.path for variable in model.trainable_variables]


@pytest.fixture(scope="module", params=[False, True], ids="preact={}".format)
def built_net(request, images):
    model = small_resnet(
        stage_sizes=(1, 1),
        preactivation=request.param,
        squeeze_excitation=True,
        name="net",
    )
    return share(model, images)


@pytest.fixture
def net(built_net):
    """A `Shared` net that tests may freeze and change."""
    thaw(built_net.layer)
    scramble(built_net.layer)
    return built_net


@pytest.mark.parametrize("freeze", FREEZES)
def test_what_is_frozen_comes_back_frozen(freeze, net, images, tmp_path):
    model = net.layer
    FREEZES[freeze](model)
    for saved in (model, net.model):
        saved.save(tmp_path / "model.keras")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras")
        assert trainable_paths(loaded) == trainable_paths(saved)
    other = loaded.get_layer("net")
    assert other.get_config() == model.get_config()
    # Batch norms look at their own flag.
    for layer in (model, other):
        layer(images, training=True)
    assert_same_weights(model, other)


def freeze_batch_norms(layer):
    for child in layer._flatten_layers():
        if isinstance(child, BatchNormalization):
            child.trainable = False


def freeze_below(layer):
    children = layer._flatten_layers(include_self=False, recursive=False)
    children[0].trainable = False


def freeze_all_but_the_last(layer):
    layer.trainable = False
    layer._flatten_layers(include_self=False)[-1].trainable = True


@pytest.mark.parametrize(
    "freeze", [freeze_batch_norms, freeze_below, freeze_all_but_the_last]
)
@pytest.mark.parametrize(
    "make_layer",
    [
        lambda: Stem(8, kind="deep"),
        lambda: BasicBlock(4, squeeze_excitation=True, drop_rate=0.1),
        lambda: BottleneckBlock(4, strides=2, squeeze_excitation=True),
        lambda: SqueezeExcitation(),
    ],
    ids=["stem", "basic", "bottleneck", "attention"],
)
def test_parts_of_a_layer_come_back_frozen(
    make_layer, freeze, images, tmp_path
):
    layer = make_layer()
    inputs = tf.keras.Input(images.shape[1:])
    model = tf.keras.Model(inputs, layer(inputs))
    freeze(layer)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert trainable_paths(loaded) == trainable_paths(model)
    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()


@pytest.mark.parametrize("freeze", FREEZES)
def test_config_keeps_what_is_frozen_until_the_model_is_built(
    freeze, net, images
):
    model = net.layer
    FREEZES[freeze](model)
    clone = ResNet.from_config(model.get_config())
    assert clone.get_config() == model.get_config()
    clone.build(images.shape)
    assert clone.get_config() == model.get_config()
    assert trainable_paths(clone) == trainable_paths(model)


def test_batch_norm_is_frozen_when_all_of_it_is_there():
    with pytest.raises(ValueError, match="must be built"):
        small_resnet().freeze_batch_norm()


def test_parts_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="part='stage3'"):
        small_resnet().freeze("stage3")
