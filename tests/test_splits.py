"""Splits without their pipeline: parts, names, caches."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from samples import indexed, records

from train_loop import caching
from train_loop.splits import shuffled


@pytest.fixture(params=["indexed", "records"])
def split(request, tmp_path):
    if request.param == "indexed":
        return indexed(23)
    return records(23, tmp_path)


def stored(split):
    """Returns the labels, after a look at what goes with them."""
    labels = []
    for position, example in enumerate(split.stored()):
        labels.append(int(example["label"]))
        assert int(example["index"]) == position
        image = split.load(example["image"])
        assert int(tf.strings.to_number(image)) == labels[-1]
    assert len(labels) == split.num_examples
    return labels


def test_parts_hold_what_they_should(split):
    assert stored(split.slice(3, 17)) == list(range(3, 17))
    assert stored(split.slice(None, -20)) == [0, 1, 2]
    assert stored(split.slice(4, 8).plus(split.slice(20, 23))) == [
        *range(4, 8),
        *range(20, 23),
    ]
    rest = split.without([0, 6, 7, 22])
    assert stored(rest) == sorted({*range(23)} - {0, 6, 7, 22})
    assert stored(rest.slice(4, 9)) == [5, 8, 9, 10, 11]
    share = split.num_bytes * 19 / 23
    assert rest.num_bytes == pytest.approx(share, abs=1)


def test_files_with_gaps_are_read_once(tmp_path):
    """As many pieces as files, and not one between two gaps."""
    split = records(23, tmp_path)
    rest = split.without(range(0, 23, 2))
    assert len(rest.pieces) == len(split.pieces) == 5
    assert stored(rest) == list(range(1, 23, 2))
    rest = rest.without([0, 10]).slice(1, None)
    assert stored(rest) == list(range(5, 21, 2))
    assert rest.name(1) == split.name(7)


def test_parts_keep_the_names(split):
    names = [split.name(index) for index in range(23)]
    assert len(set(names)) == 23
    rest = split.without([0, 6, 7, 22])
    kept = [split.name(label) for label in stored(rest)]
    assert [rest.name(index) for index in range(19)] == kept


@pytest.mark.parametrize("start", [0, 5, 16])
def test_orders_are_shuffles_that_depend_on_the_seed(split, start):
    count = min(split.window, 23 - start)
    position, size = tf.constant([start, count], tf.int64)
    orders = [
        split.read([seed, 0], position, size)["label"].numpy().tolist()
        for seed in (1, 1, 2, 3)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3]
    assert len(set(orders[0])) == count


@pytest.mark.parametrize("name", caching.CACHES)
def test_caches_hold_the_same_under_the_same_names(split, name, tmp_path):
    path = tmp_path / "run" / "cache"
    names = [split.name(index) for index in range(23)]
    for _ in range(2):
        kept = caching.CACHES[name](split, path)
        assert stored(kept) == list(range(23))
        assert [kept.name(index) for index in range(23)] == names
    assert len(list(path.glob("*"))) == (name == "disk")


def test_cache_on_disk_is_read_instead_of_the_files(tmp_path, monkeypatch):
    loads = []

    def load(image):
        tf.py_function(lambda: loads.append(1), [], [])
        return image

    split = indexed(23, loader=load)
    # Several files, which an epoch reads in an order of its own.
    monkeypatch.setattr(caching, "FILE_BYTES", 200)
    kept = caching.on_disk(split, tmp_path / "cache")
    assert len(loads) == 23
    assert len(kept.pieces) > 3
    assert [kept.name(i) for i in range(23)] == [str(i) for i in range(23)]
    again = caching.on_disk(split, tmp_path / "cache")
    assert stored(kept) == stored(again)
    assert len(loads) == 23


def test_small_splits_go_to_memory_by_themselves():
    small = indexed(3)
    assert caching.choose([small, small]) == "memory"
    large = indexed(3, num_bytes=2**28)
    assert caching.choose([small, large]) == "memory"
    assert caching.choose([large, large]) == "none"


def test_orders_do_not_come_again():
    fold_in = tf.random.experimental.stateless_fold_in
    orders = {
        shuffled(tf.range(20), fold_in([3, 0], epoch), 20).numpy().tobytes()
        for epoch in range(1000)
    }
    assert len(orders) == 1000


def test_every_place_is_as_likely():
    """Over 2,000 orders of 5; four standard deviations are allowed."""
    places = np.zeros([5, 5])
    for seed in range(2000):
        order = shuffled(tf.range(5), tf.constant([seed, 7]), 5).numpy()
        places[order, range(5)] += 1
    np.testing.assert_allclose(places, 400, atol=4 * (2000 * 0.2 * 0.8) ** 0.5)


def test_hashes_tell_which_examples_and_which_files(tmp_path):
    split = records(23, tmp_path)
    same, other = records(23, tmp_path), split.slice(0, 22)
    assert same.listing() == split.listing() != other.listing()
    before = split.fingerprint()
    path = split.pieces[0].path
    with open(path, "ab") as file:
        file.write(b"more")
    assert split.listing() == same.listing()
    assert split.fingerprint() != before
    labels = tf.zeros([23], tf.int64)
    changed = dataclasses.replace(indexed(23), labels=labels)
    assert indexed(23).listing() != changed.listing()


def test_overlap_counts_what_is_in_both(split):
    assert split.slice(0, 9).overlap(split.slice(9, 23)) == 0
    assert split.slice(0, 9).overlap(split.slice(4, 23)) == 5
    assert split.overlap(split.without([0, 6, 7, 22])) == 19
    assert split.overlap(split.slice(0, 9).plus(split.slice(4, 11))) == 11
