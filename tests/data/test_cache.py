"""Caches of splits: the same examples, names and orders."""

import os

import numpy as np
import pytest
import tensorflow as tf
from samples import (
    ALONE,
    encoded,
    indexed,
    records,
    together,
    write_folder,
)

from train_loop.data import cache
from train_loop.data.batches import (
    Batching,
    evaluation_batches,
    shuffled_examples,
    training_batches,
)
from train_loop.data.folder import open_folder
from train_loop.data.transforms import Untransformed

pytestmark = pytest.mark.slow


def shuffle(split):
    return split.take(np.random.default_rng(0).permutation(split.num_examples))


FILES = indexed(30, groups=np.arange(30) // 5, window=7)
# Name -> folder for files -> split.
SPLITS = {
    "part of memory": lambda folder: shuffle(
        indexed(30, window=5).without([0, 4, 5, 29])
    ),
    "two parts of windows": lambda folder: FILES.slice(18, 30).plus(
        FILES.slice(0, 9)
    ),
    "records with gaps": lambda folder: shuffle(
        records(30, folder).without([0, 4, 7, 11, 12, 13, 29])
    ),
}


@pytest.fixture(params=SPLITS)
def split(request, tmp_path):
    return SPLITS[request.param](tmp_path)


def numbers(dataset):
    return [int(number) for number in dataset.as_numpy_iterator()]


def stored(split):
    return numbers(split.stored().map(lambda e: split.load(e["image"])))


def epochs(split):
    """Returns the order of two epochs, from the middle of the first."""
    examples = shuffled_examples(split, seed=1, start=9)
    images = examples.map(lambda example: split.load(example["image"]))
    return numbers(images.take(2 * split.num_examples))


def test_orders_are_the_same_for_every_cache(split, tmp_path):
    kept = [
        keep(split, tmp_path / "cache", ALONE) for keep in cache.CACHES.values()
    ]
    orders = [epochs(each) for each in kept]
    assert orders[0] != sorted(orders[0])
    assert orders[1:] == [orders[0]] * (len(kept) - 1)


def batches_of_a_worker(split):
    context = tf.distribute.InputContext(2, 1, 2)
    parts = [
        training_batches(
            split, Untransformed(), Batching(4, 3), 2, context
        ).take(15),
        evaluation_batches(split, Untransformed(), 4, context),
    ]
    return [
        [tensor.numpy().tolist() for tensor in batch]
        for part in parts
        for batch in part
    ]


def test_batches_of_a_worker_are_the_same_for_every_cache(tmp_path):
    split = SPLITS["two parts of windows"](tmp_path)
    expected, *others = (
        batches_of_a_worker(keep(split, tmp_path / "cache", ALONE))
        for keep in cache.CACHES.values()
    )
    assert others == [expected] * 2


@pytest.mark.parametrize("name", cache.CACHES)
def test_caches_keep_examples_and_names(name, tmp_path):
    split = SPLITS["records with gaps"](tmp_path)
    path = tmp_path / "run" / "cache"
    names = [split.store.name(number) for number in split.indices]
    for _ in range(2):
        kept = cache.CACHES[name](split, path, ALONE)
        assert stored(kept) == stored(split)
        assert [kept.store.name(number) for number in kept.indices] == names
        assert kept.num_examples == split.num_examples
        assert kept.num_bytes == pytest.approx(split.num_bytes, abs=1)
    assert path.is_dir() == (name == "disk")


def counting(split, loads):
    """Returns the split; `loads` grows with each image that is loaded."""

    def load(image):
        def note(image):
            loads.append(image.numpy())
            return image

        return tf.ensure_shape(tf.py_function(note, [image], tf.string), [])

    return indexed(split.num_examples, loader=load)


def test_cache_on_disk_is_read_instead_of_the_files(tmp_path):
    loads = []
    split = counting(indexed(23), loads)
    kept = cache.on_disk(split, tmp_path / "cache", ALONE)
    assert len(loads) == 23
    again = cache.on_disk(split, tmp_path / "cache", ALONE)
    assert stored(kept) == stored(again) == list(range(23))
    assert len(loads) == 23


@pytest.mark.parametrize(("disks", "caches"), [("aa", 1), ("ab", 2)])
def test_workers_write_one_cache_per_disk(disks, caches, tmp_path):
    loads = []
    split = counting(indexed(23), loads)

    def keep(workers):
        return cache.on_disk(split, tmp_path / disks[workers.number], workers)

    assert [stored(kept) for kept in together(keep)] == [[*range(23)]] * 2
    assert len(loads) == caches * 23


def test_cache_of_a_worker_is_outdated_when_the_chief_has_changed(tmp_path):
    for disk in "ab":
        write_folder(tmp_path / disk, {"train/cat": 3, "train/dog": 3})

    def keep(workers):
        disk = tmp_path / "ab"[workers.number]
        cache.on_disk(open_train(disk), disk.with_suffix(".copy"), workers)
        return (disk.with_suffix(".copy") / "labels.npy").stat().st_mtime_ns

    def touch(path):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    first = together(keep)
    touch(tmp_path / "b/train/cat/0.jpeg")
    assert together(keep) == first
    touch(tmp_path / "a/train/cat/0.jpeg")
    assert not set(together(keep)) & set(first)


def test_cache_on_disk_is_complete_or_missing(tmp_path):
    def load(image):
        number = tf.strings.to_number(image)
        with tf.control_dependencies([tf.debugging.assert_less(number, 9.0)]):
            return tf.identity(image)

    folder = tmp_path / "cache"
    with pytest.raises(tf.errors.InvalidArgumentError):
        cache.on_disk(indexed(23, loader=load), folder, ALONE)
    assert not [*tmp_path.iterdir()]
    # A slice without the unreadable examples has another identity.
    assert stored(cache.on_disk(indexed(9, loader=load), folder, ALONE)) == [
        *range(9)
    ]


def open_train(root):
    return open_folder(root).splits["train"]


def read_all(split):
    return [split.load(example["image"]).numpy() for example in split.stored()]


def test_cache_is_rewritten_when_the_images_change(tmp_path):
    root, folder = tmp_path / "images", tmp_path / "cache"
    write_folder(root, {"train/cat": 3, "train/dog": 3})
    copies = [read_all(cache.on_disk(open_train(root), folder, ALONE))]
    # Another content of a file, another file, a slice.
    pixels = np.full((9, 9, 3), 7, "uint8")
    (root / "train/cat/0.jpeg").write_bytes(encoded(pixels, "jpeg"))
    copies.append(read_all(cache.on_disk(open_train(root), folder, ALONE)))
    (root / "train/cat/new.png").write_bytes(encoded(pixels, "png"))
    copies.append(read_all(cache.on_disk(open_train(root), folder, ALONE)))
    assert copies[-1] == read_all(open_train(root))
    part = open_train(root).slice(0, 5)
    copies.append(read_all(cache.on_disk(part, folder, ALONE)))
    assert copies[-1] == read_all(part)
    assert [len(copy) for copy in copies] == [6, 6, 7, 5]
    assert copies[0] != copies[1]


def test_cache_is_kept_when_the_folder_moves(tmp_path):
    write_folder(tmp_path / "here", {"train/cat": 3, "train/dog": 3})
    folder = tmp_path / "cache"
    cache.on_disk(open_train(tmp_path / "here"), folder, ALONE)
    written = (folder / "images.bin").stat().st_mtime_ns
    (tmp_path / "here").rename(tmp_path / "there")
    kept = cache.on_disk(open_train(tmp_path / "there"), folder, ALONE)
    assert (folder / "images.bin").stat().st_mtime_ns == written
    assert str(tmp_path / "there") in kept.store.name(0)


def test_embeddings_replace_images(tmp_path):
    split = records(23, tmp_path).without([0, 11])
    rows = np.random.default_rng(0).normal(size=(21, 5)).astype("f4")
    rows.tofile(tmp_path / "embeddings.bin")
    labels = np.array(stored(split))
    np.save(tmp_path / "labels.npy", labels)
    kept = cache.embedded(split, tmp_path)
    batches = training_batches(kept, Untransformed(), Batching(7, 3)).take(6)
    plain = training_batches(split, Untransformed(), Batching(7, 3)).take(6)
    for (vectors, kept_labels), (_, expected) in zip(
        batches, plain, strict=True
    ):
        np.testing.assert_array_equal(kept_labels, expected)
        places = np.searchsorted(labels, expected)
        np.testing.assert_array_equal(vectors, rows[places])


def test_auto_keeps_small_splits_in_memory():
    small = indexed(3)
    assert cache.choose_cache([small, small]) == "memory"
    large = indexed(2, sizes=2**27)
    assert cache.choose_cache([large, small]) == "memory"
    assert cache.choose_cache([large, large]) == "none"
