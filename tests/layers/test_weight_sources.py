"""Where weights come from, with folders in place of the servers."""

import hashlib

import pytest
from weight_nets import small

from resnet_layers import (
    WeightsError,
    find_weights,
    load_weights,
    save_safetensors,
)
from resnet_layers.weights import sources


def test_imagenet_weights_are_downloaded_and_hashed(monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(
        "keras.src.backend.config.keras_home", lambda: str(cache)
    )
    content = b"any weights"
    (tmp_path / "resnet50.h5").write_bytes(content)
    monkeypatch.setattr(sources, "IMAGENET_URL", f"file://{tmp_path}/{{}}.h5")
    md5 = hashlib.md5(content).hexdigest()
    files = {"resnet50_keras": ("resnet50", md5)}
    monkeypatch.setattr(sources, "IMAGENET_FILES", files)
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
        if filename == "config.json":
            (tmp_path / filename).write_text('{"input_size": [3, 160, 160]}')
        else:
            save_safetensors(small(), tmp_path / filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    name = "timm/resnet50.a1_in1k"
    path = find_weights(name, "resnet50")
    assert path == tmp_path / "model.safetensors"
    assert sorted(asked) == [(name, "config.json"), (name, "model.safetensors")]
    assert load_weights(small(), path).preprocessing.image_size == 160
