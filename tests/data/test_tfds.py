"""TFDS data sets: their examples and splits, and errors of preparation."""

import io
import shutil
import types
import urllib.error

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from samples import read_all

from train_loop.data.datasets import DATASETS, choose_splits, open_dataset
from train_loop.data.tfds import imagenet_class_names, with_imagenet_words
from train_loop.errors import UserError


def test_unreachable_hub_is_an_error_without_retries(monkeypatch):
    def urlopen(request, timeout):
        assert request.full_url == "https://mirror"
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror")
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr("tensorflow_datasets.builder", pytest.fail)
    with pytest.raises(UserError, match="mirror cannot be .* no network"):
        open_dataset("huggingface:some/thing")


def test_data_dir_with_a_pattern_is_rejected(tmp_path, monkeypatch):
    """Otherwise TFDS would download prepared data again."""
    monkeypatch.setattr("tensorflow_datasets.builder", pytest.fail)
    for name in ("a[1]", "a*", "a?"):
        with pytest.raises(UserError, match=r"--data_dir=.*: must not contain"):
            open_dataset("oxford_iiit_pet", data_dir=tmp_path / name)


def test_unreachable_pets_are_an_error(tmp_path, monkeypatch):
    def urlopen(request, timeout):
        assert request.method == "HEAD"
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(UserError) as error:
        DATASETS["oxford_iiit_pet"](data_dir=tmp_path)
    [line] = str(error.value).splitlines()
    manual_dir = tmp_path / "downloads" / "manual"
    for expected in (
        "cannot be reached",
        "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
        str(manual_dir / "images.tar.gz"),
        str(manual_dir / "annotations.tar.gz"),
        "--dataset=digits, which needs no download",
    ):
        assert expected in line


@pytest.mark.parametrize("own_manual_dir", [True, False])
def test_missing_imagenet_tars_are_reported(tmp_path, own_manual_dir):
    manual_dir = tmp_path / "downloads" / "manual"
    options = {}
    if own_manual_dir:
        manual_dir = options["manual_dir"] = tmp_path / "elsewhere"
    manual_dir.mkdir(parents=True)
    (manual_dir / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(UserError) as error:
        DATASETS["imagenet2012"](data_dir=tmp_path, **options)
    [line] = str(error.value).splitlines()
    assert str(manual_dir / "ILSVRC2012_img_val.tar") in line
    assert "ILSVRC2012_img_train.tar" not in line


def test_archives_with_a_wrong_checksum_are_an_error(tmp_path):
    manual_dir = tmp_path / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    for name in ("images.tar.gz", "annotations.tar.gz"):
        (manual_dir / name).write_bytes(b"not an archive")
    with pytest.raises(UserError, match="wrong checksum") as error:
        DATASETS["oxford_iiit_pet"](data_dir=tmp_path)
    assert "\n" not in str(error.value)


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Images whose pixels are the number of the example."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "photo": tfds.features.Image(shape=(4, 4, 3)),
                    "kind": tfds.features.ClassLabel(names=["even", "odd"]),
                    "extra": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "more": self._generate_examples(range(10, 14)),
            "train": self._generate_examples(range(10)),
        }

    def _generate_examples(self, numbers):
        for number in numbers:
            photo = np.full((4, 4, 3), number, "uint8")
            yield number, {"photo": photo, "kind": number % 2, "extra": ""}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    TinyImages(data_dir=data_dir).download_and_prepare()
    return data_dir


def read_by_tfds(data_dir, spec):
    """Returns the expected result of `read_all`, and the ids of TFDS."""
    dataset = tfds.builder("tiny_images", data_dir=data_dir).as_dataset(
        split=spec,
        read_config=tfds.ReadConfig(add_tfds_id=True),
        decoders={"photo": tfds.decode.SkipDecoding()},
    )
    examples = list(dataset.as_numpy_iterator())
    return (
        [(example["photo"], example["kind"]) for example in examples],
        [example["tfds_id"].decode() for example in examples],
    )


