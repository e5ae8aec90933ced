"""Custom subclasses: shapes, arguments and frozen layers."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import assert_same_weights, scramble

import resnet_layers
from resnet_layers import (
    BasicBlock,
    BatchNormalization,
    PaddedConv2D,
    ResidualBlock,
    ResNet,
    SqueezeExcitation,
    Stem,
    StochasticDepth,
)

register = tf.keras.utils.register_keras_serializable("tests")
TINY = {"stage_sizes": (1,), "width": 4, "num_classes": 3}


@register
class TwoDenseLayers(ResNet):
    """Has two layers of one class, with names that Keras generates."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = tf.keras.layers.Dense(3)
        self.second = tf.keras.layers.Dense(3)

    def build(self, input_shape):
        super().build(input_shape)
        self.first.build((None, 3))
        self.second.build((None, 3))

    def call(self, inputs, training=None):
        return self.second(self.first(super().call(inputs, training)))


@pytest.mark.parametrize("way", ["save", "clone", "config"])
def test_layers_with_generated_names_stay_frozen(way, images, tmp_path):
    tf.keras.utils.clear_session()
    # The generated names then differ from those of a new session.
    tf.keras.layers.Dense(3)
    resnet = TwoDenseLayers(**TINY, stem="small")
    resnet(images)
    resnet.second.trainable = False
    resnet.stem.trainable = False
    tf.keras.utils.clear_session()
    if way == "save":
        resnet.save(tmp_path / "model.keras")
        other = tf.keras.models.load_model(tmp_path / "model.keras")
    elif way == "clone":
        other = tf.keras.models.clone_model(resnet)
    else:
        other = TwoDenseLayers.from_config(resnet.get_config())
    assert other.first.trainable
    assert not other.second.trainable
    assert not other.stem.trainable
    assert other.head.trainable


def test_configs_of_version_0_1_0_freeze_layers():
    # These have names instead of positions.
    config = ResNet(**TINY).get_config()
    config["trainable_layers"] = {"stem/conv1": False, "head": False}
    resnet = ResNet.from_config(config)
    assert not resnet.stem.convs[0].trainable
    assert not resnet.head.trainable
    assert resnet.stem.bns[0].trainable


class DoubledChannels(BasicBlock):
    def call(self, inputs, training=None):
        return tf.repeat(super().call(inputs, training=training), 2, -1)


class HalvedLogits(ResNet):
    def call(self, inputs, training=None):
        return super().call(inputs, training)[:, ::2]


class WideEmbedding(ResNet):
    def embed(self, inputs, training=None):
        x = super().embed(inputs, training)
        return tf.keras.ops.concatenate([x, x], -1)


class PooledStem(Stem):
    def call(self, inputs, training=None):
        return tf.reduce_max(super().call(inputs, training), [1, 2])


class FlatAttention(SqueezeExcitation):
    def call(self, inputs):
        return tf.reduce_mean(super().call(inputs), [1, 2])


class InheritedCall(PooledStem):
    """Inherits an overridden `call`."""


class OwnShape(BasicBlock):
    def call(self, inputs, training=None):
        return super().call(inputs, training)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: DoubledChannels(4),
        lambda: HalvedLogits(**TINY),
        lambda: WideEmbedding(**{**TINY, "num_classes": None}),
        lambda: PooledStem(4),
        lambda: InheritedCall(4),
        lambda: FlatAttention(),
        lambda: OwnShape(4),
    ],
)
@pytest.mark.parametrize("built", [True, False])
def test_symbolic_shape_matches_the_call(make, built, images):
    layer = make()
    if built:
        layer.build(images.shape)
    inputs = tf.keras.Input(images.shape[1:])
    shape = layer.compute_output_shape(images.shape)
    symbolic = layer(inputs)
    outputs = layer(images)
    assert shape == outputs.shape
    assert symbolic.shape == (None, *outputs.shape[1:])
    assert symbolic.dtype == outputs.dtype.name
    model = tf.keras.Model(inputs, symbolic)
    assert model(images).shape == outputs.shape


def scaled(parent, **defaults):
    """Returns a subclass with a new argument and no `get_config`."""

    class Scaled(parent):
        def __init__(self, *args, scale=1.0, extra=(1, 2), **kwargs):
            super().__init__(*args, **{**defaults, **kwargs})
            self.scale = scale
            self.extra = extra

        def call(self, inputs, *args, **kwargs):
            return super().call(inputs, *args, **kwargs) * self.scale

    name = f"Scaled{parent.__name__}"
    return tf.keras.utils.register_keras_serializable("tests", name)(Scaled)


SCALED = {
    parent.__name__: (scaled(parent, **arguments))
    for parent, arguments in (
        (ResNet, TINY),
        (BasicBlock, {"filters": 4, "stochastic_depth": 0.5}),
        (Stem, {"filters": 4}),
        (SqueezeExcitation, {}),
        (StochasticDepth, {"stochastic_depth": 0.5}),
        (BatchNormalization, {}),
        (PaddedConv2D, {"filters": 2, "kernel_size": 3}),
    )
}


