"""Whole models: configs, features, embeddings, output strides."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from small_models import (
    assert_close,
    assert_same_weights,
    normal,
    scramble,
    small_resnet,
    small_variant,
)

from resnet_layers import VARIANTS, BatchNormalization, PaddedConv2D, ResNet

# One of the variants that differ in name and sizes of stages alone.
DISTINCT = {
    repr(
        [
            len(variant.arguments["stage_sizes"]),
            {**variant.arguments, "name": None, "stage_sizes": None},
        ]
    ): name
    for name, variant in VARIANTS.items()
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT.values())
def test_config_of_every_variant_round_trips(name):
    stages = len(VARIANTS[name].arguments["stage_sizes"])
    model = VARIANTS[name](stage_sizes=(1,) * stages)
    config = model.get_config()
    assert (
        config.items()
        >= {
            **VARIANTS[name].arguments,
            "stage_sizes": model.stage_sizes,
        }.items()
    )
    assert ResNet.from_config(config).get_config() == config
    assert model.name == name
    shape = (1, 64, 64, 3)
    for layer in (model.stem, *model.blocks):
        shape = layer.compute_output_shape(shape)
    assert shape[1] == 64 // model.reduction


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2", "resnet50d"])
def test_features_are_a_pyramid(name, images):
    model = small_variant(name, stage_sizes=(2, 2, 2, 1))
    features = model.features(images)
    assert list(features) == ["P2", "P3", "P4", "P5"]
    maps = list(features.values())
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
    ours, expected = backbone(images), resnet.features(images)
    assert list(ours) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name])


# Each kind of block, stem, shortcut and stride. Not squeeze-and-excitation,
# because its mean over the image depends on the resolution.
DILATED = {
    **{
        name: functools.partial(small_variant, name, width=8)
        for name in (
            "resnet18",
            "resnet50",
            "resnet50_keras",
            "resnet50_v2",
            "resnet50d",
            "resnet20",
        )
    },
    "resnext": functools.partial(
        small_variant, "resnext50_32x4d", width=8, groups=2, base_width=32
    ),
    **{
        f"{shortcut}, last": functools.partial(
            small_resnet, shortcut=shortcut, downsample="last"
        )
        for shortcut in ("zero_padding", "pooled_projection")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "factor"),
    [("resnet18", 2), ("resnet50_v2", 2), *((name, 4) for name in DILATED)],
)
def test_output_stride_keeps_the_features(name, factor):
    options = {"stage_sizes": (1, 2, 2), "zero_last_gamma": False}
    strided = DILATED[name](**options)
    strided.build((None, None, None, 3))
    scramble(strided)
    # All heights are even, and some widths odd.
    images = normal(2, 32, 26, 3)
    coarse = strided.features(images)["P4"].numpy()
    stride = strided.reduction // factor
    dilated = DILATED[name](**options, output_stride=stride)
    dilated.build((None, None, None, 3))
    assert dilated.reduction == stride
    scramble(dilated)
    assert_same_weights(strided, dilated)
    fine = dilated.features(images)["P4"].numpy()
    assert fine.shape[1] == 32 // stride
    assert_close(fine[:, ::factor, ::factor], coarse, 1e-4)


def test_headless_model_returns_the_embedding(images):
    model = small_resnet(num_classes=None)
    expected = tf.reduce_mean(model.features(images)["P3"], [1, 2])
    np.testing.assert_array_equal(model(images), expected)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_embedding_is_the_input_of_the_classifier(dtype, images):
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


def test_embedding_is_a_functional_model(images):
    inputs = tf.keras.Input([None, None, 3])
    resnet = small_resnet()
    encoder = tf.keras.Model(inputs, resnet.embed(inputs))
    scramble(resnet)
    np.testing.assert_array_equal(encoder(images), resnet.embed(images))


def test_stochastic_depth_grows_linearly():
    model = ResNet(stage_sizes=(1, 2, 2), stochastic_depth=0.2)
    rates = [block.stochastic_depth for block in model.blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


def test_stochastic_depth_is_seeded():
    def states(seed):
        model = small_resnet(
            stage_sizes=(1, 3), stochastic_depth=0.5, seed=seed
        )
        drops = [block.drop for block in model.blocks[1:]]
        for drop in drops:
            drop.build((None, 1))
        return [tuple(drop.seed_generator.state.numpy()) for drop in drops]

    assert states(3) == states(3)
    # All blocks and seeds differ.
    assert len({*states(3), *states(4), *states(None), *states(None)}) == 12


def test_stochastic_depth_does_not_change_the_weights(images, tmp_path):
    dropping, plain = (
        small_resnet(stochastic_depth=rate) for rate in (0.2, 0.0)
    )
    for model in (dropping, plain):
        model.build(images.shape)
    assert dropping.count_params() == plain.count_params()
    path = tmp_path / "model.weights.h5"
    for theirs, ours in ((dropping, plain), (plain, dropping)):
        scramble(theirs, 1)
        ours.set_weights(theirs.get_weights())
        assert_same_weights(ours, theirs)
        scramble(theirs, 2)
        theirs.save_weights(path)
        ours.load_weights(path)
        assert_same_weights(ours, theirs)


def test_weights_start_with_he_initialization():
    model = ResNet(stage_sizes=(2,), width=128)
    model.build((None, 224, 224, 3))
    block = model.blocks[1]
    kernel = np.asarray(block.conv2.kernel)
    fan_out = 3 * 3 * kernel.shape[-1]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / fan_out), rel=0.01)
    assert abs(np.mean(kernel)) < 0.02 * np.std(kernel)
    assert not np.any(block.bn3.gamma)
    assert np.all(np.asarray(block.bn1.gamma) == 1)
    assert block.bn1.epsilon == 1e-5
    assert block.bn1.momentum == 0.9


@pytest.mark.parametrize(
    ("stem", "output_strides"),
    [("imagenet", (4, 8, 16)), ("deep", (4, 8, 16)), ("small", (1, 2, 4))],
)
def test_output_stride_is_the_stems_or_its_doublings(stem, output_strides):
    for output_stride in output_strides:
        model = small_resnet(
            stage_sizes=(1, 1, 1), stem=stem, output_stride=output_stride
        )
        assert model.reduction == output_stride


def test_resnet_round_trips_through_a_keras_file(images, tmp_path):
    model = small_resnet()
    model(images)
    scramble(model)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is ResNet
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_classes", "options"), [(7, {}), (None, {"preactivation": True})]
)
def test_new_classifier_keeps_the_backbone(num_classes, options, images):
    model = small_resnet(**options)
    model.build(images.shape)
    scramble(model)
    model.freeze("stage1")
    other = model.with_classes(num_classes, name="other")
    np.testing.assert_array_equal(other.embed(images), model.embed(images))
    assert other.name == "other"
    assert other(images).shape[1] == (num_classes or 64)
    assert not other.blocks[0].trainable
    assert other.blocks[1].trainable
    before = np.asarray(model.embed(images))
    scramble(other, seed=7)
    np.testing.assert_array_equal(model.embed(images), before)


def test_new_classifier_works_before_build():
    model = small_resnet().with_classes(7)
    assert model.num_classes == 7
    assert not model.built


def test_stages_can_have_different_blocks_and_widths(images):
    model = ResNet(
        block=("basic", "bottleneck"),
        stage_sizes=(1, 2),
        width=(8, 12),
        stem={"kind": "small", "filters": 6},
        num_classes=None,
    )
    maps = model.features(images)
    assert [m.shape[1:] for m in maps.values()] == [(32, 32, 8), (16, 16, 48)]
    assert model.stem.filters == 6


def test_norm_can_be_any_layer_class(images, tmp_path):
    model = small_resnet(
        norm={"kind": tf.keras.layers.LayerNormalization, "epsilon": 0.1}
    )
    model(images)
    scramble(model)
    assert model.blocks[0].bn1.epsilon == 0.1
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


IMAGE_AXES = "Pass images .batch, height, width, channels., channels last"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda model: model(tf.keras.Input([None, None, None])),
            r"\(None, None, None, None\)",
        ),
        (
            lambda model: model.features(tf.keras.Input([None, None, None])),
            r"\(None, None, None, None\)",
        ),
        (lambda model: model.build((32, 32, 3)), r"\(32, 32, 3\)"),
        (lambda model: model(normal(32, 32, 3)), r"\(32, 32, 3\)"),
        (lambda model: model.embed(normal(32, 32, 3)), r"\(32, 32, 3\)"),
        (
            lambda model: model(normal(1, 3, 32, 32)),
            r"\(1, 3, 32, 32\)",
        ),
        (
            lambda model: model(tf.keras.Input([3, 32, 48])),
            r"\(None, 3, 32, 48\)",
        ),
    ],
)
def test_shapes_other_than_images_are_rejected(use, message):
    for make in (small_resnet, lambda: small_resnet(stem="deep")):
        with pytest.raises(
            ValueError, match=f"{message}.*{IMAGE_AXES}"
        ) as error:
            use(make())
        assert str(error.value).splitlines()[0].endswith(".")


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 3, 32, 32), (1, 8, 8, 4)])
def test_built_resnet_rejects_other_shapes(shape, images):
    model = small_resnet()
    model.build(images.shape)
    uses = {
        "call": lambda: model(normal(*shape)),
        "features": lambda: model.features(normal(*shape)),
        "symbolic": lambda: model(tf.keras.Input(shape[1:])),
        "build": lambda: model.build(shape),
        "stem": lambda: model.stem(normal(*shape)),
        "predict": lambda: model.predict(normal(*shape), verbose=0),
    }
    for use in uses.values():
        with pytest.raises(ValueError, match=f"{IMAGE_AXES}, with 3 channels"):
            use()


@pytest.mark.parametrize("when", ["before", "after"])
def test_fast_paths_apply_to_all_layers(when, images):
    resnet = small_resnet()
    config = resnet.get_config()
    if when == "before":
        resnet.fast_paths = False
    resnet.build(images.shape)
    if when == "after":
        resnet.fast_paths = False
    layers = resnet._flatten_layers()
    convs = [each for each in layers if isinstance(each, PaddedConv2D)]
    layers = resnet._flatten_layers()
    norms = [each for each in layers if isinstance(each, BatchNormalization)]
    # Three in each of three blocks, two in shortcuts, one in the stem.
    assert len(convs) == len(norms) == 12
    assert not any(conv.kernel_products for conv in convs)
    assert not any(norm.fused for norm in norms)
    resnet.fast_paths = True
    assert all(conv.kernel_products for conv in convs)
    assert all(norm.fused for norm in norms)
    assert resnet.get_config() == config
