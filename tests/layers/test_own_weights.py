"""Files and runs of this library: weights load bitwise identical."""

import pathlib
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state
from weight_models import (
    OWN_FORMATS,
    OWN_READERS,
    assert_load_fails,
    assert_same_weights,
    assign_random,
    save_keras,
    save_run,
    save_weights_h5,
    small,
    zero_kernels,
)

from resnet_layers import (
    Preprocessing,
    ResNet,
    WeightsError,
    find_weights,
    load_weights,
    save_safetensors,
)

pytestmark = pytest.mark.slow


BASIC = {"block": "basic", "stem": "deep", "attention": "se"}
HEADLESS = {"preactivation": True, "num_classes": None, "trainable": False}


@pytest.mark.parametrize(
    ("save", "options"),
    [
        *((save, {}) for save in OWN_FORMATS),
        *((save, BASIC) for save in OWN_READERS),
        *((save, HEADLESS) for save in OWN_READERS),
    ],
)
def test_weights_load_bitwise_identical(save, options, tmp_path):
    model = small(**options, name="theirs")
    other = small(**options, name="ours", seed=2)
    has_head = "num_classes" not in options
    loaded = load_weights(other, save(model, tmp_path))
    assert loaded == ("own", has_head, Preprocessing(), ())
    for mine, read in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, read, err_msg=mine.path)


@pytest.mark.parametrize("save", OWN_READERS)
def test_other_number_of_classes_keeps_the_models_head(save, tmp_path):
    theirs = small()
    path = save(theirs, tmp_path)
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


@pytest.mark.parametrize(
    ("save", "num_classes"),
    [*((save, None) for save in OWN_READERS), (save_weights_h5, 7)],
)
def test_weights_with_and_without_head_load(num_classes, save, tmp_path):
    theirs = small(num_classes=7 if num_classes is None else None)
    model = small(num_classes=num_classes, seed=2)
    path = save(theirs, tmp_path)
    assert load_weights(model, path, replace_head=True)[:2] == ("own", False)
    assert_same_weights(model, theirs)


@pytest.mark.parametrize(
    ("save", "levels"),
    [*((save, 2) for save in OWN_READERS), (save_weights_h5, 1)],
)
def test_weights_load_into_a_nested_resnet(save, levels, tmp_path):
    theirs, model = small(), small(seed=2)
    outer = model
    for _ in range(levels):
        inputs = tf.keras.Input([16, 16, 3])
        outer = tf.keras.Model(inputs, outer(inputs))
    load_weights(outer, save(theirs, tmp_path))
    assert_same_weights(model, theirs)
    file = tmp_path / "model.safetensors"
    save_safetensors(outer, file)
    read = small(seed=3)
    load_weights(read, file)
    assert_same_weights(read, theirs)


def test_models_without_exactly_one_resnet_are_rejected(tmp_path):
    path = save_weights_h5(small(), tmp_path)
    inputs = tf.keras.Input([16, 16, 3])
    outputs = [small()(inputs), small(seed=2)(inputs)]
    for name, other in (
        ("none", tf.keras.Model(inputs, inputs, name="none")),
        ("stages", tf.keras.Model(inputs, small().features(inputs))),
        ("two", tf.keras.Model(inputs, outputs, name="two")),
    ):
        for use in (load_weights, save_safetensors):
            with pytest.raises(
                WeightsError, match="Pass a single ResNet"
            ) as error:
                use(other, path)
            [line] = str(error.value).splitlines()
            assert other.name in line, name


@pytest.mark.parametrize("save", OWN_READERS)
def test_weights_of_a_backbone_load(save, tmp_path):
    with zero_kernels():
        theirs = ResNet(stage_sizes=(1, 1), width=8, num_classes=7)
        theirs.features(tf.keras.Input([16, 16, 3]))
        model = ResNet.from_config(theirs.get_config())
        model.build((None, 16, 16, 3))
        model.features(tf.keras.Input([16, 16, 3]))
    assign_random(theirs)
    load_weights(model, save(theirs, tmp_path))
    assert_same_weights(model, theirs)


@pytest.mark.parametrize(
    ("save", "rates"),
    [
        *((save, (0.2, 0.0)) for save in OWN_READERS),
        (save_weights_h5, (0.0, 0.2)),
    ],
)
def test_state_of_stochastic_depth_is_not_a_weight(rates, save, tmp_path):
    theirs, model = (small(stochastic_depth=rate) for rate in rates)
    model.stem.convs[0].kernel.assign(tf.ones([3, 3, 3, 8]))
    assert load_weights(model, save(theirs, tmp_path)).head_used
    assert_same_weights(model, theirs)


