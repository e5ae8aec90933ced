"""Weights of others: the same pictures, the same logits.

Parity with torchvision and timm is tested where the extra `parity` is there:

    pip install --editable '.[dev,parity]' && pytest tests/test_weights.py
"""

import functools
import hashlib
import json
import os
import pathlib
import zipfile
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.legacy.saving import legacy_h5_format
from safetensors.numpy import load_file, save_file

from resnet_layers import VARIANTS, ResNet, weights
from resnet_layers.weights import (
    Preprocessing,
    WeightsError,
    find_weights,
    load_weights,
    save_safetensors,
    torch_targets,
)
from train_loop.checkpoints import Checkpoints

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


@pytest.fixture(autouse=True, scope="module")
def no_random_kernels():
    """Lets kernels start at zero: to draw them takes half of building a net.

    Those that matter here are overwritten; where not, a zero is no less wrong.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.keras.initializers.VarianceScaling,
            "__call__",
            lambda self, shape, dtype=None: tf.zeros(shape, dtype),
        )
        yield


def randomize(shapes, seed=1):
    """Returns {name: random array}, so that nothing hides behind a zero.

    Of the size that keeps activations near one; variances are positive.
    """
    random = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        # Uniform, of zero mean and unit variance: normal numbers take longer.
        value = random.random(shape, "float32")
        value -= 0.5
        value *= np.sqrt(12)
        if len(shape) > 1:
            fan_in = np.prod(shape) / max(shape[0], shape[-1])
            value /= np.sqrt(fan_in)
        elif "var" in name:
            value = 1 + value / 4
        elif "gamma" in name or name.endswith("weight"):
            value = 0.7 + value / 10
        else:
            value /= 10
        values[name] = value
    return values


def assign_random(model, seed=1):
    """Replaces all weights but whole numbers."""
    weights_of_floats = [w for w in model.weights if "float" in w.dtype]
    shapes = {w.path: tuple(w.shape) for w in weights_of_floats}
    values = randomize(shapes, seed)
    for weight in weights_of_floats:
        weight.assign(values[weight.path])


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


@functools.cache
def build_small(seed, **options):
    model = ResNet(
        **{
            "stage_sizes": (2, 1),
            "width": 8,
            "stem": "small",
            "num_classes": 7,
            **options,
        }
    )
    model.build((None, 16, 16, 3))
    return model


def small(seed=1, **options):
    """Returns a small built model with random weights.

    For the same arguments it is the same one, with the same weights again.
    """
    model = build_small(seed, **options)
    assign_random(model, seed)
    return model


def save_legacy(model, path):
    """Writes the layout of the files that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


class Application(NamedTuple):
    """A net of keras.applications, its weights' file, and our net for them."""

    name: str
    theirs: tf.keras.Model
    path: pathlib.Path
    ours: ResNet


@pytest.fixture(scope="module")
def application(request, tmp_path_factory):
    name = request.param
    theirs = getattr(tf.keras.applications, APPLICATIONS[name])(
        weights=None,
        classes=7,
        classifier_activation=None,
        input_shape=(64, 64, 3),
    )
    assign_random(theirs)
    path = tmp_path_factory.mktemp("weights") / "model.h5"
    save_legacy(theirs, path)
    yield Application(name, theirs, path, build(name))
    path.unlink()


def use_applications(*names):
    return pytest.mark.parametrize("application", names, indirect=True)


@use_applications(*APPLICATIONS)
def test_keras_applications_weights_give_their_logits(application):
    name, theirs, path, ours = application
    loaded = load_weights(ours, path)
    assert loaded[:2] == ("keras", True)
    assert_same_logits(ours(pictures()), theirs(pictures()))
    package = "resnet_v2" if name.endswith("v2") else "resnet"
    expected = getattr(tf.keras.applications, package).preprocess_input(
        np.arange(12.0).reshape(2, 2, 3)
    )
    mean, stddev, bgr, *others = loaded.preprocessing
    pixels = np.arange(12.0).reshape(2, 2, 3)[..., :: -1 if bgr else 1]
    np.testing.assert_allclose((pixels - mean) / stddev, expected, rtol=1e-6)
    assert others == [224, None, None]


