"""Which variant files of weights are of, as far as they tell."""

import json

import pytest
import tensorflow as tf
from applications import build_short, make_short_application, save_legacy
from hub_presets import write_config as write_hub_config
from hub_presets import write_preset
from weight_nets import (
    OWN_WAYS,
    READ_APART,
    assert_refused,
    assert_same_weights,
    build,
    save_keras,
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
    read_num_classes,
    read_preprocessing,
    save_safetensors,
)
from resnet_layers.weights import variants


def save_torch(model, folder):
    save_safetensors(model, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Returns a folder as the hub has it, without a config."""
    save_torch(small(), tmp_path)
    return tmp_path


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_a_folder_as_downloaded_is_like_its_file(place, folder):
    write_config(folder, architecture="resnet50d", crop_pct=0.95)
    found = find_weights(str(folder / place))
    assert found.path == folder / "model.safetensors"
    assert found.variant == "resnet50d"
    assert found.preprocessing.crop_fraction == 0.95
    assert read_preprocessing(folder / place) == found.preprocessing
    model = small(seed=2)
    loaded = load_weights(model, folder / place)
    assert loaded == ("torch", True, found.preprocessing, ())
    assert_same_weights(model, small())


def test_timms_config_names_the_variant(folder):
    for name in VARIANTS:
        write_config(folder, architecture=name)
        assert find_weights(str(folder)).variant == name
        write_config(folder, pretrained_cfg={"architecture": name})
        assert find_weights(str(folder)).variant == name


@pytest.mark.parametrize("config", [None, {}, {"layers": 3}])
def test_without_a_name_no_variant_is_known(config, folder):
    if config is not None:
        write_config(folder, **config)
    assert find_weights(str(folder)).variant is None


@pytest.mark.parametrize("save", OWN_WAYS)
def test_of_our_own_files_no_variant_is_known(save, tmp_path):
    path = save(small(), tmp_path)
    assert find_weights(str(path)) == (path, None, Preprocessing())


@pytest.mark.parametrize("save", [*READ_APART, save_torch])
def test_files_tell_how_many_classes_they_have(save, tmp_path):
    # Squeeze-and-excitation has matrices and biases, too.
    path = save(small(attention="se", stem="deep"), tmp_path)
    assert read_num_classes(path) == 7


def test_files_without_a_classifier_have_no_number_of_classes(tmp_path):
    path = save_torch(small(num_classes=None), tmp_path)
    assert read_num_classes(path) is None


def test_files_of_others_tell_how_many_classes_they_have(tmp_path):
    write_preset(tmp_path)
    assert read_num_classes(tmp_path) == 7


FLAGS = """--model=resnet50d
--normalization=1.0:2.0:3.0:4.0:5.0:6.0:bgr
--image_size=40
--crop_fraction=0.95
--interpolation=bicubic
"""


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/ckpt-3"])
def test_a_run_tells_its_variant_and_what_its_images_went_through(
    place, tmp_path
):
    model = small()
    checkpoint = tf.train.Checkpoint(model=model)
    checkpoint.write(str(tmp_path / "checkpoints/ckpt-3"))
    (tmp_path / "flags.txt").write_text(FLAGS)
    found = find_weights(str(tmp_path / place))
    assert found.variant == "resnet50d"
    normalization = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), bgr=True)
    assert found.preprocessing == (normalization, 40, 0.95, "bicubic")
    (tmp_path / "flags.txt").write_text("--normalization=caffe\n")
    found = find_weights(str(tmp_path / place))
    assert found.variant is None
    caffe = Preprocessing(NORMALIZATIONS["caffe"])
    assert found.preprocessing == caffe
    (tmp_path / "flags.txt").write_text("--normalization=7:5\n--channels=1\n")
    found = find_weights(str(tmp_path / place))
    assert found.preprocessing.normalization == Normalization((7.0,), (5.0,))
    (tmp_path / "flags.txt").write_text("--image_size=many\n")
    with pytest.raises(WeightsError) as error:
        read_preprocessing(tmp_path / place)
    assert "\n" not in str(error.value)


def test_architectures_of_no_variant_are_one_line(folder):
    """Some have the names and shapes of another one, and compute others."""
    write_config(folder, architecture="ecaresnet50d_pruned")
    with pytest.raises(WeightsError) as error:
        find_weights(str(folder))
    [line] = str(error.value).splitlines()
    assert "of the architecture ecaresnet50d_pruned" in line
    assert "the nearest are" in line
    assert "resnet50" in line
    write_config(folder, architecture="vit")
    with pytest.raises(WeightsError, match="no row of VARIANTS$"):
        find_weights(str(folder))


@pytest.mark.parametrize("name", ["resnet50_keras", "resnet50_v2"])
def test_files_of_keras_applications_tell_their_variant(
    name, tmp_path, monkeypatch
):
    path = tmp_path / "model.h5"
    save_legacy(make_short_application(name), path)
    sizes = {(2, 2): "resnet50"}
    assert find_weights(str(path)).variant is None
    monkeypatch.setattr(variants, "KERAS_SIZES", sizes)
    assert find_weights(str(path)).variant == name


@pytest.mark.parametrize(
    ("name", "options", "trait"),
    [
        ("resnet50_keras", {"stride_site": "3x3"}, "stride_site='3x3'"),
        ("resnet50_v2", {"downsample": "first"}, "downsample='first'"),
        ("resnet50_v2", {"stem": "imagenet"}, "pool='max'"),
    ],
)
def test_files_of_keras_applications_fit_models_that_compute_the_same(
    name, options, trait, tmp_path
):
    path = tmp_path / "model.h5"
    save_legacy(make_short_application(name), path)
    assert read_num_classes(path) == 7
    load_weights(build_short(name), path)
    if name == "resnet50_keras":
        load_weights(build_short("resnet50_v1"), path)
    assert_refused(build_short(name, **options), path, trait)


@pytest.mark.parametrize(
    "options",
    [
        {"stride_site": "1x1"},
        {"antialias": "average"},
        {"weight_standardization": True},
    ],
)
@pytest.mark.parametrize("save", ["safetensors", "keras"])
def test_our_files_say_what_names_do_not_show(options, save, tmp_path):
    path = tmp_path / "model.safetensors"
    theirs = small(**options)
    if save == "keras":
        path = save_keras(theirs, tmp_path)
    else:
        save_safetensors(theirs, path)
    [(name, value)] = options.items()
    assert_refused(small(seed=2), path, f"{name}={value!r}")
    model = small(seed=2, **options)
    load_weights(model, path)
    assert_same_weights(model, theirs)


def test_torchs_files_are_of_models_with_the_stride_in_the_3x3(folder):
    path = folder / "model.safetensors"
    assert_refused(small(stride_site="1x1"), path, "stride_site='3x3'")
    write_config(folder, architecture="resnetblur50")
    assert_refused(small(), path, "of resnetblur50, with antialias='blur'")
    load_weights(small(seed=2, antialias="blur"), path)


def test_presets_do_not_fit_models_that_compute_something_else(tmp_path):
    write_preset(tmp_path)
    options = {"stage_sizes": (1, 1)}
    load_weights(build("resnet50", **options), tmp_path)
    path = tmp_path / "model.weights.h5"
    model = build("resnet50_v1", **options)
    assert_refused(model, path, "stride_site='3x3'")
    # Shortcuts that pool have the same names and shapes.
    write_hub_config(
        tmp_path,
        input_conv_filters=[32, 32, 64],
        input_conv_kernel_sizes=[3, 3, 3],
        block_type="bottleneck_block_vd",
    )
    model = build("resnet50", **options)
    assert_refused(model, path, "shortcut='pooled_projection'")


@pytest.mark.parametrize("content", ["{", "[]", '{"architecture": ["a"]}'])
def test_a_damaged_config_is_one_line(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(WeightsError) as error:
        find_weights(str(folder))
    [line] = str(error.value).splitlines()
    assert "config.json is damaged" in line
