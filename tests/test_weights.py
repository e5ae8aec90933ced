"""Weights of others: the same pictures, the same logits.

Parity with torchvision and timm is tested where the extra `parity` is there:

    pip install --editable '.[dev,parity]' && pytest tests/test_weights.py
"""

import hashlib

import h5py
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from safetensors.numpy import load_file, save_file

from resnet_layers import VARIANTS, weights
from resnet_layers.weights import (
    WeightsError,
    find_weights,
    load_weights,
    save_safetensors,
    torch_targets,
)

APPLICATIONS = {
    "resnet50_keras": "ResNet50",
    "resnet101_keras": "ResNet101",
    "resnet152_keras": "ResNet152",
    "resnet50_v2": "ResNet50V2",
    "resnet101_v2": "ResNet101V2",
    "resnet152_v2": "ResNet152V2",
}
TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
TIMM = ("resnet18d", "resnet34d", "resnet50d", "resnet101d", "seresnet50")


def pictures(side=64):
    random = np.random.default_rng(0)
    return random.normal(size=(2, side, side, 3)).astype("float32")


def randomize(shapes, seed=1):
    """Returns {name: random array}, so that nothing hides behind a zero.

    Of the size that keeps activations near one; variances are positive.
    """
    random = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        value = random.normal(size=shape) / 10
        if len(shape) > 1:
            fan_in = np.prod(shape) / max(shape[0], shape[-1])
            value *= 10 / np.sqrt(fan_in)
        elif "var" in name:
            value = random.uniform(0.5, 1.5, shape)
        elif "gamma" in name or name.endswith("weight"):
            value += 0.7
        values[name] = value.astype("float32")
    return values


def assert_same_logits(logits, expected):
    """At most a ten-thousandth of the spread apart."""
    logits, expected = np.asarray(logits), np.asarray(expected)
    spread = expected.max() - expected.min()
    assert spread > 0.01
    assert np.all(np.isfinite(expected))
    assert np.abs(logits - expected).max() <= 1e-4 * spread


def build(name, **options):
    model = VARIANTS[name](**{"num_classes": 7, **options})
    model.build((None, 64, 64, 3))
    return model


def make_application(name):
    model = getattr(tf.keras.applications, APPLICATIONS[name])(
        weights=None,
        classes=7,
        classifier_activation=None,
        input_shape=(64, 64, 3),
    )
    values = randomize({w.path: tuple(w.shape) for w in model.weights})
    for weight in model.weights:
        weight.assign(values[weight.path])
    return model