@use_applications("resnet50_keras", "resnet50_v2")
def test_keras_3_weights_files_are_read_too(application, tmp_path):
    _, theirs, _, ours = application
    assign_random(ours, seed=2)
    theirs.save_weights(tmp_path / "model.weights.h5")
    assert load_weights(ours, tmp_path / "model.weights.h5").head_used
    assert_same_logits(ours(pictures()), theirs(pictures()))


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


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *((name, 32) for name in TIMM),
        ("resnet50", 16),
        ("resnet50", 8),
        ("resnet18d", 16),
        ("resnet50d", 16),
    ],
)
def test_timm_weights_give_their_logits(
    name, output_stride, tmp_path, monkeypatch
):
    timm = pytest.importorskip(
        "timm", reason="needs the extra: pip install '.[parity]'"
    )
    # timm averages the last pixels with zeros where dilation has taken a
    # stride's place, and alone where it has not. Ours are alone in both.
    monkeypatch.setattr(
        timm.layers.pool2d_same,
        "pad_same",
        lambda x, *_: timm.layers.padding.F.pad(x, (0, 1, 0, 1), "replicate"),
    )
    options = {"output_stride": output_stride}
    theirs = timm.create_model(name, num_classes=7, **options)
    path = tmp_path / "model.safetensors"
    check_torch_parity(theirs, name, path, **options)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", *TIMM[2:]])
def test_safetensors_round_trip_is_exact(name, tmp_path):
    model, other = build(name, width=16), build(name, width=16)
    assign_random(model)
    save_safetensors(model, tmp_path / "model.safetensors")
    assert load_weights(other, tmp_path / "model.safetensors").head_used
    for mine, read in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, read)
    assert len(torch_targets(model)) == len(model.weights)


def save_keras(model, folder):
    model.save(folder / "model.keras")
    return folder / "model.keras"


def save_inside_another(model, folder):
    """Writes a model in which the net is one of the layers."""
    inputs = tf.keras.Input([16, 16, 3])
    logits = model(tf.keras.layers.Rescaling(1 / 255)(inputs))
    return save_keras(tf.keras.Model(inputs, logits), folder)


def save_weights_h5(model, folder):
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5"


def save_compiled_h5(model, folder):
    """Writes what `ModelCheckpoint` does in `fit`."""
    copy = ResNet.from_config(model.get_config())
    copy.build((None, 16, 16, 3))
    copy.set_weights(model.get_weights())
    copy.compile("adam", "mse")
    copy.optimizer.build(copy.trainable_variables)
    return save_weights_h5(copy, folder)


def save_run(model, folder, step=9):
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    Checkpoints(folder / "checkpoints", model, optimizer).save(step)
    return folder


@pytest.fixture(
    params=[
        save_keras,
        save_inside_another,
        save_weights_h5,
        save_compiled_h5,
        save_run,
    ]
)
def save_own(request):
    """Writes a model to a folder in one of our ways, and returns the path."""
    return request.param


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block": "basic", "stem": "deep", "squeeze_excitation": True},
        {"preactivation": True},
        {"num_classes": None},
        {"trainable": False},
    ],
    ids=str,
)
def test_own_weights_come_back_exactly(save_own, options, tmp_path):
    model = small(**options, name="theirs")
    other = small(**options, name="ours", seed=2)
    loaded = load_weights(other, save_own(model, tmp_path))
    has_head = "num_classes" not in options
    assert loaded == ("own", has_head, Preprocessing())
    assert loaded.preprocessing == (None,) * 6
    for mine, read in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, read, err_msg=mine.path)


def test_own_weights_of_other_classes_keep_the_models_head(save_own, tmp_path):
    theirs = small()
    path = save_own(theirs, tmp_path)
    model = small(num_classes=3, seed=2)
    before = np.array(model.head.kernel)
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    for expected in (str(path), "head/kernel", "(64, 7)", "(64, 3)"):
        assert expected in str(error.value)
    loaded = load_weights(model, path, replace_head=True)
    assert loaded[:2] == ("own", False)
    np.testing.assert_array_equal(model.head.kernel, before)
    assert_same_weights(model, theirs)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_own_weights_with_and_without_head_fit(num_classes, save_own, tmp_path):
    theirs = small(num_classes=3 if num_classes is None else None)
    model = small(num_classes=num_classes, seed=2)
    path = save_own(theirs, tmp_path)
    assert load_weights(model, path, replace_head=True)[:2] == ("own", False)
    assert_same_weights(model, theirs)


