"""Which variant files of weights are of, as far as they tell."""

import json

import pytest
import tensorflow as tf
from weight_nets import OWN_WAYS, assert_same_weights, small

from resnet_layers import (
    NORMALIZATIONS,
    VARIANTS,
    Normalization,
    Preprocessing,
    WeightsError,
    find_weights,
    load_weights,
    read_preprocessing,
    save_safetensors,
)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder as the hub has it, without a config."""
    save_safetensors(small(), tmp_path / "model.safetensors")
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
    assert loaded == ("torch", True, found.preprocessing)
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


@pytest.mark.parametrize("content", ["{", "[]", '{"architecture": ["a"]}'])
def test_a_damaged_config_is_one_line(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(WeightsError) as error:
        find_weights(str(folder))
    [line] = str(error.value).splitlines()
    assert "config.json is damaged" in line
