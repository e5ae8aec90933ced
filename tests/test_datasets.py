"""Data sets: what is in them, and what is said when they are missing."""

import io
import shutil
import types
import urllib.error

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from samples import encoded, write_folder, write_hand_signs
from sklearn.datasets import load_digits

from train_loop import UserError, datasets


def read_all(split):
    """Returns [(bytes of the file, label)] in the order they are stored."""
    examples = [
        (split.load(example["image"]).numpy(), int(example["label"]))
        for example in split.stored()
    ]
    assert len(examples) == split.num_examples
    return examples


def test_digits_are_scikit_learns():
    stored = datasets.open_stored("digits")
    assert stored.class_names == tuple("0123456789")
    examples = [e for split in stored.splits.values() for e in read_all(split)]
    pictures = np.array(
        [tf.io.decode_png(image).numpy().ravel() for image, _ in examples]
    )
    images, labels = load_digits(return_X_y=True)
    ours = {
        (pixels.tobytes(), label)
        for pixels, (_, label) in zip(
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
    source = datasets.choose_splits(datasets.digits())
    train = np.bincount([label for _, label in read_all(source.train)])
    held_out = np.bincount([label for _, label in read_all(source.evaluation)])
    assert sum(held_out) == 360
    np.testing.assert_allclose(held_out / (train + held_out), 0.2, atol=0.01)
    again = datasets.choose_splits(datasets.digits())
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


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Ten pictures of their own number in every channel, in one split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(4, 4, 3)),
                    "kind": tfds.features.ClassLabel(names=["even", "odd"]),
                    "extra": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(10):
            picture = np.full((4, 4, 3), number, "uint8")
            yield number, {"picture": picture, "kind": number % 2, "extra": ""}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=data_dir).download_and_prepare()
    return data_dir


def test_any_set_of_tfds_with_pictures_and_labels_is_read(prepared):
    stored = datasets.open_stored("tiny_pictures", data_dir=prepared)
    assert stored.class_names == ("even", "odd")
    assert list(stored.splits) == ["train"]
    examples = read_all(stored.splits["train"])
    numbers = [int(tf.io.decode_png(image)[0, 0, 0]) for image, _ in examples]
    assert sorted(numbers) == list(range(10))
    assert [label for _, label in examples] == [n % 2 for n in numbers]
    # TFDS itself calls them so.
    ids = tfds.builder("tiny_pictures", data_dir=prepared).as_dataset(
        split="train", read_config=tfds.ReadConfig(add_tfds_id=True)
    )
    assert [stored.splits["train"].name(index) for index in range(10)] == [
        example["tfds_id"].decode() for example in ids.as_numpy_iterator()
    ]


@pytest.mark.parametrize(
    "spec", ["train", "train[:30%]", "train[3:-2]", "train[80%:]+train[:2]"]
)
def test_splits_are_those_of_tfds(prepared, spec):
    stored = datasets.open_stored("tiny_pictures", data_dir=prepared)
    source = datasets.choose_splits(stored, spec, "train[:1]")
    theirs = tfds.builder("tiny_pictures", data_dir=prepared).as_dataset(
        split=spec, decoders={"picture": tfds.decode.SkipDecoding()}
    )
    assert [image for image, _ in read_all(source.train)] == [
        example["picture"] for example in theirs.as_numpy_iterator()
    ]


@pytest.mark.parametrize(
    ("spec", "repeated"),
    [
        ("train[:50%]+train[25%:75%]", 3),
        ("train[:5]+train[:4]+train[2:6]", 5),
        ("train[-4:]+train", 4),
        ("train[:5]+train[5:]", 0),
    ],
)
@pytest.mark.parametrize("flag", ["train_split", "eval_split"])
def test_pictures_that_are_twice_in_a_split_are_said(
    prepared, flag, spec, repeated
):
    stored = datasets.open_stored("tiny_pictures", data_dir=prepared)
    specs = {"train_split": "train[:1]", "eval_split": "train[:1]", flag: spec}
    source = datasets.choose_splits(stored, **specs)
    # They are read twice, as TFDS reads them.
    split = source.train if flag == "train_split" else source.evaluation
    images = [image for image, _ in read_all(split)]
    theirs = tfds.builder("tiny_pictures", data_dir=prepared).as_dataset(
        split=spec, decoders={"picture": tfds.decode.SkipDecoding()}
    )
    assert images == [e["picture"] for e in theirs.as_numpy_iterator()]
    assert sum(images.count(image) > 1 for image in {*images}) == repeated
    expected = f"{repeated} pictures are in --{flag}={spec} more than once"
    assert source.warnings == ((expected,) if repeated else ())


def test_a_part_of_train_is_held_out_where_nothing_else_is(prepared):
    stored = datasets.open_stored("tiny_pictures", data_dir=prepared)
    source = datasets.choose_splits(stored, validation_fraction=0.3)
    train, held_out = read_all(source.train), read_all(source.evaluation)
    assert (len(train), len(held_out)) == (7, 3)
    assert sorted(train + held_out) == sorted(read_all(stored.splits["train"]))


