"""Frozen parts: unchanged in training, and frozen again after loading."""

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
    unfreeze,
)

from resnet_layers import (
    BasicBlock,
    BatchNormalization,
    BottleneckBlock,
    ResNet,
    SqueezeExcitation,
    Stem,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "preactivation"),
    [
        ("stem", False),
        ("stage1", True),
        ("stage2", False),
        ("backbone", False),
        ("backbone", True),
    ],
)
def test_frozen_parts_are_bitwise_unchanged(part, preactivation, images):
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
    optimizer = tf.keras.optimizers.SGD(0.1)
    optimizer.apply(*gradients_of_a_class(model, images))
    frozen_paths = {v.path for layer in frozen for v in layer.variables}
    for variable in model.variables:
        same = np.array_equal(before[variable.path], np.asarray(variable))
        if variable.path in frozen_paths or not has_no_effect(model, variable):
            assert same == (variable.path in frozen_paths), variable.path


def test_frozen_batch_norm_is_unchanged(images):
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
    "unfrozen": lambda model: (
        model.freeze("backbone"),
        unfreeze(model),
    ),
}


# With pre-activation, only those that concern its last batch norm.
every_freeze = pytest.mark.parametrize(
    ("freeze", "preactivation"),
    [
        *((freeze, False) for freeze in FREEZES),
        *((freeze, True) for freeze in ("stage2", "backbone", "batch norm")),
    ],
    scope="module",
)


def trainable_paths(model):
    return [variable.path for variable in model.trainable_variables]


@pytest.fixture(scope="module")
def built_model(preactivation, images):
    model = small_resnet(
        stage_sizes=(1, 1),
        preactivation=preactivation,
        attention="se",
        name="net",
    )
    return share(model, images)


@pytest.fixture
def resnet(built_model):
    """A `Shared` model that tests may freeze and change."""
    unfreeze(built_model.layer)
    scramble(built_model.layer)
    return built_model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "preactivation"),
    [
        *((name, False) for name in ("stage2", "both", "all but a layer")),
        *((name, True) for name in ("backbone", "batch norm", "everything")),
    ],
    scope="module",
)
def test_saved_model_keeps_frozen_layers(freeze, resnet, images, tmp_path):
    model = resnet.layer
    FREEZES[freeze](model)
    resnet.model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert trainable_paths(loaded) == trainable_paths(resnet.model)
    other = loaded.get_layer("net")
    assert other.get_config() == model.get_config()
    # Each batch norm has its own flag.
    for layer in (model, other):
        layer(images, training=True)
    assert_same_weights(model, other)


@pytest.mark.slow
@pytest.mark.parametrize("preactivation", [False], scope="module")
@pytest.mark.parametrize("freeze", ["backbone", "both", "all but a layer"])
def test_saved_resnet_keeps_frozen_layers(freeze, resnet, tmp_path):
    FREEZES[freeze](resnet.layer)
    resnet.layer.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert trainable_paths(loaded) == trainable_paths(resnet.layer)
    assert loaded.get_config() == resnet.layer.get_config()


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_layer", "freeze"),
    [
        (lambda: Stem(8, kind="deep"), freeze_batch_norms),
        (lambda: Stem(8, kind="deep"), freeze_all_but_the_last),
        (
            lambda: BasicBlock(4, attention="se", stochastic_depth=0.1),
            freeze_all_but_the_last,
        ),
        (
            lambda: BottleneckBlock(4, strides=2, attention="se"),
            freeze_batch_norms,
        ),
        (
            lambda: BottleneckBlock(4, strides=2, attention="se"),
            freeze_below,
        ),
        (lambda: SqueezeExcitation(), freeze_below),
    ],
)
def test_saved_layer_keeps_frozen_sublayers(
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


@pytest.mark.slow
@every_freeze
def test_config_keeps_frozen_layers_until_build(freeze, resnet, images):
    model = resnet.layer
    FREEZES[freeze](model)
    clone = ResNet.from_config(model.get_config())
    assert clone.get_config() == model.get_config()
    clone.build(images.shape)
    assert clone.get_config() == model.get_config()
    assert trainable_paths(clone) == trainable_paths(model)


def test_freezing_batch_norm_requires_a_built_model():
    with pytest.raises(ValueError, match="must be built"):
        small_resnet().freeze_batch_norm()


def test_unknown_part_is_reported():
    with pytest.raises(ValueError, match="part='stage3'"):
        small_resnet().freeze("stage3")