@pytest.mark.parametrize("rates", [(0.2, 0.0), (0.0, 0.2)])
def test_a_counter_of_stochastic_depth_is_no_weight(rates, save_own, tmp_path):
    theirs, model = (small(stochastic_depth=rate) for rate in rates)
    model.stem.convs[0].kernel.assign(tf.ones([3, 3, 3, 8]))
    assert load_weights(model, save_own(theirs, tmp_path)).head_used
    assert_same_weights(model, theirs)


def assert_same_weights(model, other):
    """Of all but the classifiers."""
    values = {w.path.partition("/")[2]: np.array(w) for w in other.weights}
    for weight in model.weights:
        name = weight.path.partition("/")[2]
        if not name.startswith("head") and not name.endswith("draws"):
            np.testing.assert_array_equal(weight, values[name], err_msg=name)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"stage_sizes": (2, 2)}, {}),
        ({}, {"stage_sizes": (2, 2)}),
        ({"width": 16}, {}),
        ({"squeeze_excitation": True}, {}),
        ({"block": "basic"}, {}),
    ],
    ids=str,
)
def test_own_weights_of_another_net_are_one_line(
    theirs, ours, save_own, tmp_path
):
    path = save_own(small(**theirs), tmp_path)
    assert_refused(small(**ours, seed=2, name="net"), path, "does not fit net")


def test_own_weights_that_are_not_finite_are_refused(save_own, tmp_path):
    theirs = small()
    theirs.blocks[2].bn2.beta.assign([np.inf] * 16)
    name = "stage2_block1/bn2/beta, of shape (16,)"
    assert_refused(small(seed=2), save_own(theirs, tmp_path), name)


def assert_refused(model, path, expected):
    """In one line, and the model stays as it was."""
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    [line] = str(error.value).splitlines()
    assert str(path) in line
    assert expected in line
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_own_weights_of_other_precision_are_cast(dtype, save_own, tmp_path):
    theirs, model = small(dtype=dtype), small(seed=2)
    load_weights(model, save_own(theirs, tmp_path))
    for mine, read in zip(model.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(read).astype("f4"))


@pytest.mark.parametrize("start", range(0, 60_000, 4096))
def test_own_h5_files_with_a_lost_page_are_one_line(start, tmp_path):
    path = save_weights_h5(small(), tmp_path)
    content = bytearray(path.read_bytes())
    content[start : start + 4096] = bytes(4096)
    path.write_bytes(content)
    model = small(seed=2)
    before = [np.array(weight) for weight in model.weights]
    try:
        load_weights(model, path)
    except WeightsError as error:
        [line] = str(error).splitlines()
        assert str(path) in line
        for weight, value in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(weight, value)


def test_no_code_of_a_file_is_run_whatever_the_process_allows(tmp_path):
    ran = tmp_path / "ran"
    inputs = tf.keras.Input([16, 16, 3])
    # Keras writes neither defaults nor what is bound outside.
    code = eval(f"lambda x: (open({str(ran)!r}, 'w').close(), x)[1]")
    x = tf.keras.layers.Lambda(code)(inputs)
    tf.keras.Model(inputs, small()(x)).save(tmp_path / "model.keras")
    ran.unlink(missing_ok=True)
    global_state.set_global_attribute("safe_mode_saving", False)
    try:
        assert_refused(small(), tmp_path / "model.keras", "cannot be read")
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)
    assert not ran.exists()


def test_model_without_weights_says_how_to_get_them(tmp_path):
    path = save_keras(small(), tmp_path)
    for use in (load_weights, save_safetensors):
        with pytest.raises(WeightsError, match="model.build"):
            use(VARIANTS["resnet_tiny"](), path)


def test_keras_files_of_other_models_are_refused(tmp_path):
    inputs = tf.keras.Input([4])
    tf.keras.Model(inputs, inputs).save(tmp_path / "model.keras")
    assert_refused(small(), tmp_path / "model.keras", "no ResNet")
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", "{}")
    assert_refused(small(), tmp_path / "model.keras", "cannot be read")


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/ckpt-20"])
def test_newest_checkpoint_of_a_run_is_read(place, tmp_path):
    older, newer, model = small(1), small(2), small(3)
    save_run(newer, tmp_path, step=20)
    save_run(older, tmp_path, step=9)
    path = find_weights(str(tmp_path / place), "resnet50")
    assert path == tmp_path / place
    load_weights(model, path)
    assert_same_weights(model, newer)
    load_weights(model, tmp_path / "checkpoints" / "ckpt-9")
    assert_same_weights(model, older)