@pytest.mark.parametrize("name", SCALED)
def test_argument_of_a_subclass_round_trips(name, images, tmp_path):
    layer = SCALED[name](scale=3.0, extra=[4])
    inputs = tf.keras.Input(images.shape[1:])
    model = tf.keras.Model(inputs, layer(inputs))
    scramble(layer)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].scale == 3.0
    assert loaded.layers[1].extra == [4]
    assert_same_weights(loaded, model)
    np.testing.assert_array_equal(loaded(images), model(images))


@register
class OtherDefaults(ResNet):
    """Passes on arguments that have no attribute of the same name."""

    def __init__(self, stem="small", groups=2, depth=1, **kwargs):
        kwargs = {**TINY, **kwargs, "stage_sizes": (depth,)}
        super().__init__(stem=stem, groups=groups, **kwargs)
        self.depth = depth


@register
class OwnConfig(ResNet):
    """Has a `get_config` for its argument."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = scale

    def get_config(self):
        return {**super().get_config(), "scale": self.factor}


def test_arguments_passed_to_the_parent_round_trip():
    config = OtherDefaults(stem="deep", groups=4, depth=2).get_config()
    resnet = OtherDefaults.from_config(config)
    assert resnet.stem.kind == "deep"
    assert resnet.blocks[0].groups == 4
    assert resnet.depth == 2
    assert resnet.get_config() == config
    config = OwnConfig(scale=5.0, **TINY).get_config()
    assert OwnConfig.from_config(config).factor == 5.0


@register
class OneConvolution(ResidualBlock):
    """The documented way to write a block, with TensorFlow operations."""

    expansion = 2

    def __init__(self, filters, strides=1, scale=1.0, **kwargs):
        super().__init__(filters, strides, **kwargs)
        self.scale = scale
        self.conv1 = self.output_conv(
            5, strides=self.conv_strides, name="conv1"
        )
        self.bn1 = self.last_norm("bn1")

    def residual(self, x, training=None):
        x = self.bn1(self.pool(self.conv1(x)), training=training)
        return tf.math.tanh(x) * self.scale


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"preactivation": True}, {"antialias": "blur"}]
)
def test_resnet_with_custom_blocks_works(options, images, tmp_path):
    resnet = ResNet(
        OneConvolution,
        (1, 2),
        num_classes=3,
        width=8,
        scale=2.0,
        attention="eca",
        **options,
    )
    assert resnet.blocks[0].scale == 2.0
    assert resnet.features(images)["P3"].shape == (4, 4, 4, 32)
    resnet(images, training=True)
    if not options.get("preactivation"):
        assert np.any(np.asarray(resnet.blocks[1].bn1.moving_mean))
    scramble(resnet)
    resnet.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), resnet(images))
    with pytest.raises(
        ValueError, match="^groups=2: unknown argument of ResNet"
    ):
        ResNet(OneConvolution, groups=2)


def test_custom_blocks_of_version_0_1_0_still_work(images):
    class Earlier(ResidualBlock):
        def __init__(self, filters, strides=1, **kwargs):
            super().__init__(filters, strides, **kwargs)
            self.conv1 = self.last_conv(3, strides=self.strides, name="conv1")
            self.bn1 = self.last_norm("bn1")

        def residual(self, x, training=None):
            return self.bn1(self.conv1(x), **resnet_layers.in_phase(training))

    resnet = ResNet(Earlier, (1, 1), num_classes=3, width=8)
    resnet(images, training=True)
    assert np.any(np.asarray(resnet.blocks[1].bn1.moving_mean))
    with pytest.raises(AttributeError, match="no attribute 'in_phases'"):
        resnet_layers.in_phases  # noqa: B018


@register
class OtherFirstParameter(BasicBlock):
    """Has another first parameter than `self`."""

    def __init__(s, filters, alpha=1.0, **kwargs):  # noqa: N805
        super().__init__(filters, **kwargs)
        s.alpha = alpha


def test_first_constructor_parameter_can_have_any_name(tmp_path, images):
    block = OtherFirstParameter(4, alpha=0.5)
    assert block.get_config()["alpha"] == 0.5
    inputs = tf.keras.Input(images.shape[1:])
    model = tf.keras.Model(inputs, block(inputs))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].alpha == 0.5
    assert ResNet(OtherFirstParameter, **TINY, alpha=2.0).blocks[0].alpha == 2.0


class Unsaved(BasicBlock):
    def __init__(self, filters, scale=1.0, **kwargs):
        super().__init__(filters, **kwargs)
        self.factor = scale


class Replacing(BasicBlock):
    def __init__(self, filters, scale=1.0, **kwargs):
        super().__init__(filters, **kwargs)
        self.scale = tf.keras.layers.Rescaling(scale)


@pytest.mark.parametrize("make", [Unsaved, Replacing])
def test_argument_that_cannot_be_saved_is_reported(make, tmp_path):
    layer = make(4, scale=2.0)
    layer.build((None, 8, 8, 4))
    with pytest.raises(
        ValueError, match="scale: cannot be saved.*get_config"
    ) as error:
        layer.get_config()
    [line] = str(error.value).splitlines()
    assert make.__name__ in line
    with pytest.raises(ValueError, match="scale: cannot be saved"):
        layer.save(tmp_path / "model.keras")
