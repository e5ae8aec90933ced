"""Models and layers inside other models: training mode, names, images."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import scramble, small_resnet

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
        # `fit` passes it only to a `call` that accepts it.
        del training
        return self.use(self.inner, inputs)


def call(layer, inputs, **mode):
    return layer(inputs, **mode)


def embed(layer, inputs, **mode):
    return layer.embed(inputs, **mode)


def features(layer, inputs, **mode):
    return [*layer.features(inputs, **mode).values()][-1]


def tiny(**options):
    options = {"stage_sizes": (1, 1), "stem": "small", "width": 4, **options}
    return ResNet(**{"num_classes": 3, "stochastic_depth": 0.5, **options})


class StemWithoutTraining(Stem):
    def call(self, inputs):
        return super().call(inputs)


class BlockWithoutTraining(BottleneckBlock):
    def call(self, inputs):
        return super().call(inputs)


class ResNetWithoutTraining(ResNet):
    def call(self, inputs):
        return super().call(inputs)


# A layer, and how an outer model calls it. None passes `training`.
USES = {
    "call": (tiny, call),
    "embed": (tiny, embed),
    "features": (tiny, features),
    "features of preactivation": (lambda: tiny(preactivation=True), features),
    "subclass of a stem": (lambda: StemWithoutTraining(4, kind="deep"), call),
    "subclass of a block": (
        lambda: BlockWithoutTraining(4, strides=2, stochastic_depth=0.5),
        call,
    ),
    "subclass of a preactivation block": (
        lambda: BlockWithoutTraining(
            4, preactivation=True, stochastic_depth=0.5
        ),
        call,
    ),
    "subclass of a resnet": (
        lambda: ResNetWithoutTraining(
            stage_sizes=(1,), width=4, num_classes=3, attention="se"
        ),
        call,
    ),
}


def find_updated(layer):
    """Returns {path: whether training has updated it}."""
    updated = {}
    for part in layer._flatten_layers():
        if isinstance(part, BatchNormalization):
            updated[part.path] = bool(np.any(part.moving_mean))
        if isinstance(part, StochasticDepth):
            updated[part.path] = bool(part.seed_generator.state.numpy()[1])
    assert updated
    return updated


@pytest.fixture(params=USES)
def layer_and_use(request, images):
    """Returns (built layer, how an outer model calls it)."""
    make, use = USES[request.param]
    layer = make()
    layer.build(images.shape)
    return layer, use


@pytest.mark.slow
def test_training_mode_of_outer_model_reaches_every_layer(
    layer_and_use, images
):
    layer, use = layer_and_use
    outer = Outer(Outer(layer, use), call)
    outer(images, training=False)
    outer(images)
    assert not any(find_updated(layer).values())
    outer(images, training=True)
    assert all(find_updated(layer).values()), find_updated(layer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "built"), [(call, False), (embed, True), (features, False)]
)
def test_fit_of_outer_model_trains_the_resnet_inside(use, built, images):
    resnet = tiny(num_classes=None, stage_sizes=(2,))
    if built:
        resnet.build(images.shape)
    outer = Outer(Outer(resnet, use), call)
    outer.compile("sgd", lambda y, outputs: tf.reduce_mean(outputs) + 0 * y)
    outer.fit(images, np.zeros(4, "f4"), batch_size=4, verbose=0)
    assert all(find_updated(resnet).values()), find_updated(resnet)
    before = [np.array(v) for v in resnet.variables]
    outer.predict(images, verbose=0)
    for variable, value in zip(resnet.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize("use", [call, embed, features])
@pytest.mark.parametrize("training", [True, False])
def test_explicit_training_mode_wins(use, training, images):
    resnet = tiny()
    resnet.build(images.shape)
    outer = Outer(resnet, lambda n, inputs: use(n, inputs, training=training))
    outer(images, training=not training)
    assert set(find_updated(resnet).values()) == {training}


@pytest.mark.parametrize("use", [call, embed, features])
def test_functional_models_pass_on_the_training_mode(use, images):
    resnet = tiny()
    inputs = tf.keras.Input(images.shape[1:])
    outer = tf.keras.Model(inputs, use(resnet, inputs))
    outer(images)
    assert not any(find_updated(resnet).values())
    outer(images, training=True)
    assert all(find_updated(resnet).values()), find_updated(resnet)


@pytest.mark.slow
def test_two_backbones_fit_into_one_model(images, tmp_path):
    inputs = tf.keras.Input(images.shape[1:])
    resnets = [
        small_resnet(name=name, stage_sizes=(1, 1))
        for name in ("left", "right")
    ]
    model = tf.keras.Model(
        inputs, [resnet.features(inputs)["P3"] for resnet in resnets]
    )
    for seed, resnet in enumerate(resnets):
        scramble(resnet, seed)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs, resnet in zip(
        model(images), loaded(images), resnets, strict=True
    ):
        np.testing.assert_array_equal(ours, resnet.features(images)["P3"])
        np.testing.assert_array_equal(theirs, ours)


def test_backbone_keeps_its_variable_names(images):
    resnet, other = (small_resnet(name="net") for _ in range(2))
    resnet.features(tf.keras.Input(images.shape[1:]))
    other(images)
    assert [v.path for v in resnet.variables] == [
        v.path for v in other.variables
    ]


ENTRIES = {
    "resnet": small_resnet,
    "preactivation": lambda: small_resnet(preactivation=True),
    "stem": lambda: Stem(8),
    "basic": lambda: BasicBlock(3),
    "bottleneck": lambda: BottleneckBlock(4, preactivation=True),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "dtype"),
    [*((entry, "uint8") for entry in ENTRIES), ("resnet", "int32")],
)
def test_integer_images_are_accepted(entry, dtype):
    layer = ENTRIES[entry]()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    images = images.astype(dtype)
    outputs = layer(images)
    np.testing.assert_array_equal(layer(images.astype("f4")), outputs)
    inputs = tf.keras.Input([16, 16, 3], dtype=dtype)
    assert layer(inputs).dtype == outputs.dtype.name == "float32"
    assert len(tf.keras.Model(inputs, layer(inputs)).layers) == 2
    np.testing.assert_array_equal(
        layer.predict(images, verbose=0).shape, outputs.shape
    )


@pytest.mark.slow
def test_fit_accepts_integer_images():
    model = tiny(stage_sizes=(1,), dtype="mixed_bfloat16")
    model.compile("sgd", "mse")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")
    model.fit(images, np.zeros([2, 3]), verbose=0)
    assert model.features(images)["P2"].dtype == tf.bfloat16