def test_folders_are_read_as_tfds_reads_them(tmp_path):
    counts = {"train/cat": 4, "train/dog": 3, "test/cat": 2, "test/dog": 2}
    write_folder(tmp_path, counts)
    stored = datasets.open_stored(str(tmp_path))
    builder = tfds.folder_dataset.ImageFolder(str(tmp_path))
    assert stored.class_names == tuple(builder.info.features["label"].names)
    for name, split in stored.splits.items():
        theirs = builder.as_dataset(
            split=name, decoders={"image": tfds.decode.SkipDecoding()}
        )
        assert sorted(read_all(split)) == sorted(
            (example["image"], example["label"])
            for example in theirs.as_numpy_iterator()
        )
        assert split.num_bytes == sum(len(i) for i, _ in read_all(split))
    source = datasets.choose_splits(stored)
    assert source.evaluation is not source.train
    assert source.evaluation.num_examples == 4


@pytest.mark.parametrize(
    ("train", "evaluation", "split"),
    [
        ("Train", "Test", "test"),
        ("TRAIN", "Validation", "validation"),
        ("train", "VAL", "val"),
    ],
)
def test_folders_of_splits_may_have_capitals(
    tmp_path, train, evaluation, split
):
    counts = {f"{train}/Cat": 3, f"{train}/dog": 3, f"{evaluation}/dog": 2}
    write_folder(tmp_path, counts)
    stored = datasets.open_stored(str(tmp_path))
    assert stored.class_names == ("Cat", "dog")
    assert list(stored.splits) == ["train", split]
    source = datasets.choose_splits(stored)
    assert source.train.num_examples == 6
    assert [label for _, label in read_all(source.evaluation)] == [1, 1]


def test_two_folders_for_one_split_are_one_clear_line(tmp_path):
    write_folder(tmp_path, {"train/cat": 3, "train/dog": 3})
    # The same folder under two names is one.
    (tmp_path / "Train").symlink_to("train")
    stored = datasets.open_stored(str(tmp_path))
    assert stored.splits["train"].name(0).startswith(str(tmp_path / "train"))
    write_folder(tmp_path, {"TRAIN/cat": 3, "TRAIN/dog": 3})
    with pytest.raises(UserError, match="are both the split train") as error:
        datasets.open_stored(str(tmp_path))
    assert str(tmp_path / "TRAIN") in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_of_classes_is_split_evenly_and_always_alike(tmp_path):
    write_folder(tmp_path, {"cat": 20, "dog": 10, "owl": 10}, "png")
    sources = [
        datasets.choose_splits(
            datasets.open_stored(str(tmp_path)), validation_fraction=0.2
        )
        for _ in range(2)
    ]
    counts = [
        np.bincount([label for _, label in read_all(split)]).tolist()
        for split in (sources[0].train, sources[0].evaluation)
    ]
    assert counts == [[16, 8, 8], [4, 2, 2]]
    assert read_all(sources[0].train) == read_all(sources[1].train)


def test_any_part_of_a_folder_holds_all_classes(tmp_path):
    write_folder(tmp_path, {"train/cat": 30, "train/dog": 30})
    stored = datasets.open_stored(str(tmp_path))
    source = datasets.choose_splits(stored, "train[:20%]", "train[80%:]")
    for split in (source.train, source.evaluation):
        assert {label for _, label in read_all(split)} == {0, 1}


