"""Files that are damaged, unsupported or dangerous, and how ours are saved."""

import os
import zipfile

import h5py
import numpy as np
import pytest
from applications import build_short, make_short_application, save_legacy
from safetensors.numpy import load_file, save, save_file
from weight_models import (
    assert_load_fails,
    assert_same_weights,
    build,
    random_images,
    save_keras,
    save_weights_h5,
    small,
    zero_kernels,
)

from resnet_layers import (
    VARIANTS,
    ResNet,
    WeightsError,
    find_weights,
    load_weights,
    save_safetensors,
)
from resnet_layers.weights import assign
from resnet_layers.weights.names import Target, torch_targets


def test_model_must_be_built(tmp_path):
    path = save_keras(small(), tmp_path)
    for use in (load_weights, save_safetensors):
        with pytest.raises(WeightsError, match="model.build"):
            use(VARIANTS["resnet_tiny"](), path)


def test_folder_without_weights_is_rejected(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert_load_fails(small(), tmp_path, "checkpoints/ckpt-STEP.index")
    with pytest.raises(WeightsError, match="ckpt-STEP.index"):
        find_weights(str(tmp_path), "resnet50")
    with pytest.raises(WeightsError, match="none: not found"):
        find_weights(str(tmp_path / "none"), "resnet50")


def save_torch(model, folder):
    save_safetensors(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def remove_a_tensor(path):
    tensors = load_file(path)
    del tensors["layer2.0.bn1.bias"]
    save_file(tensors, path)


def add_a_tensor(path):
    save_file({**load_file(path), "extra.weight": np.zeros(3, "f4")}, path)


def insert_a_nan(path):
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
        (insert_a_nan, "layer2.0.bn1.bias"),
        (change("conv1.weight", lambda x: x.astype("f8") * 1e300), "finite"),
        (
            change("fc.bias", lambda x: x * np.inf),
            "fc.bias of shape (7,) has values",
        ),
        (change("bn1.running_var", lambda x: -abs(x)), "negative"),
        (change("conv1.weight", lambda x: x.astype("c8")), "complex64"),
        (change("conv1.weight", lambda x: x > 0), "bool"),
        (change("fc.bias", lambda x: np.array(x[0])), "fc.bias has shape ()"),
        (truncate, "cannot be read"),
        (replace_by_text, "cannot be read"),
    ],
)
def test_damaged_safetensors_are_rejected_in_one_line(
    tmp_path, damage, expected
):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    damage(path)
    assert_load_fails(small(seed=2), path, expected)


def test_shape_mismatch_is_reported_with_both_shapes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(build("resnext50_32x4d", stage_sizes=(1, 1)), path)
    with pytest.raises(WeightsError) as error:
        load_weights(build("wide_resnet50_2", stage_sizes=(1, 1)), path)
    assert "layer1.0.conv2.weight" in str(error.value)
    assert "(128, 4, 3, 3)" in str(error.value)
    assert "(128, 128, 3, 3)" in str(error.value)


