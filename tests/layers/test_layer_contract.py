"""Contract of every public layer: saving, dtypes, training."""

import functools
import inspect

import numpy as np
import pytest
import tensorflow as tf
from small_models import (
    assert_same_weights,
    gradients_of_a_class,
    has_no_effect,
    scramble,
    share,
    small_resnet,
    small_variant,
    unfreeze,
)

from resnet_layers import (
    BasicBlock,
    BatchNormalization,
    BlurPool2D,
    BottleneckBlock,
    EfficientChannelAttention,
    PaddedConv2D,
    PaddedMaxPooling2D,
    ResNet,
    SqueezeExcitation,
    StandardizedConv2D,
    Stem,
    StochasticDepth,
)
from resnet_layers.base import ImageLayer

# Name -> constructor, with arguments other than the defaults.
LAYERS = {
    "attention": lambda **kw: SqueezeExcitation(1 / 2, **kw),
    "efficient_attention": EfficientChannelAttention,
    "drop": lambda **kw: StochasticDepth(0.3, **kw),
    "blur": BlurPool2D,
    "max": lambda **kw: PaddedMaxPooling2D(1, "zeros", **kw),
    "batch_norm": lambda **kw: BatchNormalization(momentum=0.8, **kw),
    "conv": lambda **kw: PaddedConv2D(6, 5, strides=2, **kw),
    "standardized": lambda **kw: StandardizedConv2D(6, 3, **kw),
    "stem": lambda **kw: Stem(
        8, kind="small", norm={"kind": "batch", "epsilon": 1e-3}, **kw
    ),
    "basic": lambda **kw: BasicBlock(
        4, strides=2, norm={"kind": "batch", "momentum": 0.8}, **kw
    ),
    "bottleneck": lambda **kw: BottleneckBlock(
        4, strides=2, stride_site="1x1", zero_last_gamma=False, **kw
    ),
    "resnet": lambda **kw: small_resnet(stem="small", stride_site="1x1", **kw),
    "resnet_dilated_headless": lambda **kw: small_resnet(
        output_stride=4, num_classes=None, **kw
    ),
    "resnext_with_attention": lambda **kw: small_variant(
        "resnext50d_32x4d", attention="se", **kw
    ),
    "resnet20": lambda **kw: small_variant(
        "resnet20", stochastic_depth=0.2, **kw
    ),
    # Features that only variants have.
    "resnet50_v2": functools.partial(small_variant, "resnet50_v2"),
    "resnet_bit": functools.partial(
        small_variant,
        "resnetv2_50x1_bit",
        norm={"kind": "group", "groups": 4},
        activation="silu",
    ),
    "resnet_blur": functools.partial(
        small_variant,
        "resnetrs50",
        block="basic",
        antialias="blur",
        attention="eca",
    ),
}
MODELS = [name for name in LAYERS if name.startswith("res")]


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
    """As `shared`, but with other weights, which tests may change."""
    unfreeze(built_twin.layer)
    scramble(built_twin.layer, seed=6)
    return built_twin


@pytest.mark.slow
def test_symbolic_and_eager_shapes_agree(shared, images):
    layer, _, symbolic, outputs = shared
    assert symbolic.shape[1:] == outputs.shape[1:]
    assert layer.compute_output_shape(images.shape) == outputs.shape
    assert symbolic.dtype == outputs.dtype.name


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (BasicBlock, {"strides": (2, 1), "attention": "eca"}),
        (BottleneckBlock, {"stride_site": "1x1", "groups": 4, "base_width": 8}),
        (Stem, {"kind": "deep", "pool": "convolution", "activation": "silu"}),
        (
            ResNet,
            {
                "stage_sizes": (1, 2),
                "num_classes": 3,
                "width": (16, 24),
                "stem": {"kind": "tiered", "filters": 8},
                "norm": {"kind": "batch", "momentum": 0.5},
                "attention": {"kind": "se", "ratio": 0.5},
                "antialias": "blur",
            },
        ),
    ],
)
def test_config_holds_every_argument(layer, arguments):
    # Each with another value than its default, if possible.
    parameters = [
        parameter
        for parent in layer.__mro__[: layer.__mro__.index(ImageLayer)]
        for parameter in inspect.signature(parent.__init__).parameters.values()
    ]
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


@pytest.mark.slow
def test_config_round_trip(make_layer, shared, images):
    layer = make_layer(name="mine")
    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    clone(images)
    scramble(clone)
    np.testing.assert_array_equal(clone(images), shared.outputs)


BUILT_BY = ["build", "call", "symbolic call"]


