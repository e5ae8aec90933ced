"""Preprocessing that belongs to files of weights."""

import json
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from applications import build_short, make_short_application, save_legacy
from weight_models import OWN_FORMATS, save_run, small

from resnet_layers import (
    NORMALIZATIONS,
    Normalization,
    Preprocessing,
    WeightsError,
    load_weights,
    read_preprocessing,
    save_safetensors,
)


def save_keras_3(model, path):
    model.save_weights(path.with_suffix(".weights.h5"))
    return path.with_suffix(".weights.h5")


def save_keras_2(model, path):
    save_legacy(model, path)
    return path


def save_whole(model, path):
    model.save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_keras_3, save_keras_2, save_whole])
@pytest.mark.parametrize("name", ["resnet50_keras", "resnet50_v2"])
def test_normalization_of_keras_applications_is_recognized(
    name, save, tmp_path
):
    path = save(make_short_application(name), tmp_path / "model.h5")
    normalization, *others = read_preprocessing(path)
    assert others == [224, None, None, None]
    package = "resnet_v2" if name.endswith("v2") else "resnet"
    pixels = np.arange(12.0).reshape(2, 2, 3)
    expected = getattr(tf.keras.applications, package).preprocess_input(
        pixels.copy()
    )
    mean, stddev, bgr = normalization
    inputs = (pixels[..., :: -1 if bgr else 1] - mean) / stddev
    np.testing.assert_allclose(inputs, expected, rtol=1e-6)
    loaded = load_weights(build_short(name), path)
    assert loaded.preprocessing == read_preprocessing(path)


@pytest.mark.parametrize("save", OWN_FORMATS)
def test_own_files_have_no_preprocessing(save, tmp_path):
    path = save(small(preactivation=True), tmp_path)
    assert read_preprocessing(path) == Preprocessing()


def test_checkpoints_have_no_preprocessing(tmp_path):
    save_run(small(), tmp_path, step=9)
    path = str(tmp_path / "checkpoints" / "ckpt-9")
    assert read_preprocessing(path) == Preprocessing()


def test_other_keras_models_have_no_preprocessing(tmp_path):
    inputs = tf.keras.Input([4])
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(2)(inputs))
    model.save_weights(tmp_path / "model.weights.h5")
    assert read_preprocessing(tmp_path / "model.weights.h5") == Preprocessing()


def test_tensors_are_not_read(tmp_path, monkeypatch):
    keras = tmp_path / "model.h5"
    save_legacy(make_short_application("resnet50_v2"), keras)
    torch = tmp_path / "model.safetensors"
    torch.write_bytes(b"no tensors")
    own = tmp_path / "model.keras"
    with zipfile.ZipFile(own, "w") as file:
        file.writestr("config.json", '{"stage_sizes": [1]}')

    def fail(self, *args):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    for path, expected in (
        (keras, Preprocessing(NORMALIZATIONS["symmetric"], 224)),
        (torch, Preprocessing(NORMALIZATIONS["imagenet"])),
        (own, Preprocessing()),
    ):
        assert read_preprocessing(path) == expected


def write_text(folder):
    (folder / "model.h5").write_text("not a file of weights")
    return folder / "model.h5"


def write_h5(folder):
    with h5py.File(folder / "model.h5", "w") as file:
        file["numbers"] = [1.0]
    return folder / "model.h5"


def write_unknown(folder):
    (folder / "model.pth").write_bytes(b"neither of torch nor of Keras")
    return folder / "model.pth"


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (write_text, "cannot be read as weights"),
        (write_h5, "cannot be read as weights"),
        (write_unknown, "cannot be read as weights"),
        (lambda folder: folder, "checkpoints/ckpt-STEP.index"),
        (lambda folder: folder / "none", "not found"),
    ],
    ids=["text", "h5", "unknown", "folder", "nothing"],
)
def test_other_files_are_rejected_in_one_line(write, expected, tmp_path):
    path = write(tmp_path)
    with pytest.raises(WeightsError) as error:
        read_preprocessing(path)
    [line] = str(error.value).splitlines()
    assert str(path) in line
    assert expected in line


# From timm's resnet50.ra_in1k on the hub, shortened.
TIMM_CONFIG = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "test_crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}
IMAGENET = Preprocessing(NORMALIZATIONS["imagenet"])


@pytest.fixture
def torch_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, IMAGENET),
        # A config of something else.
        ({"layers": 3}, IMAGENET),
        (
            TIMM_CONFIG,
            IMAGENET._replace(
                image_size=224, crop_fraction=0.875, interpolation="bicubic"
            ),
        ),
        (
            {
                "architecture": "resnet50",
                "input_size": [3, 160, 160],
                "crop_pct": 0.875,
                "test_crop_pct": None,
                "interpolation": "bilinear",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.25, 0.5, 1],
            },
            Preprocessing(
                Normalization((127.5,) * 3, (63.75, 127.5, 255)),
                image_size=160,
                crop_fraction=0.875,
                interpolation="bilinear",
            ),
        ),
    ],
    ids=["none", "other config", "pretrained_cfg", "at the top"],
)
def test_preprocessing_of_torch_weights_is_read(config, expected, torch_file):
    if config is not None:
        torch_file.with_name("config.json").write_text(json.dumps(config))
    assert read_preprocessing(torch_file) == expected
    assert load_weights(small(seed=2), torch_file).preprocessing == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"mean": [0.5',
        "[1, 2]",
        '{"pretrained_cfg": "resnet50"}',
        '{"mean": [0.5, 0.5]}',
        '{"std": ["a", "b", "c"]}',
        '{"std": [NaN, 1, 1]}',
        '{"std": [0, 1, 1]}',
        '{"input_size": 224}',
        '{"input_size": [3, 224, 256]}',
        '{"input_size": [2, 224, 224]}',
        '{"input_size": [3, 0, 0]}',
        '{"crop_pct": "0.9"}',
        '{"crop_pct": 95}',
        '{"interpolation": 3}',
    ],
)
def test_damaged_config_is_rejected_in_one_line(content, torch_file):
    config = torch_file.with_name("config.json")
    config.write_text(content)
    with pytest.raises(WeightsError) as error:
        read_preprocessing(torch_file)
    [line] = str(error.value).splitlines()
    assert f"{config}: damaged" in line


def test_weights_beside_a_damaged_config_are_not_loaded(torch_file):
    torch_file.with_name("config.json").write_text("")
    model = small(seed=2)
    before = np.array(model.head.kernel)
    with pytest.raises(WeightsError, match="config.json: damaged"):
        load_weights(model, torch_file)
    np.testing.assert_array_equal(model.head.kernel, before)
