"""Presets of Keras Hub: names, parity, variants, preprocessing.

Tests of parity require the extra `parity`:

    pip install --editable '.[dev,parity]'
    pytest tests/layers/test_hub_presets.py
"""

import json

import h5py
import numpy as np
import pytest
from hub_presets import (
    CONVERTER,
    save_preset,
    write_config,
    write_preprocessor,
    write_preset,
)
from weight_models import (
    assert_load_fails,
    assert_same_logits,
    build,
    random_images,
    small,
)

from resnet_layers import (
    NORMALIZATIONS,
    VARIANTS,
    Normalization,
    Preprocessing,
    WeightsError,
    find_weights,
    load_weights,
    read_preprocessing,
)
from resnet_layers.weights.architectures import HUB_VARIANTS


def build_like_preset(**options):
    return build("resnet50", **{"stage_sizes": (1, 1), **options})


@pytest.mark.parametrize("place", ["", "model.weights.h5"])
def test_presets_are_loaded_by_name(place, tmp_path):
    layers = write_preset(tmp_path)
    model = build_like_preset()
    expected = Preprocessing(NORMALIZATIONS["imagenet"], 160, 1.0, "bicubic")
    loaded = load_weights(model, tmp_path / place)
    assert loaded == ("hub", True, expected, ())
    ours = {
        "conv1_conv": model.stem.convs[0],
        "conv1_bn": model.stem.bns[0],
        "predictions": model.head,
    }
    for stage, block in enumerate(model.blocks):
        name = f"stack{stage}_block0"
        ours[f"{name}_0_conv"] = block.projection_conv
        ours[f"{name}_0_bn"] = block.projection_bn
        for number in (1, 2, 3):
            for kind in ("conv", "bn"):
                layer = getattr(block, f"{kind}{number}")
                ours[f"{name}_{number}_{kind}"] = layer
    assert ours.keys() == layers.keys()
    assert sum(len(v) for v in layers.values()) == len(model.weights)
    for name, variables in layers.items():
        for variable, value in variables.items():
            read = getattr(ours[name], variable)
            np.testing.assert_array_equal(read, value, err_msg=name)


def test_presets_without_a_classifier_keep_the_models_own(tmp_path):
    write_preset(tmp_path)
    (tmp_path / "task.weights.h5").unlink()
    model = build_like_preset()
    assert_load_fails(model, tmp_path, "has no predictions/kernel")
    model.head.bias.assign(np.arange(7))
    assert load_weights(model, tmp_path, replace_head=True)[:2] == (
        "hub",
        False,
    )
    np.testing.assert_array_equal(model.head.bias, np.arange(7))
    headless = build_like_preset(num_classes=None)
    assert load_weights(headless, tmp_path)[:2] == ("hub", False)


def test_presets_of_another_architecture_are_rejected(tmp_path):
    write_preset(tmp_path)
    model = build_like_preset(stage_sizes=(1, 2))
    assert_load_fails(model, tmp_path, "has no stack1_block1_1_conv/kernel")
    model = small(attention="se", name="net")
    assert_load_fails(
        model, tmp_path, "does not match net: no model of Keras Hub has"
    )


def test_presets_with_max_pooling_are_rejected(tmp_path):
    # `GlobalMaxPooling2D` has no weights to recognize it by.
    write_preset(tmp_path)
    task = json.dumps({"config": {"pooling": "max"}})
    (tmp_path / "task.json").write_text(task)
    assert_load_fails(build_like_preset(), tmp_path, "unsupported pooling max")


def variants_in(table):
    return [name for name in table if name in VARIANTS]


@pytest.mark.slow
@pytest.mark.parametrize("name", variants_in(HUB_VARIANTS))
def test_variants_of_presets_are_known(name, tmp_path):
    write_preset(tmp_path)
    keys = (
        "input_conv_filters",
        "input_conv_kernel_sizes",
        "stackwise_num_filters",
        "stackwise_num_strides",
        "block_type",
        "stackwise_num_blocks",
        "use_pre_activation",
    )
    write_config(tmp_path, **dict(zip(keys, HUB_VARIANTS[name], strict=True)))
    found = find_weights(str(tmp_path))
    assert found.path == tmp_path / "model.weights.h5"
    assert found.variant == name
    assert found.preprocessing.image_size == 160


