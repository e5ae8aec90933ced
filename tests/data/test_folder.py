"""Folders of images: splits, classes, and skipped files."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from samples import read_all, write_folder

from train_loop.data.datasets import (
    choose_evaluation,
    choose_splits,
    open_dataset,
)
from train_loop.data.decode import READS_HEIF
from train_loop.data.folder import SYSTEM_FOLDERS
from train_loop.errors import UserError


def make_run(folder):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "flags.txt").touch()


def write_bytes(root, *places):
    """Writes files without image content, for tests that do not decode."""
    for place in places:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_read_as_tfds_reads_them(tmp_path):
    counts = {"train/cat": 4, "train/dog": 3, "test/cat": 2, "test/dog": 2}
    write_folder(tmp_path, counts)
    stored = open_dataset(str(tmp_path))
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
def test_split_folders_have_common_names_in_any_case(
    tmp_path, train, evaluation, split
):
    counts = {f"{train}/Cat": 3, f"{train}/dog": 3, f"{evaluation}/dog": 2}
    write_folder(tmp_path, counts)
    stored = open_dataset(str(tmp_path))
    assert stored.class_names == ("Cat", "dog")
    assert list(stored.splits) == ["train", split]
    data = choose_splits(stored)
    assert data.train.num_examples == 6
    assert [label for _, label in read_all(data.evaluation)] == [1, 1]


def test_chosen_evaluation_split_is_reported(tmp_path):
    write_folder(
        tmp_path, {f"{s}/{c}": 3 for s in ("train", "test") for c in "ab"}
    )
    assert choose_splits(open_dataset(str(tmp_path))).note == ""
    write_folder(tmp_path, {"valid/a": 2, "valid/b": 2})
    stored = open_dataset(str(tmp_path))
    data = choose_splits(stored)
    assert data.evaluation.num_examples == 4
    assert data.note == (
        "Evaluating on validation; use test for the final evaluation: "
        "--mode=evaluate --eval_split=test"
    )
    chosen = choose_splits(stored, eval_split="test")
    assert (chosen.evaluation.num_examples, chosen.note) == (6, "")


def test_skipped_folders_are_reported(tmp_path):
    counts = {f"{s}/{c}": 3 for s in ("train", "extra", "Val 2") for c in "ab"}
    write_folder(tmp_path, counts)
    (tmp_path / "test").mkdir()
    (tmp_path / ".git").mkdir()
    [warning] = open_dataset(str(tmp_path)).warnings
    assert warning.startswith(f"{tmp_path}: skipped Val 2, extra, test. To use")


def test_data_without_a_training_split_can_be_evaluated(tmp_path):
    """The splits are not classes either."""
    write_folder(
        tmp_path, {f"{s}/{c}": 3 for s in ("val", "test") for c in "ab"}
    )
    stored = open_dataset(str(tmp_path))
    assert stored.class_names == ("a", "b")
    assert choose_evaluation(stored).num_examples == 6
    with pytest.raises(UserError, match="Pass one of val, test, or a slice"):
        choose_splits(stored)


def test_images_in_subfolders_of_a_class_are_read(tmp_path):
    """As in Keras and timm, but without hidden folders and run folders."""
    write_folder(tmp_path, {"cat/2021": 3, "cat/2022/may": 2, "dog": 4})
    write_folder(tmp_path, {"dog/.thumbnails": 4, "dog/run": 4})
    make_run(tmp_path / "dog/run")
    (tmp_path / "dog/round").symlink_to(tmp_path / "dog")
    (tmp_path / "cat/2021/notes.txt").touch()
    stored = open_dataset(str(tmp_path))
    labels = [label for _, label in read_all(stored.splits["train"])]
    assert sorted(labels) == [0] * 5 + [1] * 4
    theirs = tf.keras.utils.image_dataset_from_directory(
        tmp_path / "cat", labels=None, verbose=False
    )
    assert len(theirs.file_paths) == 5
    run, others = stored.warnings
    assert run == f"{tmp_path / 'dog/run'}: skipped as a run folder."
    assert others.startswith(
        f"{tmp_path}: skipped 1 files in unsupported formats: "
        "cat/2021/notes.txt. Supported are .jpg, "
    )


def test_two_folders_for_one_split_are_an_error(tmp_path):
    write_folder(tmp_path, {"train/cat": 3, "train/dog": 3})
    # A link to the same folder is not a second folder.
    (tmp_path / "Train").symlink_to("train")
    stored = open_dataset(str(tmp_path))
    assert (
        stored.splits["train"].store.name(0).startswith(str(tmp_path / "train"))
    )
    write_folder(tmp_path, {"TRAIN/cat": 3, "TRAIN/dog": 3})
    with pytest.raises(UserError, match="both are the split train") as error:
        open_dataset(str(tmp_path))
    assert str(tmp_path / "TRAIN") in str(error.value)
    assert "\n" not in str(error.value)


def test_held_out_fraction_is_stratified_and_reproducible(tmp_path):
    write_folder(tmp_path, {"cat": 20, "dog": 10, "owl": 10}, "png")
    both = [
        choose_splits(open_dataset(str(tmp_path)), validation_fraction=0.2)
        for _ in range(2)
    ]
    counts = [
        np.bincount([label for _, label in read_all(split)]).tolist()
        for split in (both[0].train, both[0].evaluation)
    ]
    assert counts == [[16, 8, 8], [4, 2, 2]]
    assert read_all(both[0].train) == read_all(both[1].train)


def test_any_slice_of_a_folder_contains_all_classes(tmp_path):
    write_folder(tmp_path, {"train/cat": 30, "train/dog": 30})
    stored = open_dataset(str(tmp_path))
    data = choose_splits(stored, "train[:20%]", "train[80%:]")
    for split in (data.train, data.evaluation):
        assert {label for _, label in read_all(split)} == {0, 1}


def test_unusable_entries_of_a_folder_are_reported(tmp_path):
    write_folder(tmp_path / "data", {"cat": 3, "dog": 3})
    (tmp_path / "data/cat/notes.txt").write_text("not an image")
    (tmp_path / "data/owl").mkdir()
    (tmp_path / "data/dog/empty.jpg").touch()
    (tmp_path / "data/dog/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "data/dog/inside.jpg").symlink_to("0.jpeg")
    (tmp_path / "data/dog/circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "data/dog/folder.jpg").mkdir()
    (tmp_path / "data/dog/._0.jpeg").write_text("metadata of macOS")
    stored = open_dataset(str(tmp_path / "data"))
    assert stored.splits["train"].num_examples == 7
    dog = tmp_path / "data/dog"
    assert {path: reason[:10] for path, reason in stored.rejected.items()} == {
        str(dog / "empty.jpg"): "is empty",
        str(dog / "gone.jpg"): "cannot be ",
        str(dog / "circle.jpg"): "cannot be ",
        str(dog / "folder.jpg"): "is not a f",
    }
    text = "; ".join(stored.warnings)
    assert "owl: no images found." in text
    assert "skipped 1 files" in text


@pytest.mark.slow
@pytest.mark.parametrize("linked", ["image", "class", "split", "all"])
def test_links_to_other_folders_are_followed(tmp_path, linked):
    here, there = tmp_path / "data", tmp_path / "elsewhere"
    write_folder(there, {"train/cat": 3, "train/dog": 3})
    path = {
        "image": "train/cat/0.jpeg",
        "class": "train/cat",
        "split": "train",
        "all": "",
    }[linked]
    shutil.copytree(there, here)
    if linked == "image":
        (here / path).unlink()
    else:
        shutil.rmtree(here / path)
    (here / path).symlink_to(there / path)
    stored = open_dataset(str(here))
    assert not stored.rejected
    assert not stored.warnings
    theirs = open_dataset(str(there))
    for mine, other in zip(
        stored.splits.values(), theirs.splits.values(), strict=True
    ):
        assert read_all(mine) == read_all(other)
        assert mine.identity == other.identity


@pytest.mark.skipif(READS_HEIF, reason="The extra is installed.")
def test_warning_about_heic_files_has_the_extra(folder):
    (folder / "train/cat/IMG_1.HEIC").write_bytes(b"not read")
    [warning] = open_dataset(str(folder)).warnings
    assert "skipped 1 files in" in warning
    assert warning.endswith(
        ". HEIC requires the extra heif: pip install pillow-heif."
    )


@pytest.mark.skipif(READS_HEIF, reason="The extra is installed.")
def test_error_about_heic_files_has_the_extra(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "IMG_1.HEIC").write_bytes(b"not read")
    with pytest.raises(UserError, match="the extra heif: pip install"):
        open_dataset(str(tmp_path))


def test_folder_without_readable_images_is_an_error(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    for reason in ("", f" ({tmp_path / 'cat/a.jpg'} is empty)"):
        expected = (
            f"{tmp_path}: no readable training image found{reason}. Add images "
            "to the training split."
        )
        with pytest.raises(UserError) as error:
            open_dataset(str(tmp_path))
        assert str(error.value) == expected
        (tmp_path / "cat/a.jpg").touch()


def test_other_folders_are_not_classes(tmp_path):
    """A run folder in the data, weights, an empty split, a class "train"."""
    write_folder(tmp_path, {"cat": 3, "train": 3})
    make_run(tmp_path / "run")
    (tmp_path / "model.weights.h5").touch()
    stored = open_dataset(str(tmp_path))
    assert stored.class_names == ("cat", "train")
    write_folder(tmp_path / "other", {"train/cat": 3, "train/dog": 3})
    (tmp_path / "other/val").mkdir()
    (tmp_path / "other/test/cat").mkdir(parents=True)
    stored = open_dataset(str(tmp_path / "other"))
    assert list(stored.splits) == ["train"]
    assert choose_splits(stored).evaluation.num_examples >= 2


def test_one_class_is_enough_for_evaluation(tmp_path):
    write_folder(tmp_path, {"cat": 3})
    (tmp_path / "labels.csv").write_text(
        "image,label\ncat/0.jpeg,cat\ncat/1.jpeg,cat\ncat/2.jpeg,cat\n"
    )
    for name in (tmp_path, tmp_path / "labels.csv"):
        stored = open_dataset(str(name))
        assert choose_evaluation(stored).num_examples == 3
        with pytest.raises(UserError, match="has only cat. Use the layout"):
            choose_splits(stored)


def test_folder_without_permission_is_an_error(tmp_path, monkeypatch):
    write_folder(tmp_path, {"cat": 3, "dog": 3})

    def iterdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", iterdir)
    with pytest.raises(UserError, match=": cannot be read .Permission denied"):
        open_dataset(str(tmp_path))


def test_order_of_a_folder_never_changes(tmp_path):
    """It identifies runs: these hashes are those of earlier versions."""
    names = ("a-b.PNG", "a/b.png", "a.png", "10.png", "9.png", "sub.d/1.jpg")
    names += ("sub/1.gif", "é.png", "n\nl.png", "q'.png", "\U0001f600.png")
    places = [f"train/cat/{name}" for name in (*names, "\ufffd.png")]
    places += ["train/dog/x y.png", "train/dog/0.png", "train/Zebra/0.png"]
    places += ["train/Zebra/1.png", "test/dog/1.png", "test/new/1.png"]
    write_bytes(tmp_path, *places)
    splits = open_dataset(str(tmp_path)).splits
    assert {name: split.identity for name, split in splits.items()} == {
        "train": "2d572c1be3718c5f",
        "test": "803a7e94d8917d93",
    }


def test_stat_is_called_once_per_file(tmp_path, monkeypatch):
    names = [f"{label}/{number}.png" for label in "ab" for number in range(50)]
    write_bytes(tmp_path, *names)
    calls, stat = [], os.stat

    def spy(path, *arguments, **options):
        calls.append(str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr("os.stat", spy)
    assert open_dataset(str(tmp_path)).splits["train"].num_examples == 100
    images = [path for path in calls if path.endswith(".png")]
    assert sorted(images) == sorted(str(tmp_path / name) for name in names)


def test_class_with_flags_txt_is_a_class_and_a_run_folder_is_not(tmp_path):
    write_folder(tmp_path, {"train/cat": 3, "train/dog": 3})
    (tmp_path / "train/dog/flags.txt").write_text("of 17 countries")
    make_run(tmp_path / "train/run")
    make_run(tmp_path / "run")
    stored = open_dataset(str(tmp_path))
    assert stored.class_names == ("cat", "dog")
    assert stored.splits["train"].num_examples == 6
    run = f"{tmp_path}/run, {tmp_path}/train/run: skipped as run folders."
    assert run in stored.warnings


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_system_folders_are_skipped(tmp_path, name):
    write_folder(tmp_path, {"cat": 3, "dog": 3, name: 2, f"dog/{name}": 2})
    stored = open_dataset(str(tmp_path))
    assert stored.class_names == ("cat", "dog")
    assert stored.splits["train"].num_examples == 6
    assert not stored.warnings


@pytest.mark.parametrize("place", ["photos/train", "photos", "zip/photos"])
def test_error_for_a_parent_folder_suggests_the_data_set(tmp_path, place):
    """As after unpacking an archive of macOS."""
    write_folder(tmp_path / place, {"cat": 3, "dog": 3})
    (tmp_path / "__MACOSX/photos").mkdir(parents=True)
    folder = tmp_path / place.removesuffix("/train")
    hint = f"If {folder} is the data set, pass --dataset={folder}."
    with pytest.raises(UserError) as error:
        choose_splits(open_dataset(str(tmp_path)))
    assert str(error.value).endswith(hint)
    choose_splits(open_dataset(str(folder)))


def test_data_set_among_classes_is_reported(tmp_path):
    write_folder(tmp_path, {"photos/train/cat": 3, "photos/train/dog": 3})
    write_folder(tmp_path, {"more": 3})
    [warning] = open_dataset(str(tmp_path)).warnings
    assert warning.startswith(f"{tmp_path / 'photos'}: read as a class, but")
    assert warning.endswith(f"pass --dataset={tmp_path / 'photos'}.")


@pytest.mark.parametrize("place", ["train/cat", "cat"])
def test_error_for_a_class_folder_suggests_the_data_set(tmp_path, place):
    write_folder(tmp_path, {place: 3})
    with pytest.raises(UserError) as error:
        open_dataset(str(tmp_path / place))
    assert str(error.value).endswith(
        ": no class folders found. If its images are one class, pass "
        f"--dataset={tmp_path}."
    )


def test_images_outside_of_classes_and_splits_inside_are_reported(tmp_path):
    counts = {f"{c}/{s}": 2 for c in ("cat", "dog") for s in ("Train", "test")}
    write_folder(tmp_path, counts)
    write_bytes(tmp_path, "1.jpg", "2.JPG", "readme.txt")
    stored = open_dataset(str(tmp_path))
    assert stored.splits["train"].num_examples == 8
    loose, inside = stored.warnings
    assert loose == (
        f"{tmp_path}: skipped 2 images outside of class folders: 1.jpg, 2.JPG. "
        "Move them into class folders."
    )
    assert inside.startswith(f"{tmp_path}/cat/Train, {tmp_path}/cat/test, ")
    assert ": read as part of a class, not as a split. For splits" in inside
    # Images directly in the folder of a split are skipped as well.
    write_folder(tmp_path / "more", {"train/cat": 2, "train/dog": 2})
    write_bytes(tmp_path / "more", "train/1.jpg")
    [loose] = open_dataset(str(tmp_path / "more")).warnings
    assert loose.startswith(f"{tmp_path / 'more/train'}: skipped 1 images out")
