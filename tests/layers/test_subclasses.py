"""Subclasses that users write: their shapes, arguments and frozen layers."""

import numpy as np
import pytest
import tensorflow as tf
from layer_nets import assert_same_weights, scramble

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
class WithTwoMore(ResNet):
    """Two layers of one class, whose names Keras makes up."""

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
def test_layers_without_names_come_back_frozen(way, images, tmp_path):
    tf.keras.utils.clear_session()
    # Names are then others than in a new session.
    tf.keras.layers.Dense(3)
    net = WithTwoMore(**TINY, stem="small")
    net(images)
    net.second.trainable = False
    net.stem.trainable = False
    tf.keras.utils.clear_session()
    if way == "save":
        net.save(tmp_path / "model.keras")
        other = tf.keras.models.load_model(tmp_path / "model.keras")
    elif way == "clone":
        other = tf.keras.models.clone_model(net)
    else:
        other = WithTwoMore.from_config(net.get_config())
    assert other.first.trainable
    assert not other.second.trainable
    assert not other.stem.trainable
    assert other.head.trainable


def test_configs_that_name_frozen_layers_still_freeze_them():
    """Files of version 0.1.0 do."""
    config = ResNet(**TINY).get_config()
    config["trainable_layers"] = {"stem/conv1": False, "head": False}
    net = ResNet.from_config(config)
    assert not net.stem.convs[0].trainable
    assert not net.head.trainable
    assert net.stem.bns[0].trainable


class TwiceAsManyChannels(BasicBlock):
    def call(self, inputs, training=None):
        return tf.repeat(super().call(inputs, training=training), 2, -1)


class HalfOfTheLogits(ResNet):
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


class PooledOnDemand(PooledStem):
    """Inherits a call of a user's own."""


class Vouching(BasicBlock):
    def call(self, inputs, training=None):
        return super().call(inputs, training)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: TwiceAsManyChannels(4),
        lambda: HalfOfTheLogits(**TINY),
        lambda: WideEmbedding(**{**TINY, "num_classes": None}),
        lambda: PooledStem(4),
        lambda: PooledOnDemand(4),
        lambda: FlatAttention(),
        lambda: Vouching(4),
    ],
)
@pytest.mark.parametrize("built", [True, False])
def test_symbolic_shape_is_that_of_the_call(make, built, images):
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
    """Returns a subclass with an argument of its own and no `get_config`."""

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
def test_an_argument_of_its_own_comes_back(name, images, tmp_path):
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
    """Passes on what is not kept under its own name."""

    def __init__(self, stem="small", groups=2, depth=1, **kwargs):
        kwargs = {**TINY, **kwargs, "stage_sizes": (depth,)}
        super().__init__(stem=stem, groups=groups, **kwargs)
        self.depth = depth


@register
class Described(ResNet):
    """Says itself what becomes of its argument."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = scale

    def get_config(self):
        return {**super().get_config(), "scale": self.factor}


def test_arguments_that_are_passed_on_come_back():
    config = OtherDefaults(stem="deep", groups=4, depth=2).get_config()
    net = OtherDefaults.from_config(config)
    assert net.stem.kind == "deep"
    assert net.blocks[0].groups == 4
    assert net.depth == 2
    assert net.get_config() == config
    config = Described(scale=5.0, **TINY).get_config()
    assert Described.from_config(config).factor == 5.0


@register
class OneConvolution(ResidualBlock):
    """As its documentation says how to write one; with TensorFlow's ops."""

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
def test_nets_are_made_of_blocks_of_ones_own(options, images, tmp_path):
    net = ResNet(
        OneConvolution,
        (1, 2),
        num_classes=3,
        width=8,
        scale=2.0,
        attention="eca",
        **options,
    )
    assert net.blocks[0].scale == 2.0
    assert net.features(images)["P3"].shape == (4, 4, 4, 32)
    net(images, training=True)
    if not options.get("preactivation"):
        assert np.any(np.asarray(net.blocks[1].bn1.moving_mean))
    scramble(net)
    net.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), net(images))
    with pytest.raises(ValueError, match="^`groups` is not taken by ResNet"):
        ResNet(OneConvolution, groups=2)


def test_custom_blocks_of_version_0_1_0_still_work(images):
    class Earlier(ResidualBlock):
        def __init__(self, filters, strides=1, **kwargs):
            super().__init__(filters, strides, **kwargs)
            self.conv1 = self.last_conv(3, strides=self.strides, name="conv1")
            self.bn1 = self.last_norm("bn1")

        def residual(self, x, training=None):
            return self.bn1(self.conv1(x), **resnet_layers.in_phase(training))

    net = ResNet(Earlier, (1, 1), num_classes=3, width=8)
    net(images, training=True)
    assert np.any(np.asarray(net.blocks[1].bn1.moving_mean))
    with pytest.raises(AttributeError, match="no attribute 'in_phases'"):
        resnet_layers.in_phases  # noqa: B018


@register
class Unselfish(BasicBlock):
    """Calls its first parameter as nobody else does."""

    def __init__(s, filters, alpha=1.0, **kwargs):  # noqa: N805
        super().__init__(filters, **kwargs)
        s.alpha = alpha


def test_first_parameter_of_a_constructor_may_have_any_name(tmp_path, images):
    block = Unselfish(4, alpha=0.5)
    assert block.get_config()["alpha"] == 0.5
    inputs = tf.keras.Input(images.shape[1:])
    model = tf.keras.Model(inputs, block(inputs))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].alpha == 0.5
    assert ResNet(Unselfish, **TINY, alpha=2.0).blocks[0].alpha == 2.0


class Forgetful(BasicBlock):
    def __init__(self, filters, scale=1.0, **kwargs):
        super().__init__(filters, **kwargs)
        self.factor = scale


class Replacing(BasicBlock):
    def __init__(self, filters, scale=1.0, **kwargs):
        super().__init__(filters, **kwargs)
        self.scale = tf.keras.layers.Rescaling(scale)


@pytest.mark.parametrize("make", [Forgetful, Replacing])
def test_an_argument_that_cannot_come_back_is_named(make, tmp_path):
    layer = make(4, scale=2.0)
    layer.build((None, 8, 8, 4))
    with pytest.raises(ValueError, match="`scale`.*get_config") as error:
        layer.get_config()
    [line] = str(error.value).splitlines()
    assert make.__name__ in line
    with pytest.raises(ValueError, match="`scale`"):
        layer.save(tmp_path / "model.keras")