def test_presets_of_unsupported_architectures_are_rejected(tmp_path):
    write_preset(tmp_path)
    for config in (
        {"block_type": "basic_block_vd"},
        {"stackwise_num_strides": [2, 2, 2, 2]},
        {"stackwise_num_filters": [64, 64, 64, 64]},
    ):
        write_config(tmp_path, **config)
        with pytest.raises(
            WeightsError, match="unsupported architecture"
        ) as error:
            find_weights(str(tmp_path))
        [line] = str(error.value).splitlines()
        assert str(*config.values()) in line
    (tmp_path / "config.json").unlink()
    assert find_weights(str(tmp_path)).variant is None
    (tmp_path / "config.json").write_text('{"config": {}}')
    with pytest.raises(WeightsError, match="config.json: damaged"):
        find_weights(str(tmp_path))


PREPROCESSING = Preprocessing(Normalization((0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize(
    ("converter", "expected"),
    [
        (None, Preprocessing()),
        (
            CONVERTER,
            Preprocessing(NORMALIZATIONS["imagenet"], 160, 1.0, "bicubic"),
        ),
        (
            {"image_size": None, "interpolation": "nearest"},
            PREPROCESSING._replace(crop_fraction=1.0, interpolation="nearest"),
        ),
        (
            {
                "scale": 1 / 127.5,
                "offset": -1,
                "crop_to_aspect_ratio": False,
                "interpolation": "bilinear",
            },
            Preprocessing(
                NORMALIZATIONS["symmetric"], interpolation="bilinear"
            ),
        ),
        # The format of older versions of Keras Hub.
        (
            {
                "height": 224,
                "width": 224,
                "scale": 1 / 255,
                "mean": [0.485, 0.456, 0.406],
                "variance": [0.229**2, 0.224**2, 0.225**2],
                "interpolation": "bilinear",
            },
            Preprocessing(NORMALIZATIONS["imagenet"], 224, 1.0, "bilinear"),
        ),
    ],
    ids=["none", "now", "nothing", "symmetric", "older"],
)
def test_preprocessing_of_presets_is_read(converter, expected, tmp_path):
    write_preset(tmp_path)
    write_preprocessor(tmp_path, converter)
    assert read_preprocessing(tmp_path) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": [224, 256]},
        {"scale": [0.0, 1.0, 1.0]},
        {"scale": -1.0},
        {"scale": [1.0, 2.0]},
        {"offset": "a"},
        {"offset": [float("nan"), 0, 0]},
        {"interpolation": None},
    ],
)
def test_damaged_preprocessor_is_rejected_in_one_line(change, tmp_path):
    write_preset(tmp_path)
    write_preprocessor(tmp_path, {**CONVERTER, **change})
    with pytest.raises(WeightsError) as error:
        read_preprocessing(tmp_path)
    [line] = str(error.value).splitlines()
    assert "preprocessor.json: damaged" in line


@pytest.fixture(scope="module")
def keras_hub():
    return pytest.importorskip(
        "keras_hub", reason="needs the extra: pip install '.[parity]'"
    )


# Variant -> block type in Keras Hub, pre-activation.
PARITY = {
    "resnet18": ("basic_block", False),
    "resnet50": ("bottleneck_block", False),
    "resnet50d": ("bottleneck_block_vd", False),
    "resnetv2_50": ("bottleneck_block", True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", variants_in(PARITY))
def test_logits_and_features_match_keras_hub(name, keras_hub, tmp_path):
    theirs = save_preset(keras_hub, tmp_path, *PARITY[name])
    ours = build(name, stage_sizes=(2, 1))
    assert load_weights(ours, tmp_path)[:2] == ("hub", True)
    assert_same_logits(ours(random_images()), theirs(random_images()))
    assert_same_logits(
        ours.features(random_images())[-1], theirs.backbone(random_images())
    )


@pytest.mark.slow
@pytest.mark.parametrize("converter", [CONVERTER, {"scale": 0.5, "offset": 2}])
def test_normalization_matches_keras_hub(converter, keras_hub, tmp_path):
    theirs = keras_hub.layers.ResNetImageConverter(
        **{**converter, "image_size": (2, 2)}
    )
    keras_hub.models.ResNetImageClassifierPreprocessor(theirs).save_to_preset(
        str(tmp_path)
    )
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file.create_group("layers/conv/vars").attrs["name"] = "stack0_block0_"
    mean, stddev, _ = read_preprocessing(tmp_path).normalization
    pixels = np.arange(12.0, dtype="float32").reshape(2, 2, 3)
    np.testing.assert_allclose(
        (pixels - mean) / stddev, theirs(pixels), rtol=1e-4, atol=1e-5
    )