def save_legacy(model, path):
    """Writes the layout of the files that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.fixture(scope="module")
def application_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.h5"
    save_legacy(make_application("resnet50_keras"), path)
    return path


@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications_weights_give_their_logits(name, tmp_path):
    theirs = make_application(name)
    save_legacy(theirs, tmp_path / "model.h5")
    ours = build(name)
    assert load_weights(ours, tmp_path / "model.h5") == ("keras", True)
    assert_same_logits(ours(pictures()), theirs(pictures()))


@pytest.mark.parametrize("name", ["resnet50_keras", "resnet50_v2"])
def test_keras_3_weights_files_are_read_too(name, tmp_path):
    theirs = make_application(name)
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours = build(name)
    assert load_weights(ours, tmp_path / "model.weights.h5").head_used
    assert_same_logits(ours(pictures()), theirs(pictures()))


def check_torch_parity(theirs, name, path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    theirs = theirs.eval()
    state = theirs.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if v.ndim}
    state.update({k: torch.from_numpy(v) for k, v in randomize(shapes).items()})
    theirs.load_state_dict(state)
    save_torch_file(state, path)
    ours = build(name)
    assert load_weights(ours, path) == ("torch", True)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pictures().transpose(0, 3, 1, 2)))
    assert_same_logits(ours(pictures()), expected.numpy())
    # And back, exactly.
    save_safetensors(ours, path)
    for key, value in load_file(path).items():
        np.testing.assert_array_equal(value, state[key].numpy(), err_msg=key)
    theirs.load_state_dict(
        {k: torch.from_numpy(v) for k, v in load_file(path).items()},
        strict=False,
    )


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_weights_give_their_logits(name, tmp_path):
    torchvision = pytest.importorskip(
        "torchvision", reason="needs the extra: pip install '.[parity]'"
    )
    theirs = getattr(torchvision.models, name)(num_classes=7)
    check_torch_parity(theirs, name, tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", TIMM)
def test_timm_weights_give_their_logits(name, tmp_path):
    timm = pytest.importorskip(
        "timm", reason="needs the extra: pip install '.[parity]'"
    )
    theirs = timm.create_model(name, num_classes=7)
    check_torch_parity(theirs, name, tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", *TIMM[2:]])
def test_safetensors_round_trip_is_exact(name, tmp_path):
    model, other = build(name), build(name)
    values = randomize({w.path: tuple(w.shape) for w in model.weights})
    for weight in model.weights:
        weight.assign(values[weight.path])
    save_safetensors(model, tmp_path / "model.safetensors")
    assert load_weights(other, tmp_path / "model.safetensors").head_used
    for mine, read in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, read)
    assert len(torch_targets(model)) == len(model.weights)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_own_files_are_read(suffix, tmp_path):
    model, other = build("resnet18"), build("resnet18")
    path = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    assert load_weights(other, path) == ("own", True)
    np.testing.assert_array_equal(model(pictures()), other(pictures()))


def test_another_number_of_classes_keeps_the_models_head(application_file):
    model = build("resnet50_keras", num_classes=3)
    head = np.array(model.head.kernel)
    with pytest.raises(WeightsError, match="predictions"):
        load_weights(model, application_file)
    loaded = load_weights(model, application_file, replace_head=True)
    assert loaded == ("keras", False)
    np.testing.assert_array_equal(model.head.kernel, head)
    whole = build("resnet50_keras")
    load_weights(whole, application_file)
    np.testing.assert_array_equal(
        model.features(pictures())[-1], whole.features(pictures())[-1]
    )


def test_model_without_head_reads_a_file_with_one(application_file):
    model = build("resnet50_keras", num_classes=None)
    assert not load_weights(model, application_file).head_used


def remove_a_tensor(path):
    tensors = load_file(path)
    del tensors["layer2.0.bn1.bias"]
    save_file(tensors, path)


def add_a_tensor(path):
    save_file({**load_file(path), "extra.weight": np.zeros(3, "f4")}, path)


def put_in_a_nan(path):
    tensors = load_file(path)
    tensors["layer2.0.bn1.bias"][5] = np.nan
    save_file(tensors, path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_text(path):
    path.write_text("not a file of weights")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove_a_tensor, "layer2.0.bn1.bias"),
        (add_a_tensor, "extra.weight"),
        (put_in_a_nan, "layer2.0.bn1.bias"),
        (truncate, "cannot be read"),
        (replace_by_text, "cannot be read"),
    ],
)
def test_bad_safetensors_are_one_clear_line(tmp_path, damage, expected):
    path = tmp_path / "model.safetensors"
    save_safetensors(build("resnet18"), path)
    damage(path)
    model = build("resnet18")
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    [line] = str(error.value).splitlines()
    assert str(path) in line
    assert expected in line
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_another_architecture_is_named_with_both_shapes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(build("resnext50_32x4d"), path)
    with pytest.raises(WeightsError) as error:
        load_weights(build("wide_resnet50_2"), path)
    assert "layer1.0.conv2.weight" in str(error.value)
    assert "(128, 4, 3, 3)" in str(error.value)
    assert "(128, 128, 3, 3)" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + b"0" * 90]
)
def test_bad_h5_is_one_clear_line(tmp_path, content):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read") as error:
        load_weights(build("resnet50_keras"), path)
    assert "\n" not in str(error.value)


def test_truncated_h5_is_one_clear_line(application_file, tmp_path):
    path = tmp_path / "model.h5"
    content = application_file.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(build("resnet50_keras"), path)


def test_weights_of_another_kind_of_net_do_not_fit(application_file):
    with pytest.raises(WeightsError, match="resnet50_v2"):
        load_weights(build("resnet50_v2"), application_file)


def test_pickles_are_refused_without_reading_them(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"would run code")
    with pytest.raises(WeightsError, match="save_file"):
        load_weights(build("resnet18"), path)


def test_imagenet_weights_are_downloaded_and_hashed(
    application_file, monkeypatch, tmp_path
):
    """From a folder, in place of keras.applications' server."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(
        "keras.src.backend.config.keras_home", lambda: str(cache)
    )
    content = application_file.read_bytes()
    (tmp_path / "resnet50.h5").write_bytes(content)
    monkeypatch.setattr(weights, "IMAGENET_URL", f"file://{tmp_path}/{{}}.h5")
    md5 = hashlib.md5(content).hexdigest()
    files = {"resnet50_keras": ("resnet50", md5)}
    monkeypatch.setattr(weights, "IMAGENET_FILES", files)
    path = find_weights("imagenet", "resnet50_keras")
    assert path.read_bytes() == content
    path.unlink()
    files["resnet50_keras"] = ("resnet50", "0" * 32)
    with pytest.raises(WeightsError, match="could not be downloaded") as error:
        find_weights("imagenet", "resnet50_keras")
    assert "\n" not in str(error.value)


def test_imagenet_weights_exist_for_some_variants_only():
    with pytest.raises(WeightsError, match="only for resnet50_keras"):
        find_weights("imagenet", "resnet18")


def test_timm_weights_come_from_the_hub(monkeypatch, tmp_path):
    hub = pytest.importorskip(
        "huggingface_hub", reason="needs the extra: pip install '.[weights]'"
    )
    asked = []

    def hf_hub_download(repo, filename):
        asked.append((repo, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    path = find_weights("timm/resnet50.a1_in1k", "resnet50")
    assert path == tmp_path / "model.safetensors"
    assert asked == [("timm/resnet50.a1_in1k", "model.safetensors")]