def test_files_of_version_0_1_0_load(tmp_path):
    theirs, model = (small(seed, stochastic_depth=0.2) for seed in (1, 2))
    path = save_weights_h5(theirs, tmp_path)
    with h5py.File(path, "a") as file:
        drop = file["blocks/bottleneck_block_2/drop"]
        group = drop.require_group("vars")
        group.attrs["name"] = "drop"
        group["0"] = np.int64(7)
    load_weights(model, path)
    assert_same_weights(model, theirs)
    again = small(seed=3, stochastic_depth=0.2)
    again.load_weights(path)
    assert_same_weights(again, theirs)


BIG = {"stage_sizes": (2, 2)}


@pytest.mark.parametrize(
    ("save", "theirs", "ours"),
    [
        # Some files number blocks, others have their paths.
        *((save, BIG, {}) for save in OWN_READERS),
        *((save, {}, BIG) for save in OWN_READERS),
        (save_weights_h5, {"width": 16}, {}),
        (save_weights_h5, {"attention": "se"}, {}),
        (save_weights_h5, {"block": "basic"}, {}),
    ],
)
def test_weights_of_another_architecture_are_rejected(
    save, theirs, ours, tmp_path
):
    path = save(small(**theirs), tmp_path)
    assert_load_fails(
        small(**ours, seed=2, name="net"), path, "does not match net"
    )


@pytest.mark.parametrize("save", OWN_READERS)
def test_weights_that_are_not_finite_are_rejected(save, tmp_path):
    theirs = small()
    theirs.blocks[2].bn2.beta.assign([np.inf] * 16)
    name = "stage2_block1/bn2/beta of shape (16,)"
    assert_load_fails(small(seed=2), save(theirs, tmp_path), name)


@pytest.mark.parametrize(
    ("save", "dtype"),
    [
        *((save, "bfloat16") for save in OWN_READERS),
        (save_keras, "float16"),
        (save_run, "float64"),
    ],
)
def test_weights_of_other_dtypes_are_cast(dtype, save, tmp_path):
    theirs, model = small(dtype=dtype), small(seed=2)
    load_weights(model, save(theirs, tmp_path))
    for mine, read in zip(model.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(read).astype("f4"))


def test_h5_files_with_a_lost_page_are_rejected_in_one_line(tmp_path):
    path = save_weights_h5(small(), tmp_path)
    content = path.read_bytes()
    model = small(seed=2)
    before = model.get_weights()
    for start in range(0, len(content), 4096):
        page = bytes(len(content[start : start + 4096]))
        path.write_bytes(content[:start] + page + content[start + 4096 :])
        try:
            load_weights(model, path)
        except WeightsError as error:
            [line] = str(error).splitlines()
            assert str(path) in line
            for weight, value in zip(model.weights, before, strict=True):
                np.testing.assert_array_equal(weight, value, err_msg=start)
        else:
            model.set_weights(before)


def test_code_in_a_file_never_runs(tmp_path):
    ran = tmp_path / "ran"
    inputs = tf.keras.Input([16, 16, 3])
    # Keras stores neither defaults nor closures.
    code = eval(f"lambda x: (open({str(ran)!r}, 'w').close(), x)[1]")
    x = tf.keras.layers.Lambda(code)(inputs)
    tf.keras.Model(inputs, small()(x)).save(tmp_path / "model.keras")
    ran.unlink(missing_ok=True)
    global_state.set_global_attribute("safe_mode_saving", False)
    model = small(seed=2)
    try:
        load_weights(model, tmp_path / "model.keras")
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)
    assert not ran.exists()
    assert_same_weights(model, small())


def resnet_with_other_layers(seed):
    """Returns a model with a `ResNet` and other layers, one named "head"."""
    net = small(seed=seed, num_classes=None, name=f"net{seed}")
    inputs = tf.keras.Input([16, 16, 3])
    x = tf.keras.layers.BatchNormalization(name="input_bn")(inputs)
    logits = tf.keras.layers.Dense(3, name="head")(net(x))
    model = tf.keras.Model(inputs, logits)
    assign_random(model, seed)
    return model, net