def empty(path):
    path.write_bytes(b"")


def flip_bytes(path):
    content = path.read_bytes()
    path.write_bytes(
        bytes(byte ^ 255 for byte in content[:200]) + content[200:]
    )


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", [empty, flip_bytes, pathlib.Path.unlink])
def test_a_broken_checkpoint_is_skipped_for_an_older_one(
    suffix, damage, tmp_path, recwarn
):
    older, model = small(1), small(3)
    save_run(older, tmp_path, step=9)
    save_run(small(2), tmp_path, step=20)
    damage(tmp_path / "checkpoints" / f"ckpt-20.{suffix}")
    load_weights(model, tmp_path)
    assert_same_weights(model, older)
    said = [str(w.message) for w in recwarn if "ckpt-20" in str(w.message)]
    # Without an index it is no checkpoint.
    assert len(said) == ((damage, suffix) != (pathlib.Path.unlink, "index"))


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path):
    save_run(small(), tmp_path)
    empty(tmp_path / "checkpoints" / "ckpt-9.data-00000-of-00001")
    assert_refused(small(), tmp_path, "cannot be read as weights: ckpt-9")


def test_a_folder_without_checkpoints_says_what_was_expected(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert_refused(small(), tmp_path, "checkpoints/ckpt-STEP.index")
    with pytest.raises(WeightsError, match="ckpt-STEP.index"):
        find_weights(str(tmp_path), "resnet50")
    with pytest.raises(WeightsError, match="none is not a file"):
        find_weights(str(tmp_path / "none"), "resnet50")


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    tf.train.Checkpoint(other=tf.Variable(1.0)).write(str(tmp_path / "ckpt-1"))
    assert_refused(small(), tmp_path, "has no stem/conv1/kernel")


@use_applications("resnet50_keras")
def test_another_number_of_classes_keeps_the_models_head(application):
    _, _, path, ours = application
    model = build("resnet50_keras", num_classes=3)
    head = np.array(model.head.kernel)
    with pytest.raises(WeightsError, match="predictions"):
        load_weights(model, path)
    loaded = load_weights(model, path, replace_head=True)
    assert loaded[:2] == ("keras", False)
    np.testing.assert_array_equal(model.head.kernel, head)
    load_weights(ours, path)
    assert_same_weights(model, ours)


@use_applications("resnet50_keras")
def test_model_without_head_reads_a_file_with_one(application):
    _, _, path, ours = application
    model = build("resnet50_keras", num_classes=None)
    assert not load_weights(model, path).head_used
    load_weights(ours, path)
    assert_same_weights(model, ours)


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


def change(name, value):
    def damage(path):
        tensors = load_file(path)
        tensors[name] = value(tensors[name])
        save_file(tensors, path)

    return damage


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
        (change("conv1.weight", lambda x: x.astype("f8") * 1e300), "finite"),
        (change("bn1.running_var", lambda x: -abs(x)), "negative"),
        (change("conv1.weight", lambda x: x.astype("c8")), "complex64"),
        (change("conv1.weight", lambda x: x > 0), "bool"),
        (change("fc.bias", lambda x: np.array(x[0])), "fc.bias has shape ()"),
        (truncate, "cannot be read"),
        (replace_by_text, "cannot be read"),
    ],
)
def test_bad_safetensors_are_one_clear_line(tmp_path, damage, expected):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    damage(path)
    assert_refused(small(seed=2), path, expected)


def test_another_architecture_is_named_with_both_shapes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(build("resnext50_32x4d", stage_sizes=(1, 1)), path)
    with pytest.raises(WeightsError) as error:
        load_weights(build("wide_resnet50_2", stage_sizes=(1, 1)), path)
    assert "layer1.0.conv2.weight" in str(error.value)
    assert "(128, 4, 3, 3)" in str(error.value)
    assert "(128, 128, 3, 3)" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + b"0" * 90]
)
def test_bad_h5_is_one_clear_line(tmp_path, content):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    assert_refused(small(), path, "cannot be read")