def test_what_is_of_no_use_in_a_folder_is_named(tmp_path):
    write_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    (tmp_path / "data/cat/notes.txt").write_text("no picture")
    (tmp_path / "data/owl").mkdir()
    (tmp_path / "data/dog/empty.jpg").touch()
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    (tmp_path / "data/dog/link.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "data/dog/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "data/dog/inside.jpg").symlink_to("0.jpeg")
    (tmp_path / "data/dog/circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "data/dog/folder.jpg").mkdir()
    (tmp_path / "data/dog/._0.jpeg").write_text("of another system")
    stored = datasets.open_stored(str(tmp_path / "data"))
    assert stored.splits["train"].num_examples == 7
    dog = tmp_path / "data/dog"
    assert {path: reason[:10] for path, reason in stored.refused.items()} == {
        str(dog / "empty.jpg"): "is empty",
        str(dog / "link.jpg"): "is a link ",
        str(dog / "gone.jpg"): "cannot be ",
        str(dog / "circle.jpg"): "cannot be ",
        str(dog / "folder.jpg"): "is not a f",
    }
    text = "; ".join(stored.warnings)
    assert "owl holds no pictures" in text
    assert "1 files" in text


def test_hand_signs_come_from_a_pair_of_hdf5_files(tmp_path):
    write_hand_signs(tmp_path)
    for name in (tmp_path / "train_signs.h5", tmp_path):
        stored = datasets.open_stored(str(name))
        assert stored.class_names == tuple("012345")
        for split, count in (("train", 12), ("test", 6)):
            with h5py.File(tmp_path / f"{split}_signs.h5") as file:
                expected = {
                    (pixels.tobytes(), label)
                    for pixels, label in zip(
                        file[f"{split}_set_x"][:],
                        file[f"{split}_set_y"][:],
                        strict=True,
                    )
                }
            examples = read_all(stored.splits[split])
            assert len(examples) == count
            assert expected == {
                (tf.io.decode_png(image).numpy().tobytes(), label)
                for image, label in examples
            }
    both = datasets.choose_splits(stored, "train+test", "test")
    assert both.train.num_examples == 18


def break_hdf5(path, name, value):
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("train_set_y", np.full(12, 6), r"train_set_y\[0\] is 6"),
        ("train_set_y", np.full(12, -1), "is -1, and list_classes has 6"),
        ("train_set_y", np.zeros(11, int), "with 11 labels"),
        ("train_set_y", np.zeros(12), "labels of float64"),
        ("train_set_x", np.zeros((12, 64, 64, 3)), "is float64"),
        (
            "train_set_x",
            np.zeros((12, 64, 64), "uint8"),
            r"uint8 \[12, 64, 64\]",
        ),
        ("train_set_y", None, "train_set_y"),
        ("train_set_x", None, "no train_set_x"),
        ("train_set_x", np.zeros((12, 0, 9, 3), "uint8"), "and not empty"),
    ],
)
def test_hdf5_files_of_another_layout_are_one_clear_line(
    tmp_path, name, value, expected
):
    write_hand_signs(tmp_path)
    path = tmp_path / "train_signs.h5"
    break_hdf5(path, name, value)
    with pytest.raises(UserError, match=expected) as error:
        datasets.open_stored(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_mistaken_names_are_one_clear_line(tmp_path, prepared):
    (tmp_path / "broken.h5").write_text("no HDF5")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "cifar": "cifar10",
        "digit": "did you mean digits",
        str(tmp_path / "nowhere"): "neither a folder",
        str(tmp_path / "none.h5"): "none.h5",
        str(tmp_path / "broken.h5"): "cannot be read as an HDF5 file",
        str(tmp_path / "empty"): "found no folder",
        "wiki40b": "is not for image classification",
    }.items():
        with pytest.raises(UserError, match=expected) as error:
            datasets.open_stored(name, data_dir=prepared)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_split": "trian"}, "--train_split=trian"),
        ({"train_split": "train[:9x%]"}, "parts of it such as"),
        ({"eval_split": "validation"}, "--eval_split=validation"),
        ({"eval_split": "train[:0]"}, "holds no pictures"),
        ({"validation_fraction": 0.001}, "--validation_fraction=0.001"),
        ({"validation_fraction": 1.0}, "--validation_fraction=1.0"),
    ],
)
def test_mistaken_splits_are_one_clear_line(tmp_path, options, expected):
    write_folder(tmp_path, {"cat": 5, "dog": 5})
    stored = datasets.open_stored(str(tmp_path))
    with pytest.raises(UserError) as error:
        datasets.choose_splits(stored, **options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_full_disk_is_said_before_preparing(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda request, timeout: io.BytesIO()
    )
    with pytest.raises(UserError, match=r"takes 1\.\d GB .* 1\.0 GB are free"):
        datasets.open_stored("oxford_iiit_pet", data_dir=tmp_path)


def test_pictures_of_all_kinds_can_be_in_a_folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), "uint8")
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for suffix in datasets.PICTURE_SUFFIXES:
            file_format = suffix[1:].replace("jpg", "jpeg")
            (tmp_path / kind / f"x{suffix.upper()}").write_bytes(
                encoded(pixels, file_format)
            )
    stored = datasets.open_stored(str(tmp_path))
    assert stored.splits["train"].num_examples == 12
    assert not stored.warnings


def test_folder_without_any_picture_of_use_is_one_clear_line(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    for reason in ("", f"; {tmp_path / 'cat/a.jpg'} is empty"):
        expected = f"{tmp_path} holds no picture that can be read{reason}"
        with pytest.raises(UserError) as error:
            datasets.open_stored(str(tmp_path))
        assert str(error.value) == expected
        (tmp_path / "cat/a.jpg").touch()


def test_folders_of_other_things_are_not_classes(tmp_path):
    """A run inside the data, weights, an empty split, a class called train."""
    write_folder(tmp_path, {"cat": 3, "train": 3})
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/flags.txt").touch()
    (tmp_path / "model.weights.h5").touch()
    stored = datasets.open_stored(str(tmp_path))
    assert stored.class_names == ("cat", "train")
    write_folder(tmp_path / "other", {"train/cat": 3, "train/dog": 3})
    (tmp_path / "other/val").mkdir()
    (tmp_path / "other/test/cat").mkdir(parents=True)
    stored = datasets.open_stored(str(tmp_path / "other"))
    assert list(stored.splits) == ["train"]
    assert datasets.choose_splits(stored).evaluation.num_examples >= 2


def test_folder_without_permission_is_one_clear_line(tmp_path, monkeypatch):
    write_folder(tmp_path, {"cat": 3, "dog": 3})

    def iterdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", iterdir)
    with pytest.raises(UserError, match="cannot be read .Permission denied"):
        datasets.open_stored(str(tmp_path))
