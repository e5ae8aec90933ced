"""Image files: formats, paths and links."""

import os
import shutil
import tracemalloc

import numpy as np
import PIL.features
import pytest
import tensorflow as tf
from samples import encoded, write_folder

from train_loop.data.datasets import (
    check_new,
    choose_splits,
    open_dataset,
)
from train_loop.data.image_files import IMAGE_SUFFIXES, Paths
from train_loop.errors import UserError


@pytest.mark.skipif(
    not PIL.features.check("avif"),
    reason="Pillow reads AVIF from version 11.3 on.",
)
def test_folder_can_contain_all_image_formats(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), "uint8")
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for suffix in IMAGE_SUFFIXES:
            file_format = suffix[1:]
            file_format = {
                "jpg": "jpeg",
                "jfif": "jpeg",
                "tif": "tiff",
                "heic": "heif",
            }.get(file_format, file_format)
            (tmp_path / kind / f"x{suffix.upper()}").write_bytes(
                encoded(pixels, file_format)
            )
    stored = open_dataset(str(tmp_path))
    assert stored.splits["train"].num_examples == 2 * len(IMAGE_SUFFIXES)
    assert not stored.warnings


@pytest.mark.slow
def test_paths_are_restored_and_use_little_memory(tmp_path):
    names = ["a.png", "b\nc.png", "é.png", "\U0001f600 x.jpg", "..b.gif"]
    folders = ["", "x/", "/y/é/", "x/", "x/../x/z/", "../"]
    expected = [folder + name for folder in folders for name in names]
    paths = Paths()
    for path in expected:
        paths.append(path)
    assert [*paths] == expected
    assert len(paths) == len(expected)
    assert [*paths.relative_to("x")] == [
        os.path.relpath(path, "x") for path in expected
    ]
    read = tf.function(paths.tensor)
    numbers = np.random.default_rng(0).permutation(len(expected))
    read = read(tf.constant(numbers, tf.int64)).numpy()
    assert [*read] == [expected[number].encode() for number in numbers]
    tracemalloc.start()
    paths = Paths()
    for number in range(20_000):
        paths.append(f"{tmp_path}/n{number // 1000:08}/{number:020}.JPEG")
    assert tracemalloc.get_traced_memory()[0] / len(paths) < 25 + 15
    tracemalloc.stop()


@pytest.mark.parametrize("linked", ["split", "class", "image", "hard"])
def test_splits_of_the_same_files_are_rejected_for_new_runs(tmp_path, linked):
    counts = {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/emu": 1}
    write_folder(tmp_path, counts)
    shared, path = {
        "split": (6, "val"),
        "class": (3, "val/cat"),
        "image": (1, "val/cat/0.jpeg"),
        "hard": (1, "val/cat/0.jpeg"),
    }[linked]
    target = tmp_path / path.replace("val", "train")
    if linked in ("split", "class"):
        shutil.rmtree(tmp_path / path)
    else:
        (tmp_path / path).unlink()
    if linked == "hard":
        (tmp_path / path).hardlink_to(target)
    else:
        (tmp_path / path).symlink_to(target)
    data = choose_splits(open_dataset(str(tmp_path)))
    with pytest.raises(UserError) as error:
        check_new(data, "photos")
    [line] = str(error.value).splitlines()
    assert line.startswith(
        f"--dataset=photos: {shared} evaluation images are the same files as "
    )
    assert f"{tmp_path}/val/cat/" in line
    # Slices of a split without shared files are accepted.
    data = choose_splits(open_dataset(str(tmp_path)), "train[:2]", "train[2:]")
    check_new(data, "photos")


def test_files_shared_by_two_of_several_splits_are_found(tmp_path):
    write_folder(
        tmp_path,
        {f"{s}/{c}": 3 for s in ("train", "val", "test") for c in "ab"},
    )
    for one, other in (("test/a/0", "val/b/1"), ("test/b/2", "train/a/0")):
        (tmp_path / f"{one}.jpeg").unlink()
        (tmp_path / f"{one}.jpeg").hardlink_to(tmp_path / f"{other}.jpeg")
    splits = open_dataset(str(tmp_path)).splits

    def linked(*names):
        here, there = (splits[name] for name in names)
        return [
            tuple(os.path.relpath(here.store.name(n), tmp_path) for n in pair)
            for pair in here.linked(there)
        ]

    assert linked("test", "val") == [("test/a/0.jpeg", "val/b/1.jpeg")]
    assert linked("train", "test") == [("train/a/0.jpeg", "test/b/2.jpeg")]
    assert linked("train", "val") == []
