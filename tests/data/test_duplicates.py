"""Exact duplicates of images: found, told apart, and in time."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from samples import records

from train_loop.data import duplicates
from train_loop.data.sources import open_stored
from train_loop.data.split import Split
from train_loop.data.stored import Data, choose_splits
from train_loop.data.stores import MemoryStore

# Place -> content. Those of one letter are all of one size.
FILES = {
    "train/cat/a.png": b"A",
    "train/cat/b.png": b"A",
    "train/cat/c.png": b"B",
    "train/cat/large.png": b"A" * 9,
    "train/dog/d.png": b"B",
    "train/dog/e.png": b"C",
    "train/dog/f.png": b"D",
    "test/cat/g.png": b"C",
    "test/dog/h.png": b"E",
    "test/dog/larger.png": b"A" * 10,
}
PAIRS = {
    "within a class": {"a.png", "b.png"},
    "between classes": {"c.png", "d.png"},
    "between splits": {"e.png", "g.png"},
}


@pytest.fixture
def data(tmp_path):
    for place, content in FILES.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return choose_splits(open_stored(str(tmp_path)))


def short(name):
    return name.rpartition("/")[2]


def test_duplicates_are_told_apart_by_where_they_are(data):
    found = duplicates.find_duplicates([*data.splits.values()])
    groups = duplicates.members(found.groups, data)
    assert {
        duplicates.kind_of(group): {short(name) for name, *_ in group}
        for group in groups
    } == PAIRS
    # What has a size of its own was not read.
    assert (found.candidates, found.unchecked) == (8, 0)


def test_only_what_could_be_in_both_splits_is_read_for_training(data):
    found = duplicates.find_duplicates([*data.splits.values()], between=True)
    [group] = duplicates.members(found.groups, data)
    assert duplicates.kind_of(group) == "between splits"
    [warning] = duplicates.leak_warnings(data, seconds=1e9)
    assert warning.startswith(
        "1 images to evaluate on are exact duplicates of images to train on, "
    )
    for text in (
        "such as ",
        "e.png (train, dog) = ",
        "g.png (eval, cat). Results look",
    ):
        assert text in warning


def test_what_there_is_no_time_for_is_reported(data):
    ticks = itertools.count()
    lines = duplicates.leak_warnings(data, 4, clock=lambda: next(ticks))
    assert lines[-1] == (
        "5 of 8 images that have the size of one in the other split were not "
        "compared within 4 s; --mode=data compares all"
    )


def test_image_that_cannot_be_read_is_no_duplicate(data):
    for number in range(data.train.store.num_examples):
        path = data.train.store.name(number)
        if short(path) == "a.png":
            tf.io.gfile.remove(path)
    found = duplicates.find_duplicates([*data.splits.values()])
    assert len(found.groups) == 2
    assert found.unchecked == 0


def test_duplicates_in_other_stores_are_found_by_reading_all(tmp_path):
    store = MemoryStore(tf.constant(list("abcab")), np.array([0, 1, 0, 0, 2]))
    split = Split.of_all(store)
    data = Data(("x", "y", "z"), split.slice(0, 3), split.slice(3, 5), {})
    found = duplicates.find_duplicates([data.train, data.evaluation])
    assert [group.tolist() for group in found.groups] == [[0, 3], [1, 4]]
    assert [
        *map(duplicates.kind_of, duplicates.members(found.groups, data))
    ] == [
        "between splits",
        "between splits",
    ]
    # A run does not wait for that.
    assert duplicates.leak_warnings(data, 1e9) == []
    # Nor does it know the classes of records.
    assert duplicates.find_duplicates([records(12, tmp_path)]).groups == []
    one = records(1, tmp_path)
    assert duplicates.find_duplicates([one]).groups == []


def test_of_many_duplicates_one_of_each_kind_is_named():
    group = [duplicates.Member(f"{n}.png", "train", "cat") for n in range(5)]
    group.append(duplicates.Member("6.png", "eval", "cat"))
    assert duplicates.described(group) == (
        "0.png (train, cat) = 6.png (eval, cat) = 1.png (train, cat) and 3 more"
    )