def renamed(path, rename):
    save_file({rename(n): t for n, t in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("rename", "notes"),
    [
        (lambda n: n, ()),
        (lambda n: f"module.{n}", ("tensor names have the prefix 'module.'",)),
        (
            lambda n: f"_orig_mod.model.{n}",
            ("tensor names have the prefix '_orig_mod.model.'",),
        ),
        (
            lambda n: n.replace("fc.", "fc.1."),
            ("the classifier is named 'fc.1'",),
        ),
        (
            lambda n: f"backbone.{n}".replace("backbone.fc", "head.linear"),
            (
                "tensor names have the prefix 'backbone.'",
                "the classifier is named 'head.linear'",
            ),
        ),
    ],
)
def test_prefixes_and_classifier_names_are_recognized(rename, notes, tmp_path):
    path = tmp_path / "model.safetensors"
    theirs, model = small(), small(seed=2)
    save_safetensors(theirs, path)
    renamed(path, rename)
    assert load_weights(model, path).notes == notes
    for mine, read in zip(model.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(mine, read)
    without_head = small(seed=3, num_classes=None)
    assert not load_weights(without_head, path).head_used
    assert_same_weights(without_head, theirs)


def test_convolutional_classifiers_are_recognized(tmp_path):
    path = tmp_path / "model.safetensors"
    options = {"preactivation": True, "use_bias": False}
    theirs, model = small(**options), small(seed=2, **options)
    save_safetensors(theirs, path)
    renamed(path, lambda n: f"module.{n}")
    assert load_weights(model, path).notes == (
        "tensor names have the prefix 'module.'",
    )
    assert_same_weights(model, theirs)


def test_weight_average_wins_in_files_with_both(tmp_path):
    path = tmp_path / "model.safetensors"
    theirs, model = small(), small(seed=2)
    save_safetensors(model, path)
    last = load_file(path)
    save_safetensors(theirs, path)
    average = load_file(path)
    both = {f"model.{n}": t for n, t in last.items()}
    save_file({**both, **{f"ema.{n}": t for n, t in average.items()}}, path)
    assert load_weights(model, path).notes == (
        "tensor names have the prefix 'ema.'",
    )
    assert_same_weights(model, theirs)
    # It is ambiguous which of these to load.
    save_file({**both, **{f"other.{n}": t for n, t in last.items()}}, path)
    assert_load_fails(model, path, "other.conv1.weight, model.conv1.weight")


def test_unmatched_name_is_reported_with_the_nearest(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    renamed(path, lambda n: n.replace("layer1.0.conv1", "layer1.0.conv_1"))
    expected = "; nearest: layer1.0.conv_1.weight"
    assert_load_fails(small(seed=2), path, expected)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + b"0" * 90]
)
def test_damaged_h5_is_rejected_in_one_line(tmp_path, content):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    assert_load_fails(small(), path, "cannot be read")


def link_outside(file, name, other):
    file[name] = h5py.ExternalLink(other, "secret")


def store_outside(file, name, other):
    with h5py.File(other) as content:
        offset = content["secret"].id.get_offset()
    shape = (7,)
    file.create_dataset(name, shape, "f4", external=[(other, offset, 28)])


def show_outside(file, name, other):
    layout = h5py.VirtualLayout((7,), "f4")
    layout[:] = h5py.VirtualSource(other, "secret", (7,))
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    "add_reference", [link_outside, store_outside, show_outside]
)
@pytest.mark.parametrize("save", [save_weights_h5, save_keras])
def test_references_to_other_files_are_rejected(add_reference, save, tmp_path):
    # Otherwise, untrusted weights could read any file into the model.
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(7, dtype="f4")
    path = save_weights_h5(small(), tmp_path)
    with h5py.File(path, "a") as file:
        assert file["head/vars/1"].shape == (7,)
        del file["head/vars/1"]
        add_reference(file, "head/vars/1", str(other))
    with h5py.File(path) as file:
        # The reference works in h5py.
        assert file["head/vars/1"][6] == 6
    if save is save_keras:
        weights, path = path, save(small(), tmp_path)
        replace_member(path, "model.weights.h5", weights.read_bytes())
    model = small(seed=2)
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(
        WeightsError, match="is stored in another file"
    ) as error:
        load_weights(model, path)
    assert "head/vars/1" in str(error.value)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def replace_member(path, name, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as file:
        members = {each: file.read(each) for each in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for each, value in {**members, name: content}.items():
            file.writestr(each, value)


@pytest.mark.parametrize("name", ["model.weights.h5", "config.json"])
def test_archives_are_checked_before_unpacking(name, tmp_path, monkeypatch):
    path = save_keras(small(), tmp_path)
    config = zipfile.ZipFile(path).read("config.json")
    # A compressed file loads too, and text compresses well.
    padded = config + b" " * 10**5
    replace_member(path, "config.json", padded, zipfile.ZIP_DEFLATED)
    load_weights(small(seed=2), path)
    replace_member(path, name, b" " * 2**25, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    assert_load_fails(
        small(seed=2), path, f"member {name} would unpack to 33,554,"
    )


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    """Returns a file of keras.applications with the start of a ResNet-50."""
    path = tmp_path_factory.mktemp("weights") / "model.h5"
    save_legacy(make_short_application("resnet50_keras"), path)
    return path


def test_truncated_h5_is_rejected_in_one_line(keras_file, tmp_path):
    path = tmp_path / "model.h5"
    content = keras_file.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert_load_fails(small(), path, "cannot be read")


def test_weights_of_another_architecture_are_rejected(keras_file):
    model = build_short("resnet50_v2", width=16)
    assert_load_fails(model, keras_file, "does not match resnet50_v2")


def small_of(channels):
    with zero_kernels():
        model = ResNet(stage_sizes=(2, 1), num_classes=7, width=8, stem="small")
        model.build((None, 16, 16, channels))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "channels"),
    [*((save_torch, n) for n in (1, 2, 4, 7)), (save_weights_h5, 4)],
)
def test_kernels_are_adapted_to_channels_as_in_timm(channels, save, tmp_path):
    theirs = small()
    path = save(theirs, tmp_path)
    kernel = np.asarray(theirs.stem.convs[0].kernel)
    # As timm's `adapt_input_conv`.
    if channels == 1:
        expected = kernel.sum(2, keepdims=True)
    else:
        expected = np.concatenate([kernel] * 3, 2)[:, :, :channels]
        expected = expected * 3 / channels
    model = small_of(channels)
    assert_load_fails(model, path, "adapt_channels=True")
    load_weights(model, path, adapt_channels=True)
    np.testing.assert_allclose(model.stem.convs[0].kernel, expected, rtol=1e-6)
    np.testing.assert_array_equal(model.head.kernel, theirs.head.kernel)


def test_adapted_kernels_keep_the_logits_of_gray_images(tmp_path):
    theirs, model = small(), small_of(1)
    load_weights(model, save_torch(theirs, tmp_path), adapt_channels=True)
    gray = random_images(16)[..., :1]
    np.testing.assert_allclose(
        model(gray), theirs(np.repeat(gray, 3, axis=-1)), atol=1e-4
    )
    # In the other direction: the mean of the channels.
    path = save_torch(model, tmp_path)
    load_weights(theirs, path, adapt_channels=True)
    colors = random_images(16)
    np.testing.assert_allclose(
        theirs(colors), model(colors.mean(-1, keepdims=True)), atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_safetensors_of_other_dtypes_are_cast(dtype, tmp_path):
    theirs, model = small(dtype=dtype), small(seed=2)
    save_safetensors(theirs, tmp_path / "model.safetensors")
    load_weights(model, tmp_path / "model.safetensors")
    for mine, read in zip(model.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(read).astype("f4"))


def test_safetensors_are_byte_identical_to_the_package(tmp_path):
    path = tmp_path / "model.safetensors"
    for dtype in ("float32", "bfloat16"):
        model = small(dtype=dtype, stem="deep", attention="se")
        save_safetensors(model, path)
        content = path.read_bytes()
        assert content == save(load_file(path), metadata={"format": "pt"})


def test_safetensors_are_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_safetensors(small(), path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    before = path.read_bytes()
    model = small(seed=2)
    targets = torch_targets(model)

    def fail(value):
        if value.strides[0]:
            raise OSError("No space left on device")
        return value

    targets["stem"] = Target(model.stem.bns[0].gamma, write=fail)
    monkeypatch.setattr(assign, "torch_targets", lambda model: targets)
    with pytest.raises(OSError, match="No space"):
        save_safetensors(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