@pytest.mark.slow
def test_second_build_changes_nothing(make_layer, images):
    layer = make_layer()
    # In turn: each way for models, blocks and other layers.
    number = [*LAYERS.values()].index(make_layer)
    built_by = BUILT_BY[number % len(BUILT_BY)]
    if isinstance(layer, tf.keras.layers.Conv2D | BatchNormalization):
        pytest.skip("Keras raises in a second build")
    if built_by == "build":
        layer.build(images.shape)
    elif built_by == "call":
        layer(images)
    else:
        layer(tf.keras.Input(images.shape[1:]))
    before = layer.variables
    values = [np.array(variable) for variable in before]
    layer.build((None, *images.shape[1:]))
    assert [id(v) for v in layer.variables] == [id(v) for v in before]
    for variable, value in zip(before, values, strict=True):
        np.testing.assert_array_equal(variable, value)


# The test below covers all others, frozen.
@pytest.mark.parametrize(
    "make_layer", ["conv", "basic", "resnet20"], indirect=True
)
def test_keras_file_round_trip(shared, images, tmp_path):
    shared.model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), shared.outputs)
    assert type(loaded.layers[1]) is type(shared.layer)
    assert_same_weights(loaded, shared.layer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_layer", [n for n in LAYERS if n != "conv"], indirect=True
)
def test_saved_layer_stays_frozen(twin, images, tmp_path):
    twin.layer.trainable = False
    twin.model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), twin.layer(images))
    assert type(loaded.layers[1]) is type(twin.layer)
    assert_same_weights(loaded, twin.layer)
    before = [np.array(v) for v in loaded.variables]
    loaded(images, training=True)
    assert not loaded.trainable_variables
    after = [np.array(v) for v in loaded.variables]
    for value, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.slow
def test_weights_file_round_trip(shared, twin, tmp_path):
    shared.model.save_weights(tmp_path / "model.weights.h5")
    twin.model.load_weights(tmp_path / "model.weights.h5")
    assert_same_weights(twin.layer, shared.layer)


@pytest.mark.slow
def test_checkpoint_round_trip_holds_every_variable(shared, twin, tmp_path):
    layer = shared.layer
    path = tf.train.Checkpoint(layer=layer).save(tmp_path / "checkpoint")
    keys = [
        key
        for key, _ in tf.train.list_variables(path)
        if key.startswith("layer/")
    ]
    assert len(keys) == len(layer.variables)
    for variable in twin.layer.variables:
        variable.assign(variable + 1)
    tf.train.Checkpoint(layer=twin.layer).restore(path).assert_consumed()
    for mine, theirs in zip(layer.variables, twin.layer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


@pytest.mark.slow
def test_dtype_policy_reaches_all_sublayers(make_layer, images):
    layer = make_layer(dtype="mixed_bfloat16")
    outputs = layer(images)
    expected = "float32" if isinstance(layer, ResNet) else "bfloat16"
    assert outputs.dtype.name == expected
    assert layer(tf.keras.Input(images.shape[1:])).dtype == expected
    for child in layer._flatten_layers(include_self=False):
        if child.name != "head":
            assert child.compute_dtype == "bfloat16", child.path
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}


@pytest.mark.slow
def test_dtype_policy_wins_over_the_global_one(make_layer, images):
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


@pytest.mark.slow
def test_keras_image_data_format_is_ignored(
    make_layer, shared, images, channels_first
):
    layer = make_layer()
    layer.build(images.shape)
    scramble(layer)
    np.testing.assert_array_equal(layer(images), shared.outputs)
    assert layer.compute_output_shape(images.shape) == shared.outputs.shape
    outputs = layer(tf.keras.Input(images.shape[1:]))
    assert outputs.shape[1:] == shared.outputs.shape[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_step_changes_every_weight_that_has_an_effect(name, images):
    model = LAYERS[name](zero_last_gamma=False)
    model.build(images.shape)
    optimizer = tf.keras.optimizers.SGD(0.1)
    before = [np.array(v) for v in model.trainable_variables]
    gradients, variables = gradients_of_a_class(model, images)
    optimizer.apply(gradients, variables)
    sizes = [float(tf.reduce_max(tf.abs(g))) for g in gradients]
    for value, variable, size in zip(before, variables, sizes, strict=True):
        if has_no_effect(model, variable):
            assert size < 1e-6 * max(sizes), variable.path
        else:
            # More than rounding, which depends on the processor.
            assert size > 1e-7 * max(sizes), variable.path
            assert np.any(value != np.asarray(variable)), variable.path


@pytest.mark.parametrize("make_layer", MODELS, indirect=True)
def test_training_flag_reaches_every_batch_norm(twin, images):
    model = twin.layer
    statistics = [np.array(v) for v in model.non_trainable_variables]
    model(images, training=True)
    for value, variable in zip(
        statistics, model.non_trainable_variables, strict=True
    ):
        assert np.any(value != np.asarray(variable)), variable.path