@pytest.mark.parametrize("save", [save_keras, save_weights_h5])
def test_layers_around_a_resnet_load_into_the_same_layers(save, tmp_path):
    theirs, net = resnet_with_other_layers(1)
    path = save(theirs, tmp_path)
    ours, _ = resnet_with_other_layers(2)
    load_weights(ours, path)
    for mine, read in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(mine, read, err_msg=mine.path)
    for model in (small(seed=3, num_classes=None), small(seed=3)):
        assert_load_fails(
            model, path, "other layers around the ResNet (input_bn, head)"
        )
    # A file of the ResNet alone leaves the other layers unchanged.
    ours, _ = resnet_with_other_layers(2)
    kernel = np.array(ours.get_layer("head").kernel)
    load_weights(ours, save(net, tmp_path))
    np.testing.assert_array_equal(ours.get_layer("head").kernel, kernel)


def test_keras_files_of_other_models_are_rejected(tmp_path):
    inputs = tf.keras.Input([4])
    path = save_keras(tf.keras.Model(inputs, inputs), tmp_path)
    assert_load_fails(small(), path, "no ResNet")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
    assert_load_fails(small(), path, "cannot be read")


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/ckpt-20"])
def test_newest_checkpoint_of_a_run_loads(place, tmp_path):
    older, newer, model = small(1), small(2), small(3)
    save_run(newer, tmp_path, step=20)
    save_run(older, tmp_path, step=9)
    found = find_weights(str(tmp_path / place))
    assert found == (tmp_path / place, None, Preprocessing())
    load_weights(model, found.path)
    assert_same_weights(model, newer)
    load_weights(model, tmp_path / "checkpoints" / "ckpt-9")
    assert_same_weights(model, older)


@pytest.mark.parametrize("folder", ["br[1]ack", "back\\slash", "a*b"])
def test_paths_with_pattern_characters_load(folder, tmp_path):
    # TensorFlow treats the prefix of a checkpoint as a pattern.
    net, model = small(1), small(2)
    save_run(net, tmp_path / folder, step=2)
    found = find_weights(str(tmp_path / folder))
    load_weights(model, found.path)
    assert_same_weights(model, net)
    for path in (tmp_path / folder / "checkpoints").iterdir():
        path.rename(path.with_name(path.name.replace("ckpt-2", "best[2]")))
    # A checkpoint whose name has the same start.
    save_run(small(3), tmp_path / folder, step=2)
    model = small(2)
    load_weights(model, tmp_path / folder / "checkpoints/best[2]")
    assert_same_weights(model, net)


def test_saving_safetensors_does_not_follow_a_planted_link(tmp_path):
    path, mine = tmp_path / "net.safetensors", tmp_path / "mine"
    mine.write_text("mine")
    path.with_name(f"{path.name}.tmp").symlink_to(mine)
    save_safetensors(small(1), path)
    assert mine.read_text() == "mine"
    model = small(2)
    load_weights(model, path)
    assert_same_weights(model, small(1))
    assert {each.name for each in tmp_path.iterdir()} == {
        *("net.safetensors", "net.safetensors.tmp", "mine")
    }


def truncate(path):
    path.write_bytes(b"")


def flip_bytes(path):
    content = path.read_bytes()
    path.write_bytes(
        bytes(byte ^ 255 for byte in content[:200]) + content[200:]
    )


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", [truncate, flip_bytes, pathlib.Path.unlink])
def test_damaged_checkpoint_is_skipped_for_an_older_one(
    suffix, damage, tmp_path, recwarn
):
    older, model = small(1), small(3)
    save_run(older, tmp_path, step=9)
    save_run(small(2), tmp_path, step=20)
    damage(tmp_path / "checkpoints" / f"ckpt-20.{suffix}")
    load_weights(model, tmp_path)
    assert_same_weights(model, older)
    warnings = [w for w in recwarn if "ckpt-20" in str(w.message)]
    # Without an index there is no checkpoint.
    assert len(warnings) == ((damage, suffix) != (pathlib.Path.unlink, "index"))
    # The warning points at the caller.
    assert all(w.filename == __file__ for w in warnings)


def test_run_without_an_intact_checkpoint_is_rejected(tmp_path):
    save_run(small(), tmp_path)
    truncate(tmp_path / "checkpoints" / "ckpt-9.data-00000-of-00001")
    assert_load_fails(small(), tmp_path, "cannot be read as weights (ckpt-9")


def test_checkpoints_of_other_objects_are_rejected(tmp_path):
    tf.train.Checkpoint(other=tf.Variable(1.0)).write(str(tmp_path / "ckpt-1"))
    assert_load_fails(small(), tmp_path, "has no stem/conv1/kernel")
