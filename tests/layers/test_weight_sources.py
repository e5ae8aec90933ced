"""Sources of weights, with folders instead of servers."""

import hashlib
import pathlib

import pytest
from applications import make_short_application, save_legacy
from hub_presets import write_preset
from weight_models import small

from resnet_layers import (
    NORMALIZATIONS,
    Preprocessing,
    WeightsError,
    find_weights,
    is_of_hub,
    load_weights,
    save_safetensors,
)
from resnet_layers.weights import downloads

CAFFE = Preprocessing(NORMALIZATIONS["caffe"], 224)


def test_imagenet_weights_are_downloaded_and_verified(monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(
        "keras.src.backend.config.keras_home", lambda: str(cache)
    )
    file = tmp_path / "resnet50.h5"
    save_legacy(make_short_application("resnet50_keras"), file)
    monkeypatch.setattr(downloads, "IMAGENET_URL", f"file://{tmp_path}/{{}}.h5")
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    files = {"resnet50_keras": ("resnet50", md5)}
    monkeypatch.setattr(downloads, "IMAGENET_FILES", files)
    found = find_weights("imagenet", "resnet50_keras")
    assert found[1:] == ("resnet50_keras", CAFFE)
    assert found.path.read_bytes() == file.read_bytes()
    # The default variant.
    assert find_weights("imagenet") == found
    found.path.unlink()
    files["resnet50_keras"] = ("resnet50", "0" * 32)
    with pytest.raises(WeightsError, match="cannot be downloaded") as error:
        find_weights("imagenet", "resnet50_keras")
    assert "\n" not in str(error.value)


def test_variant_without_imagenet_weights_is_rejected():
    with pytest.raises(
        WeightsError, match="variant=resnet18: .* Use one of resnet50_keras"
    ):
        find_weights("imagenet", "resnet18")


@pytest.fixture
def server(tmp_path):
    """Returns the folder of the hub's repositories."""
    return tmp_path / "server"


@pytest.fixture
def hub(monkeypatch, server, tmp_path):
    """Returns the requests to a hub whose repositories are folders."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    package = pytest.importorskip(
        "huggingface_hub", reason="needs the extra: pip install '.[weights]'"
    )
    requests = []

    def snapshot_download(repository, allow_patterns):
        requests.append((repository, allow_patterns))
        if not (server / repository).is_dir():
            raise OSError("404 Client Error:\nRepository Not Found")
        return str(server / repository)

    monkeypatch.setattr(package, "snapshot_download", snapshot_download)
    return requests


def test_timm_weights_come_from_the_hub(hub, server):
    name = "timm/resnet50.a1_in1k"
    # The parent folder of a path does not count as one.
    pathlib.Path("timm").mkdir()
    folder = server / name
    folder.mkdir(parents=True)
    save_safetensors(small(), folder / "model.safetensors")
    (folder / "config.json").write_text(
        '{"architecture": "resnet50", "input_size": [3, 160, 160]}'
    )
    found = find_weights(name)
    expected = Preprocessing(NORMALIZATIONS["imagenet"], 160)
    assert found == (folder / "model.safetensors", "resnet50", expected)
    assert hub == [(name, ["config.json", "model.safetensors"])]
    assert load_weights(small(), found.path).preprocessing == expected


def test_presets_come_from_the_hub(hub, server):
    name = "keras/resnet_50_imagenet"
    folder = server / name
    folder.mkdir(parents=True)
    write_preset(folder)
    (folder / "config.json").unlink()
    found = find_weights(name)
    assert found[:2] == (folder / "model.weights.h5", None)
    assert found.preprocessing.interpolation == "bicubic"
    [(_, files)] = hub
    assert {path.name for path in folder.iterdir()} < set(files)


@pytest.mark.parametrize("name", ["timm/none", "keras/none"])
def test_missing_repository_is_reported_in_one_line(name, hub):
    with pytest.raises(WeightsError) as error:
        find_weights(name)
    [line] = str(error.value).splitlines()
    assert f"https://huggingface.co/{name}: cannot be downloaded" in line


def test_repository_without_weights_is_rejected(hub, server):
    (server / "keras/empty").mkdir(parents=True)
    with pytest.raises(WeightsError, match="keras/empty: no weights found"):
        find_weights("keras/empty")


@pytest.mark.parametrize("name", ["timm/mine", "keras/my.safetensors"])
def test_paths_win_over_the_hub(name, hub, server):
    path = pathlib.Path(name)
    path.parent.mkdir()
    if not path.suffix:
        path.mkdir()
        path /= "model.safetensors"
    save_safetensors(small(), path)
    (server / name).mkdir(parents=True)
    assert find_weights(name).path == path
    assert not is_of_hub(name)
    assert not hub
