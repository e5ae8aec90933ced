"""Nets and layers inside third-party models: training mode, names, images."""

import numpy as np
import pytest
import tensorflow as tf
from layer_nets import scramble, small_resnet

from resnet_layers import (
    BasicBlock,
    BatchNormalization,
    BottleneckBlock,
    ResNet,
    Stem,
    StochasticDepth,
)


class Outer(tf.keras.Model):
    """A user's model that does not pass `training` on."""

    def __init__(self, inner, use):
        super().__init__()
        self.inner = inner
        self.use = use

    def call(self, inputs, training=None):
        # Keras's `fit` says it only to those that ask.
        del training
        return self.use(self.inner, inputs)


def call(layer, inputs, **mode):
    return layer(inputs, **mode)


def embed(layer, inputs, **mode):
    return layer.embed(inputs, **mode)


def features(layer, inputs, **mode):
    return layer.features(inputs, **mode)["P3"]


def tiny(**options):
    options = {"stage_sizes": (1, 1), "stem": "small", "width": 4, **options}
    return ResNet(**{"num_classes": 3, "stochastic_depth": 0.5, **options})


class ModelessStem(Stem):
    def call(self, inputs):
        return super().call(inputs)


class ModelessBlock(BottleneckBlock):
    def call(self, inputs):
        return super().call(inputs)


class ModelessNet(ResNet):
    def call(self, inputs):
        return super().call(inputs)


# A layer, and what an outer model does with it. None passes `training`.
USES = {
    "call": (tiny, call),
    "embed": (tiny, embed),
    "features": (tiny, features),
    "features of preactivation": (lambda: tiny(preactivation=True), features),
    "a stem's subclass": (lambda: ModelessStem(4, kind="deep"), call),
    "a block's subclass": (
        lambda: ModelessBlock(4, strides=2, stochastic_depth=0.5),
        call,
    ),
    "a preactivation block's subclass": (
        lambda: ModelessBlock(4, preactivation=True, stochastic_depth=0.5),
        call,
    ),
    "a net's subclass": (
        lambda: ModelessNet(
            stage_sizes=(1,), width=4, num_classes=3, attention="se"
        ),
        call,
    ),
}


def find_moved(layer):
    """Returns {path: whether it has moved} of all that moves in training."""
    moved = {}
    for part in layer._flatten_layers():
        if isinstance(part, BatchNormalization):
            moved[part.path] = bool(np.any(part.moving_mean))
        if isinstance(part, StochasticDepth):
            moved[part.path] = bool(part.seed_generator.state.numpy()[1])
    assert moved
    return moved


@pytest.fixture(params=USES)
def used(request, images):
    """Returns (built layer, what an outer model does with it)."""
    make, use = USES[request.param]
    layer = make()
    layer.build(images.shape)
    return layer, use


@pytest.mark.slow
def test_training_of_an_outer_model_reaches_every_layer(used, images):
    layer, use = used
    outer = Outer(Outer(layer, use), call)
    outer(images, training=False)
    outer(images)
    assert not any(find_moved(layer).values())
    outer(images, training=True)
    assert all(find_moved(layer).values()), find_moved(layer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "built"), [(call, False), (embed, True), (features, False)]
)
def test_fit_of_an_outer_model_trains_the_net_in_it(use, built, images):
    net = tiny(num_classes=None)
    if built:
        net.build(images.shape)
    outer = Outer(Outer(net, use), call)
    outer.compile("sgd", lambda y, outputs: tf.reduce_mean(outputs) + 0 * y)
    outer.fit(images, np.zeros(4, "f4"), batch_size=4, verbose=0)
    assert all(find_moved(net).values()), find_moved(net)
    before = [np.array(v) for v in net.variables]
    outer.predict(images, verbose=0)
    for variable, value in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize("use", [call, embed, features])
@pytest.mark.parametrize("training", [True, False])
def test_an_explicit_mode_wins(use, training, images):
    net = tiny()
    net.build(images.shape)
    outer = Outer(net, lambda n, inputs: use(n, inputs, training=training))
    outer(images, training=not training)
    assert set(find_moved(net).values()) == {training}


@pytest.mark.parametrize("use", [call, embed, features])
def test_functional_models_pass_their_mode_on(use, images):
    net = tiny()
    inputs = tf.keras.Input(images.shape[1:])
    outer = tf.keras.Model(inputs, use(net, inputs))
    outer(images)
    assert not any(find_moved(net).values())
    outer(images, training=True)
    assert all(find_moved(net).values()), find_moved(net)


@pytest.mark.slow
def test_two_backbones_fit_into_one_model(images, tmp_path):
    inputs = tf.keras.Input(images.shape[1:])
    nets = [small_resnet(name=name) for name in ("left", "right")]
    model = tf.keras.Model(inputs, [net.features(inputs)["P3"] for net in nets])
    for seed, net in enumerate(nets):
        scramble(net, seed)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs, net in zip(
        model(images), loaded(images), nets, strict=True
    ):
        np.testing.assert_array_equal(ours, net.features(images)["P3"])
        np.testing.assert_array_equal(theirs, ours)


def test_names_of_a_backbones_variables_are_those_of_the_net(images):
    net, other = (small_resnet(name="net") for _ in range(2))
    net.features(tf.keras.Input(images.shape[1:]))
    other(images)
    assert [v.path for v in net.variables] == [v.path for v in other.variables]


ENTRIES = {
    "resnet": small_resnet,
    "preactivation": lambda: small_resnet(preactivation=True),
    "stem": lambda: Stem(8),
    "basic": lambda: BasicBlock(3),
    "bottleneck": lambda: BottleneckBlock(4, preactivation=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_images_of_integers_are_accepted(entry, dtype):
    layer = ENTRIES[entry]()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    pictures = pictures.astype(dtype)
    outputs = layer(pictures)
    np.testing.assert_array_equal(layer(pictures.astype("f4")), outputs)
    inputs = tf.keras.Input([16, 16, 3], dtype=dtype)
    assert layer(inputs).dtype == outputs.dtype.name == "float32"
    assert len(tf.keras.Model(inputs, layer(inputs)).layers) == 2
    np.testing.assert_array_equal(
        layer.predict(pictures, verbose=0).shape, outputs.shape
    )


@pytest.mark.slow
def test_fit_accepts_images_of_integers():
    model = tiny(stage_sizes=(1,), dtype="mixed_bfloat16")
    model.compile("sgd", "mse")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")
    model.fit(pictures, np.zeros([2, 3]), verbose=0)
    assert model.features(pictures)["P2"].dtype == tf.bfloat16
