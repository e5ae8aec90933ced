"""Variants, configs and functions that belong to files of weights."""

import json

import numpy as np
import pytest
import tensorflow as tf
from applications import build_short, make_short_application, save_legacy
from hub_presets import write_config as write_hub_config
from hub_presets import write_preset
from safetensors.numpy import load_file, save_file
from weight_models import (
    OWN_FORMATS,
    OWN_READERS,
    assert_load_fails,
    assert_same_weights,
    assign_random,
    build,
    random_images,
    save_keras,
    save_run,
    save_weights_h5,
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
    read_config,
    read_num_classes,
    read_preprocessing,
    save_safetensors,
    write_config,
)
from resnet_layers.weights import architectures


def save_torch(model, folder):
    save_safetensors(model, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Returns a folder as on the hub, without a config."""
    save_torch(small(), tmp_path)
    return tmp_path


def write_json(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_downloaded_folder_equals_its_file(place, folder):
    write_json(folder, architecture="resnet50d", crop_pct=0.95)
    found = find_weights(str(folder / place))
    assert found.path == folder / "model.safetensors"
    assert found.variant == "resnet50d"
    assert found.preprocessing.crop_fraction == 0.95
    assert read_preprocessing(folder / place) == found.preprocessing
    model = small(seed=2)
    loaded = load_weights(model, folder / place)
    assert loaded == ("torch", True, found.preprocessing, ())
    assert_same_weights(model, small())


def test_variant_comes_from_timms_config(folder):
    for name in VARIANTS:
        write_json(folder, architecture=name)
        assert find_weights(str(folder)).variant == name
        write_json(folder, pretrained_cfg={"architecture": name})
        assert find_weights(str(folder)).variant == name


@pytest.mark.parametrize("config", [None, {}, {"layers": 3}])
def test_variant_is_unknown_without_an_architecture(config, folder):
    if config is not None:
        write_json(folder, **config)
    assert find_weights(str(folder)).variant is None


@pytest.mark.slow
@pytest.mark.parametrize("save", OWN_FORMATS)
def test_own_files_have_no_variant(save, tmp_path):
    path = save(small(), tmp_path)
    assert find_weights(str(path)) == (path, None, Preprocessing())


@pytest.mark.parametrize("save", [*OWN_READERS, save_torch])
def test_number_of_classes_is_read(save, tmp_path):
    # Squeeze-and-excitation has matrices and biases too.
    path = save(small(attention="se", stem="deep"), tmp_path)
    assert read_num_classes(path) == 7


def test_files_without_a_classifier_have_no_number_of_classes(tmp_path):
    path = save_torch(small(num_classes=None), tmp_path)
    assert read_num_classes(path) is None


def test_number_of_classes_of_a_preset_is_read(tmp_path):
    write_preset(tmp_path)
    assert read_num_classes(tmp_path) == 7


KNOWN = Preprocessing(
    Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), bgr=True),
    *(40, 0.95, "bicubic", True),
)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/ckpt-3"])
def test_variant_and_preprocessing_of_a_run_are_read(place, tmp_path):
    checkpoint = tf.train.Checkpoint(model=small())
    checkpoint.write(str(tmp_path / "checkpoints/ckpt-3"))
    write_config(tmp_path / "config.json", "resnet50d", ["a", "b"], KNOWN)
    found = find_weights(str(tmp_path / place))
    assert found[1:] == ("resnet50d", KNOWN)
    # Older runs.
    for text in (None, '{"format_version": 2}'):
        if text is None:
            (tmp_path / "config.json").unlink()
        else:
            (tmp_path / "config.json").write_text(text)
        found = find_weights(str(tmp_path / place))
        assert found[1:] == (None, Preprocessing())
    (tmp_path / "config.json").write_text('{"preprocessing": {"mean": 1}}')
    with pytest.raises(WeightsError, match="config.json: damaged") as error:
        read_preprocessing(tmp_path / place)
    assert "\n" not in str(error.value)


def test_run_of_another_function_is_rejected(tmp_path):
    model = small(stride_site="1x1")
    path = save_run(model, tmp_path)
    write_config(path / "config.json", "resnet50", ["a"], Preprocessing())
    assert_load_fails(model, path, "of resnet50 with stride_site='3x3'")


# Thirds are not exact in binary or decimal.
EXACT = [
    Preprocessing(),
    KNOWN,
    Preprocessing(NORMALIZATIONS["imagenet"], 224, 0.875, "bilinear", False),
    Preprocessing(NORMALIZATIONS["caffe"], crop_fraction=1 / 3),
    Preprocessing(Normalization((123.675 / 3,), (58.395 / 7,)), 32),
    Preprocessing(exif_orientation=True),
    Preprocessing(image_size=30, interpolation="lanczos3"),
]


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", EXACT)
def test_configs_round_trip_exactly(preprocessing, tmp_path):
    names = ["cat", "Mäuse, weiße", "3"]
    path = tmp_path / "config.json"
    write_config(
        path, "resnet50d", names, preprocessing, format_version=2, note=None
    )
    expected = (
        *("resnet50d", tuple(names), preprocessing),
        {"format_version": 2, "note": None},
    )
    for place in (path, tmp_path):
        assert read_config(place) == expected
    # Beside a file with torch's names, and one of this library.
    for save in (save_torch, save_weights_h5):
        assert find_weights(str(save(small(), tmp_path)))[1:] == (
            "resnet50d",
            preprocessing,
        )
    cfg = json.loads(path.read_text())["pretrained_cfg"]
    if preprocessing.normalization is NORMALIZATIONS["imagenet"]:
        assert cfg == {
            "input_size": [3, 224, 224],
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": pytest.approx([0.485, 0.456, 0.406]),
            "std": pytest.approx([0.229, 0.224, 0.225]),
        }


def test_third_party_configs_are_read(tmp_path):
    assert read_config(tmp_path) == (None, None, Preprocessing(), {})
    content = {
        "architecture": "resnet18",
        "num_classes": 2,
        "id2label": {"0": "a", "1": "b"},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    normalization = Normalization((127.5,) * 3, (63.75,) * 3)
    assert read_config(tmp_path)[:3] == (
        *("resnet18", ("a", "b")),
        Preprocessing(normalization),
    )
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="config.json: damaged"):
        read_config(tmp_path)


def test_unsupported_architecture_is_rejected_in_one_line(folder):
    # Some have the names and shapes of a variant, but another function.
    write_json(folder, architecture="ecaresnet50d_pruned")
    with pytest.raises(WeightsError) as error:
        find_weights(str(folder))
    [line] = str(error.value).splitlines()
    assert "unsupported architecture ecaresnet50d_pruned" in line
    assert "VARIANTS, such as " in line
    assert "resnet50" in line
    write_json(folder, architecture="vit")
    with pytest.raises(WeightsError, match="variant in VARIANTS.$"):
        find_weights(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50_keras", "resnet50_v2"])
def test_variant_of_keras_applications_is_recognized(
    name, tmp_path, monkeypatch
):
    path = tmp_path / "model.h5"
    save_legacy(make_short_application(name), path)
    sizes = {(2, 2): "resnet50"}
    assert find_weights(str(path)).variant is None
    monkeypatch.setattr(architectures, "KERAS_SIZES", sizes)
    assert find_weights(str(path)).variant == name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet50_keras", {"stride_site": "3x3"}, "stride_site='3x3'"),
        ("resnet50_v2", {"downsample": "first"}, "downsample='first'"),
        ("resnet50_v2", {"stem": "imagenet"}, "pool='max'"),
    ],
)
def test_keras_applications_weights_require_the_same_function(
    name, options, expected, tmp_path
):
    path = tmp_path / "model.h5"
    save_legacy(make_short_application(name), path)
    assert read_num_classes(path) == 7
    load_weights(build_short(name), path)
    if name == "resnet50_keras":
        load_weights(build_short("resnet50_v1"), path)
    assert_load_fails(build_short(name, **options), path, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "options"),
    [
        ("safetensors", {"stride_site": "1x1"}),
        ("safetensors", {"antialias": "average"}),
        ("safetensors", {"weight_standardization": True}),
        ("keras", {"stride_site": "1x1"}),
    ],
)
def test_own_files_record_the_function(options, save, tmp_path):
    path = tmp_path / "model.safetensors"
    theirs = small(**options)
    if save == "keras":
        path = save_keras(theirs, tmp_path)
    else:
        save_safetensors(theirs, path)
    [(name, value)] = options.items()
    assert_load_fails(small(seed=2), path, f"{name}={value!r}")
    model = small(seed=2, **options)
    load_weights(model, path)
    assert_same_weights(model, theirs)


def test_torch_weights_require_the_stride_in_the_3x3(folder):
    path = folder / "model.safetensors"
    assert_load_fails(small(stride_site="1x1"), path, "stride_site='3x3'")
    write_json(folder, architecture="resnetblur50")
    assert_load_fails(small(), path, "of resnetblur50 with antialias='blur'")
    load_weights(small(seed=2, antialias="blur"), path)


def test_presets_require_the_same_function(tmp_path):
    write_preset(tmp_path)
    options = {"stage_sizes": (1, 1)}
    load_weights(build("resnet50", **options), tmp_path)
    path = tmp_path / "model.weights.h5"
    model = build("resnet50_v1", **options)
    assert_load_fails(model, path, "stride_site='3x3'")
    # Pooled shortcuts have the same names and shapes.
    write_hub_config(
        tmp_path,
        input_conv_filters=[32, 32, 64],
        input_conv_kernel_sizes=[3, 3, 3],
        block_type="bottleneck_block_vd",
    )
    model = build("resnet50", **options)
    assert_load_fails(model, path, "shortcut='pooled_projection'")


def rename_to_transformers(name):
    """Converts a torchvision name to the one in transformers."""
    stages, kinds = "encoder.stages.{}.layers.{}", {"conv": "convolution"}
    kinds["bn"] = "normalization"
    layer, _, variable = name.rpartition(".")
    if layer == "fc":
        return f"classifier.1.{variable}"
    if layer in ("conv1", "bn1"):
        kind = kinds[layer[:-1]]
        return f"resnet.embedder.embedder.{kind}.{variable}"
    stage, block, part, *index = layer.split(".")
    block = stages.format(int(stage.removeprefix("layer")) - 1, block)
    if index:
        kind = ("convolution", "normalization")[int(index[0])]
        return f"resnet.{block}.shortcut.{kind}.{variable}"
    number = int(part[-1]) - 1
    return f"resnet.{block}.layer.{number}.{kinds[part[:-1]]}.{variable}"


# From microsoft/resnet-50, shortened.
TRANSFORMERS = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "id2label": {"0": "tench", "1": "goldfish"},
    "layer_type": "bottleneck",
    "model_type": "resnet",
}
PREPROCESSOR = {
    "crop_pct": 0.875,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"shortest_edge": 224},
}


def test_transformers_weights_load(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    names = {rename_to_transformers(name): t for name, t in tensors.items()}
    assert (
        "resnet.encoder.stages.1.layers.0.layer.2.convolution.weight" in names
    )
    save_file(names, path)
    write_json(folder, **TRANSFORMERS)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    found = find_weights(str(folder))
    normalization = NORMALIZATIONS["imagenet"]
    expected = Preprocessing(normalization, 224, 0.875, "bicubic")
    assert found[1:] == ("resnet50", expected)
    assert read_num_classes(path) == 7
    model = small(seed=2)
    assert load_weights(model, path)[:2] == ("transformers", True)
    for mine, read in zip(model.weights, small().weights, strict=True):
        np.testing.assert_array_equal(mine, read)
    # The backbone alone has no prefix.
    save_file({n.removeprefix("resnet."): t for n, t in names.items()}, path)
    loaded = load_weights(small(seed=2), path)
    assert loaded[:2] == ("transformers", True)
    assert_load_fails(small(stride_site="1x1"), path, "of resnet50")


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({"downsample_in_bottleneck": True}, "resnet50_v1"),
        (
            {
                "layer_type": "basic",
                "depths": [2, 2, 2, 2],
                "hidden_sizes": [64, 128, 256, 512],
            },
            "resnet18",
        ),
        ({"depths": [3, 8, 36, 3], "hidden_sizes": None}, "resnet152"),
        ({"downsample_in_first_stage": True}, None),
        ({"hidden_act": "gelu"}, None),
        ({"depths": [1, 1, 1, 1]}, None),
        ({"model_type": "vit"}, None),
    ],
)
def test_variant_comes_from_transformers_config(changes, variant, folder):
    config = {**TRANSFORMERS, **changes}
    config = {name: v for name, v in config.items() if v is not None}
    write_json(folder, **config)
    if variant is not None:
        assert find_weights(str(folder)).variant == variant
        return
    with pytest.raises(WeightsError, match="of transformers, bottleneck"):
        find_weights(str(folder))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("res2a_branch2a.weight", "Keras's ResNet-50 from before 2019"),
        ("layer0.conv1.weight", "Cadene's pretrained SENets"),
        ("blocks.0.patch_embed.weight", "a vision transformer"),
    ],
)
def test_weights_of_other_models_are_recognized(name, expected, folder):
    save_file({name: np.zeros(3, "f4")}, folder / "model.safetensors")
    assert_load_fails(small(), folder / "model.safetensors", expected)


@pytest.fixture(scope="module")
def nested():
    """Returns (outer model, its model of keras.applications, our variant)."""
    inner = make_short_application("resnet50_keras")
    backbone = tf.keras.Model(
        inner.inputs[0], inner.layers[-2].output, name="backbone"
    )
    inputs = tf.keras.Input((64, 64, 3))
    x = tf.keras.layers.Rescaling(2.0)(inputs)
    outputs = tf.keras.layers.Dense(3, name="mine")(backbone(x))
    model = tf.keras.Model(inputs, outputs)
    assign_random(model)
    return model, backbone, build_short("resnet50_keras", num_classes=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "m.h5"])
def test_nested_keras_applications_models_load(name, nested, tmp_path):
    model, backbone, ours = nested
    path = tmp_path / name
    if name == "m.h5":
        save_legacy(model, path)
    elif name == "m.keras":
        model.save(path)
    else:
        model.save_weights(path)
    assign_random(ours, seed=3)
    loaded = load_weights(ours, path)
    assert loaded.notes == ("the classifier is named 'mine'",)
    np.testing.assert_allclose(
        ours.embed(random_images()), backbone(random_images()), atol=1e-4
    )
    assert read_num_classes(path) == 3
    found = find_weights(str(path))
    assert found.preprocessing.normalization == NORMALIZATIONS["caffe"]


@pytest.mark.parametrize("content", ["{", "[]", '{"architecture": ["a"]}'])
def test_damaged_config_is_rejected_in_one_line(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(WeightsError) as error:
        find_weights(str(folder))
    [line] = str(error.value).splitlines()
    assert "config.json: damaged" in line
