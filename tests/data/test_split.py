"""Splits without input pipelines: slices, orders, names, identities."""

import os

import numpy as np
import pytest
import tensorflow as tf
from samples import ALONE, SPLITS, indexed, records, write_folder

from train_loop.data.folder import open_folder
from train_loop.data.split import MemoryStore, Split, content_hash, shuffled


@pytest.fixture(params=SPLITS)
def split(request, tmp_path):
    return SPLITS[request.param](tmp_path)


def stored(split):
    """Returns the labels in stored order, and checks numbers and images."""
    labels = []
    for number, example in zip(split.indices, split.stored(), strict=True):
        labels.append(int(example["label"]))
        assert int(example["number"]) == number
        image = split.load(example["image"])
        assert int(tf.strings.to_number(image)) == labels[-1]
    assert len(labels) == split.num_examples
    return labels


@pytest.mark.slow
def test_slices_contain_the_expected_examples(split):
    assert stored(split.slice(3, 17)) == list(range(3, 17))
    assert stored(split.slice(None, -20)) == [0, 1, 2]
    assert stored(split.slice(4, 8).plus(split.slice(20, 23))) == [
        *range(4, 8),
        *range(20, 23),
    ]
    rest = split.without([0, 6, 7, 22])
    assert stored(rest) == sorted({*range(23)} - {0, 6, 7, 22})
    assert stored(rest.slice(4, 9)) == [5, 8, 9, 10, 11]
    # The numbers of the store, not the positions in the split.
    assert stored(rest.without([5, 8]).slice(3, 6)) == [4, 9, 10]
    expected = split.num_bytes * 19 / 23
    assert rest.num_bytes == pytest.approx(expected, abs=1)


def test_examples_can_be_in_any_order(split):
    order = np.random.default_rng(0).permutation(23)
    assert stored(split.take(order)) == order.tolist()
    assert stored(split.slice(10, 23).plus(split.slice(0, 10))) == [
        *range(10, 23),
        *range(10),
    ]


def test_num_bytes_counts_only_the_examples_of_the_split():
    split = indexed(4, sizes=np.array([1, 20, 300, 4000]))
    assert split.num_bytes == 4321
    assert split.without([1, 3]).num_bytes == 301


def test_labels_of_a_memory_store_are_known(tmp_path):
    assert indexed(23).without([0, 6]).labels[:5].tolist() == [1, 2, 3, 4, 5]
    assert records(23, tmp_path).labels is None


def test_slices_keep_the_names(split):
    names = [split.store.name(number) for number in range(23)]
    assert len(set(names)) == 23
    rest = split.without([0, 6, 7, 22])
    assert [rest.store.name(number) for number in rest.indices] == [
        names[label] for label in stored(rest)
    ]


@pytest.mark.slow
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


def windows(split, seed):
    """Returns the numbers of an epoch, window by window."""
    return [
        split.numbers(
            tf.constant([seed, 0], tf.int64),
            tf.constant(begin, tf.int64),
            tf.constant(min(split.window, split.num_examples - begin)),
        )
        .numpy()
        .tolist()
        for begin in range(0, split.num_examples, split.window)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["all", "with gaps", "two parts"])
def test_epochs_read_each_record_file_once_and_forward(tmp_path, part):
    split = records(23, tmp_path)
    split = {
        "all": split,
        "with gaps": split.without([0, 3, 6, 7, 11, 22]),
        "two parts": split.slice(2, 9).plus(split.slice(13, 20)),
    }[part]
    orders, begins = set(), set()
    for seed in range(20):
        epoch = windows(split, seed)
        assert sorted(sum(epoch, [])) == sorted(split.indices)
        assert {len(window) for window in epoch[:-1]} == {7}
        # `read` sorts each window by file. Only the last file of a window can
        # continue in the next one.
        files, last = [], {}
        for window in epoch:
            in_window = sorted(window)
            groups = split.store.groups[in_window].tolist()
            for file, number in zip(groups, in_window, strict=True):
                assert last.get(file, -1) < number
                last[file] = number
            files.append(set(groups))
        visits = sum(map(len, files))
        shared = sum(map(len, map(set.intersection, files, files[1:])))
        assert visits - shared == len(last)
        assert shared < len(epoch)
        orders.add(str(epoch))
        begins.update(files[0])
    assert len(orders) == 20
    # Each file is in the first window of some epoch.
    assert begins == set(last)


def test_orders_do_not_repeat():
    orders = {
        shuffled(tf.range(20), [3, epoch], 20).numpy().tobytes()
        for epoch in range(200)
    }
    assert len(orders) == 200


@pytest.mark.slow
@pytest.mark.parametrize("count", range(1, 11))
def test_small_orders_are_uniform_permutations(count):
    """The tolerance for each position is four standard deviations."""
    orders = np.stack(
        [shuffled(tf.range(count), [seed, 7], count) for seed in range(100)]
    )
    assert (np.sort(orders) == range(count)).all()
    counts = np.stack([np.sum(orders == i, axis=0) for i in range(count)])
    probability = 1 / count
    deviation = (100 * probability * (1 - probability)) ** 0.5
    assert np.abs(counts - 100 * probability).max() <= 4 * deviation


