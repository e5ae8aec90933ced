"""Third-party weights: the same images give the same logits.

Tests against torchvision and timm require the extra `parity`:

    pip install --editable '.[dev,parity]'
    pytest tests/layers/test_weight_parity.py
"""

import numpy as np
import pytest
import tensorflow as tf
from applications import (
    build_short,
    make_application,
    make_short_application,
    save_legacy,
)
from keras.src.backend.common import global_state
from safetensors.numpy import load_file
from weight_models import (
    assert_same_logits,
    assert_same_weights,
    assign_random,
    build,
    random_images,
    randomize,
)

from resnet_layers import WeightsError, load_weights, save_safetensors
from resnet_layers.weights.names import keras_targets, torch_targets

pytestmark = pytest.mark.slow


def big_ones_slow(names):
    """Returns the names as parameters; tests of big models are slow."""
    return [
        pytest.param(name, marks=pytest.mark.slow)
        if any(size in name for size in ("101", "152", "wide"))
        else name
        for name in names
    ]


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


@pytest.mark.parametrize("name", ["resnet50_keras", "resnet50_v2"])
def test_logits_match_keras_applications(name, tmp_path):
    theirs = make_application(name)
    assign_random(theirs)
    save_legacy(theirs, tmp_path / "model.h5")
    ours = build(name)
    assert load_weights(ours, tmp_path / "model.h5")[:2] == ("keras", True)
    assert_same_logits(ours(random_images()), theirs(random_images()))
    # pytest keeps its folders for a while, and models are large.
    (tmp_path / "model.h5").unlink()


@pytest.mark.parametrize("name", ["resnet101_keras", "resnet152_v2"])
def test_names_and_shapes_match_keras_applications(name):
    # Without values: the smallest models show that names and shapes suffice.
    with tf.keras.StatelessScope(initialize_variables=False):
        theirs, ours = make_application(name), build(name)
    # Otherwise the end of the next scope initializes them.
    global_state.set_global_attribute("uninitialized_variables", [])
    expected = {
        f"{layer.name}/{variable.name}": tuple(variable.shape)
        for layer in theirs.layers
        for variable in layer.weights
    }
    targets = keras_targets(ours)
    for folded in set(expected) - set(targets):
        assert folded.endswith("_conv/bias")
        mean = folded.replace("_conv/bias", "_bn/moving_mean")
        assert expected.pop(folded) == expected[mean]
    assert expected == {
        name: tuple(target.variable.shape) for name, target in targets.items()
    }


@pytest.fixture(params=["resnet50_keras", "resnet50_v2"], scope="module")
def short(request):
    """Returns (variant, its shortened model of keras.applications)."""
    model = make_short_application(request.param)
    assign_random(model)
    return request.param, model


def test_keras_3_weights_files_load(short, tmp_path):
    name, theirs = short
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours = build_short(name)
    assert load_weights(ours, tmp_path / "model.weights.h5").head_used
    assert_same_logits(ours(random_images()), theirs(random_images()))


def test_whole_model_files_load(short, tmp_path):
    name, theirs = short
    theirs.save(tmp_path / "model.h5")
    ours = build_short(name)
    assert load_weights(ours, tmp_path / "model.h5")[:2] == ("keras", True)
    assert_same_logits(ours(random_images()), theirs(random_images()))


@pytest.mark.parametrize("num_classes", [3, None])
def test_other_number_of_classes_keeps_the_models_head(
    num_classes, short, tmp_path
):
    name, theirs = short
    path = tmp_path / "model.h5"
    save_legacy(theirs, path)
    model = build_short(name, num_classes=num_classes)
    if num_classes is not None:
        assign_random(model.head, seed=2)
        head = [np.array(weight) for weight in model.head.weights]
        with pytest.raises(WeightsError, match="predictions"):
            load_weights(model, path)
    loaded = load_weights(model, path, replace_head=num_classes is not None)
    assert loaded[:2] == ("keras", False)
    if num_classes is not None:
        for weight, value in zip(model.head.weights, head, strict=True):
            np.testing.assert_array_equal(weight, value)
    whole = build_short(name)
    load_weights(whole, path)
    assert_same_weights(model, whole)


def check_torch_parity(theirs, name, path, **options):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    theirs = theirs.eval()
    state = theirs.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if v.ndim}
    state.update({k: torch.from_numpy(v) for k, v in randomize(shapes).items()})
    theirs.load_state_dict(state)
    save_torch_file(state, path)
    ours = build(name, **options)
    assert load_weights(ours, path)[:2] == ("torch", True)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(random_images().transpose(0, 3, 1, 2))
        )
    assert_same_logits(ours(random_images()), expected.numpy())
    # Saving is exact.
    save_safetensors(ours, path)
    for key, value in load_file(path).items():
        np.testing.assert_array_equal(value, state[key].numpy(), err_msg=key)
    theirs.load_state_dict(
        {k: torch.from_numpy(v) for k, v in load_file(path).items()},
        strict=False,
    )
    path.unlink()


@pytest.mark.parametrize("name", big_ones_slow(TORCHVISION))
def test_logits_match_torchvision(name, tmp_path):
    torchvision = pytest.importorskip(
        "torchvision", reason="needs the extra: pip install '.[parity]'"
    )
    theirs = getattr(torchvision.models, name)(num_classes=7)
    check_torch_parity(theirs, name, tmp_path / "model.safetensors")


def check_timm_parity(name, output_stride, tmp_path, monkeypatch):
    timm = pytest.importorskip(
        "timm", reason="needs the extra: pip install '.[parity]'"
    )
    # Where dilation replaces a stride, timm averages the last pixels with
    # zeros; elsewhere not. Ours are never averaged with zeros.
    monkeypatch.setattr(
        timm.layers.pool2d_same,
        "pad_same",
        lambda x, *_: timm.layers.padding.F.pad(x, (0, 1, 0, 1), "replicate"),
    )
    options = {"output_stride": output_stride}
    theirs = timm.create_model(name, num_classes=7, **options)
    path = tmp_path / "model.safetensors"
    check_torch_parity(theirs, name, path, **options)


@pytest.mark.parametrize("name", big_ones_slow(TIMM))
def test_logits_match_timm(name, tmp_path, monkeypatch):
    check_timm_parity(name, 32, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet50", 16), ("resnet50", 8), ("resnet18d", 16), ("resnet50d", 16)],
)
def test_dilated_logits_match_timm(name, output_stride, tmp_path, monkeypatch):
    check_timm_parity(name, output_stride, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnext50_32x4d", "resnet18d", "resnet50d", "seresnet50"],
)
def test_safetensors_round_trip_is_exact(name, tmp_path):
    options = {"width": 16, "stage_sizes": (2, 1)}
    model, other = build(name, **options), build(name, **options)
    assign_random(model)
    save_safetensors(model, tmp_path / "model.safetensors")
    assert load_weights(other, tmp_path / "model.safetensors").head_used
    for mine, read in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, read)
    assert len(torch_targets(model)) == len(model.weights)
