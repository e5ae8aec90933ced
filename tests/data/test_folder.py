"""Folders of images: their splits, classes, and what is of no use in them."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from samples import encoded, read_all, write_folder

from train_loop.data.image_files import IMAGE_SUFFIXES
from train_loop.data.sources import open_stored
from train_loop.data.stored import choose_evaluation, choose_splits
from train_loop.errors import UserError


def test_folders_are_read_as_tfds_reads_them(tmp_path):
    counts = {"train/cat": 4, "train/dog": 3, "test/cat": 2, "test/dog": 2}
    write_folder(tmp_path, counts)
    stored = open_stored(str(tmp_path))
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
    data = choose_splits(stored)
    assert data.evaluation is not data.train
    assert data.evaluation.num_examples == 4


@pytest.mark.parametrize(
    ("train", "evaluation", "split"),
    [
        ("Train", "Test", "test"),
        ("TRAIN", "Validation", "validation"),
        ("train", "VAL", "val"),
        ("training", "testing", "test"),
        ("Train", "valid", "validation"),
        ("train", "Eval", "validation"),
        ("train", "evaluation", "validation"),
    ],
)
def test_folders_of_splits_have_their_usual_names_in_any_capitals(
    tmp_path, train, evaluation, split
):
    counts = {f"{train}/Cat": 3, f"{train}/dog": 3, f"{evaluation}/dog": 2}
    write_folder(tmp_path, counts)
    stored = open_stored(str(tmp_path))
    assert stored.class_names == ("Cat", "dog")
    assert list(stored.splits) == ["train", split]
    data = choose_splits(stored)
    assert data.train.num_examples == 6
    assert [label for _, label in read_all(data.evaluation)] == [1, 1]


def test_what_is_evaluated_on_is_said_where_there_is_a_choice(tmp_path):
    write_folder(
        tmp_path, {f"{s}/{c}": 3 for s in ("train", "test") for c in "ab"}
    )
    assert choose_splits(open_stored(str(tmp_path))).note == ""
    write_folder(tmp_path, {"valid/a": 2, "valid/b": 2})
    stored = open_stored(str(tmp_path))
    data = choose_splits(stored)
    assert data.evaluation.num_examples == 4
    assert data.note == (
        "Evaluating on validation; test is left for the end: "
        "--mode=evaluate --eval_split=test"
    )
    chosen = choose_splits(stored, eval_split="test")
    assert (chosen.evaluation.num_examples, chosen.note) == (6, "")


def test_folders_that_are_used_for_nothing_are_named(tmp_path):
    counts = {f"{s}/{c}": 3 for s in ("train", "extra", "Val 2") for c in "ab"}
    write_folder(tmp_path, counts)
    (tmp_path / "test").mkdir()
    (tmp_path / ".git").mkdir()
    [warning] = open_stored(str(tmp_path)).warnings
    assert warning.startswith(f"Val 2, extra, test in {tmp_path} are used for")


def test_splits_without_one_to_train_on_can_be_evaluated_on(tmp_path):
    """And are no classes of their own."""
    write_folder(
        tmp_path, {f"{s}/{c}": 3 for s in ("val", "test") for c in "ab"}
    )
    stored = open_stored(str(tmp_path))
    assert stored.class_names == ("a", "b")
    assert choose_evaluation(stored).num_examples == 6
    with pytest.raises(UserError, match="there is val, test"):
        choose_splits(stored)


def test_images_in_folders_below_a_class_are_read(tmp_path):
    """As Keras and timm do; and not what hidden folders and runs hold."""
    write_folder(tmp_path, {"cat/2021": 3, "cat/2022/may": 2, "dog": 4})
    write_folder(tmp_path, {"dog/.thumbnails": 4, "dog/run": 4})
    (tmp_path / "dog/run/flags.txt").touch()
    (tmp_path / "dog/round").symlink_to(tmp_path / "dog")
    (tmp_path / "cat/2021/notes.txt").touch()
    stored = open_stored(str(tmp_path))
    labels = [label for _, label in read_all(stored.splits["train"])]
    assert sorted(labels) == [0] * 5 + [1] * 4
    theirs = tf.keras.utils.image_dataset_from_directory(
        tmp_path / "cat", labels=None, verbose=False
    )
    assert len(theirs.file_paths) == 5
    [warning] = stored.warnings
    assert warning.startswith("1 files")
    assert warning.endswith("cat/2021/notes.txt")


def test_two_folders_for_one_split_are_one_clear_line(tmp_path):
    write_folder(tmp_path, {"train/cat": 3, "train/dog": 3})
    # The same folder under two names is one.
    (tmp_path / "Train").symlink_to("train")
    stored = open_stored(str(tmp_path))
    assert (
        stored.splits["train"].store.name(0).startswith(str(tmp_path / "train"))
    )
    write_folder(tmp_path, {"TRAIN/cat": 3, "TRAIN/dog": 3})
    with pytest.raises(UserError, match="are both the split train") as error:
        open_stored(str(tmp_path))
    assert str(tmp_path / "TRAIN") in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_of_classes_is_split_evenly_and_always_alike(tmp_path):
    write_folder(tmp_path, {"cat": 20, "dog": 10, "owl": 10}, "png")
    both = [
        choose_splits(open_stored(str(tmp_path)), validation_fraction=0.2)
        for _ in range(2)
    ]
    counts = [
        np.bincount([label for _, label in read_all(split)]).tolist()
        for split in (both[0].train, both[0].evaluation)
    ]
    assert counts == [[16, 8, 8], [4, 2, 2]]
    assert read_all(both[0].train) == read_all(both[1].train)


def test_any_part_of_a_folder_holds_all_classes(tmp_path):
    write_folder(tmp_path, {"train/cat": 30, "train/dog": 30})
    stored = open_stored(str(tmp_path))
    data = choose_splits(stored, "train[:20%]", "train[80%:]")
    for split in (data.train, data.evaluation):
        assert {label for _, label in read_all(split)} == {0, 1}


def test_what_is_of_no_use_in_a_folder_is_named(tmp_path):
    write_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    (tmp_path / "data/cat/notes.txt").write_text("no image")
    (tmp_path / "data/owl").mkdir()
    (tmp_path / "data/dog/empty.jpg").touch()
    (tmp_path / "data/dog/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "data/dog/inside.jpg").symlink_to("0.jpeg")
    (tmp_path / "data/dog/circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "data/dog/folder.jpg").mkdir()
    (tmp_path / "data/dog/._0.jpeg").write_text("of another system")
    stored = open_stored(str(tmp_path / "data"))
    assert stored.splits["train"].num_examples == 7
    dog = tmp_path / "data/dog"
    assert {path: reason[:10] for path, reason in stored.refused.items()} == {
        str(dog / "empty.jpg"): "is empty",
        str(dog / "gone.jpg"): "cannot be ",
        str(dog / "circle.jpg"): "cannot be ",
        str(dog / "folder.jpg"): "is not a f",
    }
    text = "; ".join(stored.warnings)
    assert "owl holds no images" in text
    assert "1 files" in text


@pytest.mark.parametrize("linked", ["image", "class", "split", "all"])
def test_links_out_of_the_folder_are_followed(tmp_path, linked):
    here, there = tmp_path / "data", tmp_path / "elsewhere"
    write_folder(there, {"train/cat": 3, "train/dog": 3})
    place = {
        "image": "train/cat/0.jpeg",
        "class": "train/cat",
        "split": "train",
        "all": "",
    }[linked]
    shutil.copytree(there, here)
    if linked == "image":
        (here / place).unlink()
    else:
        shutil.rmtree(here / place)
    (here / place).symlink_to(there / place)
    stored = open_stored(str(here))
    assert not stored.refused
    assert not stored.warnings
    theirs = open_stored(str(there))
    for mine, other in zip(
        stored.splits.values(), theirs.splits.values(), strict=True
    ):
        assert read_all(mine) == read_all(other)
        assert mine.identity == other.identity


def test_images_of_all_kinds_can_be_in_a_folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), "uint8")
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for suffix in IMAGE_SUFFIXES:
            file_format = suffix[1:].replace("jpg", "jpeg")
            file_format = {"tif": "tiff"}.get(file_format, file_format)
            (tmp_path / kind / f"x{suffix.upper()}").write_bytes(
                encoded(pixels, file_format)
            )
    stored = open_stored(str(tmp_path))
    assert stored.splits["train"].num_examples == 2 * len(IMAGE_SUFFIXES)
    assert not stored.warnings


def test_folder_without_any_image_of_use_is_one_clear_line(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    for reason in ("", f"; {tmp_path / 'cat/a.jpg'} is empty"):
        expected = (
            f"{tmp_path} holds no image to train on that can be read{reason}"
        )
        with pytest.raises(UserError) as error:
            open_stored(str(tmp_path))
        assert str(error.value) == expected
        (tmp_path / "cat/a.jpg").touch()


def test_folders_of_other_things_are_not_classes(tmp_path):
    """A run inside the data, weights, an empty split, a class called train."""
    write_folder(tmp_path, {"cat": 3, "train": 3})
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/flags.txt").touch()
    (tmp_path / "model.weights.h5").touch()
    stored = open_stored(str(tmp_path))
    assert stored.class_names == ("cat", "train")
    write_folder(tmp_path / "other", {"train/cat": 3, "train/dog": 3})
    (tmp_path / "other/val").mkdir()
    (tmp_path / "other/test/cat").mkdir(parents=True)
    stored = open_stored(str(tmp_path / "other"))
    assert list(stored.splits) == ["train"]
    assert choose_splits(stored).evaluation.num_examples >= 2


def test_one_class_is_enough_to_measure_on(tmp_path):
    write_folder(tmp_path, {"cat": 3})
    (tmp_path / "labels.csv").write_text(
        "image,label\ncat/0.jpeg,cat\ncat/1.jpeg,cat\ncat/2.jpeg,cat\n"
    )
    for name in (tmp_path, tmp_path / "labels.csv"):
        stored = open_stored(str(name))
        assert choose_evaluation(stored).num_examples == 3
        with pytest.raises(UserError, match="only one class, cat; training"):
            choose_splits(stored)


def test_folder_without_permission_is_one_clear_line(tmp_path, monkeypatch):
    write_folder(tmp_path, {"cat": 3, "dog": 3})

    def iterdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", iterdir)
    with pytest.raises(UserError, match="cannot be read .Permission denied"):
        open_stored(str(tmp_path))
