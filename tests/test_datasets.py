"""Data sets: what is in them, and what is said when they are missing."""

import urllib.error

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from train_loop import UserError, datasets


def read_all(split, seed=None):
    examples = list(split.read(seed).as_numpy_iterator())
    assert len(examples) == split.num_examples
    return examples


def test_digits_are_scikit_learns():
    source = datasets.digits()
    assert source.class_names == tuple("0123456789")
    examples = read_all(source.train) + read_all(source.evaluation)
    pictures = np.array(
        [tf.io.decode_png(e["image"]).numpy().ravel() for e in examples]
    )
    images, labels = load_digits(return_X_y=True)
    ours = {
        (p.tobytes(), int(e["label"]))
        for p, e in zip(
            np.round(pictures / 255.0 * 16).astype("uint8"),
            examples,
            strict=True,
        )
    }
    theirs = {
        (image.tobytes(), int(label))
        for image, label in zip(images.astype("uint8"), labels, strict=True)
    }
    assert ours == theirs
    assert len(examples) == 1797


def test_digits_hold_out_a_fifth_of_every_class():
    source = datasets.digits()
    train = np.bincount([e["label"] for e in read_all(source.train)])
    held_out = np.bincount([e["label"] for e in read_all(source.evaluation)])
    assert sum(held_out) == 360
    np.testing.assert_allclose(held_out / (train + held_out), 0.2, atol=0.01)
    again = datasets.digits()
    assert read_all(again.evaluation) == read_all(source.evaluation)


def test_unreachable_pets_are_one_clear_line(tmp_path, monkeypatch):
    def urlopen(request, timeout):
        assert request.method == "HEAD"
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(UserError) as error:
        datasets.DATASETS["oxford_iiit_pet"](data_dir=tmp_path)
    [line] = str(error.value).splitlines()
    manual_dir = tmp_path / "downloads" / "manual"
    for expected in (
        "could not be reached",
        "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
        str(manual_dir / "images.tar.gz"),
        str(manual_dir / "annotations.tar.gz"),
        "--dataset=digits needs neither",
    ):
        assert expected in line


@pytest.mark.parametrize("own_manual_dir", [True, False])
def test_missing_imagenet_tars_are_named(tmp_path, own_manual_dir):
    manual_dir = tmp_path / "downloads" / "manual"
    options = {}
    if own_manual_dir:
        manual_dir = options["manual_dir"] = tmp_path / "elsewhere"
    manual_dir.mkdir(parents=True)
    (manual_dir / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(UserError) as error:
        datasets.DATASETS["imagenet2012"](data_dir=tmp_path, **options)
    [line] = str(error.value).splitlines()
    assert str(manual_dir / "ILSVRC2012_img_val.tar") in line
    assert "ILSVRC2012_img_train.tar" not in line


def test_archives_that_are_not_the_right_ones_are_one_clear_line(tmp_path):
    manual_dir = tmp_path / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    for name in ("images.tar.gz", "annotations.tar.gz"):
        (manual_dir / name).write_bytes(b"not an archive")
    with pytest.raises(UserError, match="wrong checksum") as error:
        datasets.DATASETS["oxford_iiit_pet"](data_dir=tmp_path)
    assert "\n" not in str(error.value)