@pytest.mark.slow
def test_any_tfds_data_set_with_images_and_labels_is_read(prepared):
    stored = open_dataset("tiny_images", data_dir=prepared)
    assert stored.class_names == ("even", "odd")
    assert {*stored.splits} == {"train", "more"}
    for name, expected in (("train", range(10)), ("more", range(10, 14))):
        split = stored.splits[name]
        examples = read_all(split)
        numbers = [int(tf.io.decode_png(i)[0, 0, 0]) for i, _ in examples]
        assert sorted(numbers) == [*expected]
        assert [label for _, label in examples] == [n % 2 for n in numbers]
        theirs, ids = read_by_tfds(prepared, name)
        assert examples == theirs
        # The names are the ids of TFDS.
        assert [split.store.name(number) for number in split.indices] == ids


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "train",
        "train[:30%]",
        "train[3:-2]",
        "train[80%:]+train[:2]",
        "train[:50%]+train[50%:]",
    ],
)
@pytest.mark.parametrize("flag", ["train_split", "eval_split"])
def test_splits_equal_those_of_tfds(prepared, flag, spec):
    stored = open_dataset("tiny_images", data_dir=prepared)
    specs = {"train_split": "more", "eval_split": "more", flag: spec}
    data = choose_splits(stored, **specs)
    split = data.train if flag == "train_split" else data.evaluation
    theirs, ids = read_by_tfds(prepared, spec)
    assert read_all(split) == theirs
    assert [split.store.name(number) for number in split.indices] == ids


@pytest.mark.parametrize(
    ("spec", "repeated"),
    [
        ("train[:50%]+train[25%:75%]", 3),
        ("train[:5]+train[:4]+train[2:6]", 5),
        ("train[-4:]+train", 4),
    ],
)
@pytest.mark.parametrize("flag", ["train_split", "eval_split"])
def test_splits_with_repeated_images_are_rejected(
    prepared, flag, spec, repeated
):
    stored = open_dataset("tiny_images", data_dir=prepared)
    specs = {"train_split": "more", "eval_split": "more", flag: spec}
    with pytest.raises(UserError) as error:
        choose_splits(stored, **specs)
    [line] = str(error.value).splitlines()
    assert line.startswith(f"--{flag}={spec}: contains {repeated} images more ")


@pytest.mark.parametrize(
    ("train", "evaluation", "shared"),
    [
        (None, "train[:3]", 3),
        ("train[:60%]", "train[50%:]", 1),
        ("more+train[2:4]", "train[3:]+more", 5),
    ],
)
def test_overlapping_splits_are_rejected(prepared, train, evaluation, shared):
    stored = open_dataset("tiny_images", data_dir=prepared)
    with pytest.raises(UserError) as error:
        choose_splits(stored, train, evaluation)
    [line] = str(error.value).splitlines()
    assert line.startswith(
        f"--train_split={train or 'train'}: shares {shared} images with "
        f"--eval_split={evaluation}."
    )


def test_fraction_of_train_is_held_out_without_an_evaluation_split(prepared):
    stored = open_dataset("tiny_images", data_dir=prepared)
    data = choose_splits(stored, validation_fraction=0.3)
    train, held_out = read_all(data.train), read_all(data.evaluation)
    assert (len(train), len(held_out)) == (7, 3)
    assert sorted(train + held_out) == sorted(read_all(stored.splits["train"]))


def test_full_disk_is_an_error_before_preparation(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda request, timeout: io.BytesIO()
    )
    with pytest.raises(UserError, match=r"requires 1\.\d GB .* 1\.0 GB are f"):
        open_dataset("oxford_iiit_pet", data_dir=tmp_path)


def test_class_names_are_words_with_ids():
    names = imagenet_class_names()
    assert len(set(names)) == len(names) == 1000
    # As in imagenet_class_index.json of keras.applications.
    assert names[0] == "tench (n01440764)"
    assert names[1] == "goldfish (n01443537)"
    assert names[134] == "crane (bird) (n02012849)"
    assert names[281] == "tabby (n02123045)"
    assert names[638:640] == ["maillot (n03710637)", "maillot (n03710721)"]
    assert names[999] == "toilet tissue (n15075141)"


def test_other_class_names_are_unchanged():
    names = ["n01443537", "goldfish", "n99999999"]
    assert with_imagenet_words(names) == [
        "goldfish (n01443537)",
        *names[1:],
    ]
    assert with_imagenet_words([]) == []