@use_applications("resnet50_keras")
def test_truncated_h5_is_one_clear_line(application, tmp_path):
    path = tmp_path / "model.h5"
    content = application.path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert_refused(small(), path, "cannot be read")


@use_applications("resnet50_keras")
def test_weights_of_another_kind_of_net_do_not_fit(application):
    model = build("resnet50_v2", width=16)
    assert_refused(model, application.path, "does not fit resnet50_v2")


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"would run code")


def write_old(path):
    path.write_bytes(b"\x80\x02would run code")


@pytest.mark.parametrize("write", [write_zip, write_old])
@pytest.mark.parametrize("name", ["m.pth", "m.PT", "m.pth.tar", "m.ckpt", "m"])
def test_pickles_are_refused_without_reading_them(write, name, tmp_path):
    path = tmp_path / name
    write(path)
    assert_refused(small(), path, "save_file")
    with pytest.raises(WeightsError, match="save_file"):
        find_weights(str(path), "resnet50")


@use_applications("resnet50_keras")
def test_weights_are_found_in_a_whole_model(application, tmp_path):
    """As `model.save("model.h5")` writes them."""
    path = tmp_path / "model.h5"
    with h5py.File(application.path) as file, h5py.File(path, "w") as whole:
        file.copy(file["/"], whole, "model_weights")
    model = application.ours
    load_weights(model, application.path)
    expected = [np.array(weight) for weight in model.weights]
    for weight in model.weights:
        weight.assign(tf.zeros_like(weight))
    load_weights(model, path)
    for weight, value in zip(model.weights, expected, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_safetensors_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    before = path.read_bytes()

    def fail(self, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        save_safetensors(small(seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_imagenet_weights_are_downloaded_and_hashed(monkeypatch, tmp_path):
    """From a folder, in place of keras.applications' server."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(
        "keras.src.backend.config.keras_home", lambda: str(cache)
    )
    content = b"any weights"
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


# What timm's hub says of resnet50.ra_in1k, shortened.
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
IMAGENET = Preprocessing(
    mean=(123.675, 116.28, 103.53), stddev=(58.395, 57.12, 57.375), bgr=False
)


@pytest.fixture
def torch_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, IMAGENET),
        # Of something else.
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
                mean=(127.5, 127.5, 127.5),
                stddev=(63.75, 127.5, 255),
                bgr=False,
                image_size=160,
                crop_fraction=0.875,
                interpolation="bilinear",
            ),
        ),
    ],
    ids=["none", "of something else", "pretrained_cfg", "at the top"],
)
def test_torch_weights_bring_the_preprocessing_beside_them(
    config, expected, torch_file
):
    if config is not None:
        torch_file.with_name("config.json").write_text(json.dumps(config))
    loaded = load_weights(small(seed=2), torch_file)
    assert loaded == ("torch", True, expected)


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
        '{"input_size": [1, 224, 224]}',
        '{"input_size": [3, 0, 0]}',
        '{"crop_pct": "0.9"}',
        '{"crop_pct": 95}',
        '{"interpolation": 3}',
    ],
)
def test_a_damaged_config_is_one_line(content, torch_file):
    config = torch_file.with_name("config.json")
    config.write_text(content)
    model = small(seed=2)
    before = np.array(model.head.kernel)
    with pytest.raises(WeightsError) as error:
        load_weights(model, torch_file)
    [line] = str(error.value).splitlines()
    assert f"{config} is damaged" in line
    np.testing.assert_array_equal(model.head.kernel, before)


def test_timm_weights_come_from_the_hub(monkeypatch, tmp_path):
    hub = pytest.importorskip(
        "huggingface_hub", reason="needs the extra: pip install '.[weights]'"
    )
    asked = []

    def hf_hub_download(repo, filename):
        asked.append((repo, filename))
        if filename == "config.json":
            (tmp_path / filename).write_text(json.dumps(TIMM_CONFIG))
        else:
            save_safetensors(small(), tmp_path / filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    name = "timm/resnet50.a1_in1k"
    path = find_weights(name, "resnet50")
    assert path == tmp_path / "model.safetensors"
    assert sorted(asked) == [(name, "config.json"), (name, "model.safetensors")]
    assert load_weights(small(), path).preprocessing.image_size == 224