def autocorrelations(order):
    """Returns them for lags below half, in standard deviations."""
    count = len(order)
    values = (order - order.mean()) / order.std()
    spectrum = np.fft.rfft(values, 1 << (2 * count).bit_length())
    sums = np.fft.irfft(spectrum * spectrum.conj())[1 : count // 2]
    return sums / np.sqrt(count - np.arange(1, count // 2))


def assert_random(order):
    """Fails if a permutation of 0 to count - 1 is not random."""
    count = len(order)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    assert np.abs(autocorrelations(order)).max() < 6
    # As many increases as decreases.
    rises = np.count_nonzero(np.diff(order) > 0)
    assert abs(rises - (count - 1) / 2) < 5 * ((count + 1) / 12) ** 0.5
    # Counts of classes in each batch, for data that is sorted by class.
    classes, batch = 10, 64
    batches = (order[: count // batch * batch] * classes // count).reshape(
        -1, batch
    )
    counts = np.stack([np.sum(batches == i, axis=1) for i in range(classes)])
    mean = batch / classes
    chi_squared = np.sum((counts - mean) ** 2 / mean, axis=0)
    # Without replacement, batches are slightly more balanced.
    expected = (classes - 1) * (count - batch) / (count - 1)
    deviation = (2 * (classes - 1) / len(batches)) ** 0.5
    assert abs(chi_squared.mean() - expected) < 5 * deviation


def test_orders_of_numpy_are_random():
    """The checks of `assert_random` accept a reference."""
    for count in (1000, 4096, 50_000, 2**20):
        assert_random(np.random.default_rng(count).permutation(count))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [
        1000,
        *(2**12 - 1, 2**12, 2**12 + 1),
        50_000,
        *(2**16 - 15, 2**16 - 1, 2**16, 2**16 + 1),
        *(2**18 + 1, 2**20, 2**20 + 1),
        1_281_167,
    ],
)
def test_orders_are_random(count):
    """Includes primes, powers of two, their neighbors, and ImageNet."""
    numbers = tf.range(tf.constant(count, tf.int64))
    assert_random(shuffled(numbers, [0, 1], count).numpy())


@pytest.mark.slow
def test_orders_of_files_and_within_windows_are_random():
    files, per_file = 128, 64
    groups = np.repeat(np.arange(files), per_file)
    split = indexed(files * per_file, groups=groups, window=32 * per_file)
    epoch = windows(split, 3)
    assert len(epoch) == 4
    for window in epoch:
        # Ranks, because the numbers of a window depend on its files.
        assert_random(np.argsort(np.argsort(window)))
    split = indexed(files * per_file, groups=groups, window=per_file)
    assert_random(np.array([groups[w[0]] for w in windows(split, 3)]))


def test_overlap_counts_common_examples(split):
    assert split.slice(0, 9).overlap(split.slice(9, 23)) == 0
    assert split.slice(0, 9).overlap(split.slice(4, 23)) == 5
    assert split.overlap(split.without([0, 6, 7, 22])) == 19


def test_identity_depends_on_examples_and_order(tmp_path):
    split = records(23, tmp_path)
    assert split.identity == records(23, tmp_path).identity
    identities = {
        split.identity,
        split.slice(0, 22).identity,
        split.without([4]).identity,
        split.take(np.arange(23)[::-1]).identity,
    }
    assert len(identities) == 4


def test_identity_of_records_depends_on_files_and_counts(tmp_path):
    (tmp_path / "moved").mkdir()
    identities = {
        records(23, tmp_path).identity,
        records(23, tmp_path / "moved").identity,
    }
    assert len(identities) == 1
    identities.add(records(24, tmp_path).slice(0, 23).identity)
    assert len(identities) == 2


def open_train(root):
    return open_folder(root).splits["train"]


def test_identity_of_a_folder_is_kept_when_it_moves(tmp_path):
    write_folder(tmp_path / "here", {"train/cat": 3, "train/dog": 2})
    before = open_train(tmp_path / "here").identity
    (tmp_path / "here").rename(tmp_path / "there")
    assert open_train(tmp_path / "there").identity == before


@pytest.mark.parametrize("change", ["added", "renamed", "relabelled", "class"])
def test_identity_of_a_folder_depends_on_its_content(tmp_path, change):
    write_folder(tmp_path, {"train/cat": 3, "train/dog": 2})
    train = tmp_path / "train"
    before = open_train(tmp_path).identity
    if change == "added":
        (train / "cat/new.jpeg").write_bytes(b"new")
    elif change == "renamed":
        (train / "cat/0.jpeg").rename(train / "cat/7.jpeg")
    elif change == "relabelled":
        (train / "cat/2.jpeg").rename(train / "dog/2.jpeg")
    else:
        # The labels of the other classes change.
        write_folder(tmp_path, {"train/ape": 1})
    assert open_train(tmp_path).identity != before


def test_identity_depends_on_the_labels():
    images = tf.constant(["a", "b"])
    identities = {
        content_hash(["a", "b"], np.array(labels).tobytes())
        for labels in ([0, 1], [1, 0], [0, 0])
    }
    assert len(identities) == 3
    splits = [
        Split.of_all(MemoryStore(images, np.zeros(2, int), identity=identity))
        for identity in identities
    ]
    assert len({split.identity for split in splits}) == 3


def change_newest(path):
    path.write_bytes(b"other bytes")


def change_to_an_older_file(path):
    """Like `cp -p`, `tar` and `rsync`."""
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("change", [change_newest, change_to_an_older_file])
def test_origin_changes_with_a_file(tmp_path, change):
    write_folder(tmp_path, {"train/cat": 3, "train/dog": 2})
    before = open_train(tmp_path).origin(ALONE)
    assert before == open_train(tmp_path).origin(ALONE)
    change(tmp_path / "train/cat/1.jpeg")
    after = open_train(tmp_path).origin(ALONE)
    assert after["identity"] == before["identity"]
    assert after != before
