"""Random access to records and to examples in memory."""

import dataclasses
import pathlib
import re
import time

import numpy as np
import pytest
import tensorflow as tf
from samples import SPLITS, SmallWindows, indexed, records

from train_loop.data import tfds
from train_loop.data.batches import shuffled_examples
from train_loop.data.split import MemoryStore, Split
from train_loop.data.tfds import WINDOW_BYTES, RecordStore

# Name -> folder for files -> store of the numbers from 0 to 22.
STORES = {
    **{n: lambda f, make=make: make(f).store for n, make in SPLITS.items()},
    "indexed records": lambda folder: records(23, folder).store.seekable,
}


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    return STORES[request.param](tmp_path)


def test_examples_are_read_in_the_requested_order(store):
    read = tf.function(
        store.read, input_signature=[tf.TensorSpec([None], tf.int64)]
    )
    random = np.random.default_rng(0)
    chosen = [
        random.permutation(23)[: random.integers(1, 24)] for _ in range(40)
    ]
    # At both ends, across files, and without some of the files.
    chosen += [[0], [22], [4, 5], [5, 4], [21, 12, 7, 13], [*range(22, -1, -1)]]
    for numbers in chosen:
        examples = read(tf.constant(numbers, tf.int64))
        np.testing.assert_array_equal(examples["label"], numbers)
        images = [int(image) for image in examples["image"].numpy()]
        np.testing.assert_array_equal(images, numbers)
    eager = store.read(tf.constant([21, 12, 7, 13], tf.int64))
    assert eager["label"].numpy().tolist() == [21, 12, 7, 13]


def bytes_read():
    """Returns the number of bytes that this process has read so far."""
    status = pathlib.Path("/proc/self/io").read_text()
    return int(re.search(r"rchar: (\d+)", status)[1])


def large_records(folder, files=4, per_file=16):
    """Returns a store of records of 20 kB."""
    paths = [str(folder / f"{number}.tfrecord") for number in range(files)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(per_file):
                writer.write(bytes(20_000))
    parse = {"image": tf.identity, "label": tf.strings.length}
    return RecordStore(
        paths,
        files * [per_file],
        lambda record: {name: make(record) for name, make in parse.items()},
        20_000.0,
    )


counted = pytest.mark.skipif(
    not pathlib.Path("/proc/self/io").exists(), reason="counts by /proc"
)


@counted
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_read_only_their_records(tmp_path, workers):
    """At most 10% more, including the index of the records."""
    store = large_records(tmp_path)
    order = np.random.default_rng(0).permutation(store.num_examples)
    for numbers in np.split(order, workers):
        before = bytes_read()
        seekable = dataclasses.replace(store).seekable
        labels = seekable.read(tf.constant(numbers, tf.int64))["label"]
        assert labels.numpy().tolist() == [20_000] * len(numbers)
        assert bytes_read() - before < 1.1 * 20_000 * len(numbers)
        assert len(seekable.ends) == len(order)


@counted
def test_consecutive_records_are_read_in_full_buffers(tmp_path, monkeypatch):
    """No buffer goes past the last record."""
    monkeypatch.setattr(tfds, "READ_BUFFER_BYTES", 50_000)
    store = large_records(tmp_path).seekable
    assert store.seekable is store
    before = bytes_read()
    store.read(tf.range(3, 10, dtype=tf.int64))
    assert bytes_read() - before < 1.1 * 20_000 * 7


def test_files_without_an_index_are_readable(tmp_path):
    store = records(23, tmp_path).store
    path = pathlib.Path(store.files[-1])
    path.write_bytes(path.read_bytes()[:-1])
    assert store.seekable is store
    elsewhere = RecordStore(["gs://bucket/a.tfrecord"], [3], None, 1.0)
    assert elsewhere.seekable is elsewhere


@pytest.fixture
def opened(monkeypatch):
    """Returns a list that grows with each record file that is opened."""
    paths, real = [], tf.data.TFRecordDataset

    def spy(path, **options):
        def note(path):
            paths.append(path.numpy().decode())
            return path

        return real(tf.py_function(note, [path], tf.string), **options)

    monkeypatch.setattr(tf.data, "TFRecordDataset", spy)
    return paths


def counting(split):
    """Returns the split, and a list that grows with each parsed record."""
    parsed = []

    def parse(record):
        def note(record):
            parsed.append(int(record.numpy()))
            return record

        record = tf.py_function(note, [record], tf.string)
        record = tf.ensure_shape(record, [])
        return {
            "image": record,
            "label": tf.strings.to_number(record, tf.int64),
        }

    store = split.store
    store = SmallWindows(store.files, store.counts, parse, store.sizes)
    return Split(store, split.indices), parsed


def test_only_requested_records_are_parsed_and_files_opened_once(
    tmp_path, opened
):
    split, parsed = counting(records(23, tmp_path))
    split.store.read(tf.constant([21, 3, 12, 1, 14], tf.int64))
    assert sorted(parsed) == [1, 3, 12, 14, 21]
    assert opened == [split.store.files[file] for file in (0, 2, 4)]


@pytest.mark.slow
def test_epoch_reopens_a_file_only_at_the_end_of_a_window(tmp_path, opened):
    split = records(23, tmp_path)
    for epoch in range(3):
        opened.clear()
        labels = []
        for begin in range(0, 23, 7):
            count = tf.constant(min(7, 23 - begin), tf.int64)
            examples = split.read([epoch, 0], begin, count)
            labels += examples["label"].numpy().tolist()
        assert sorted(labels) == list(range(23))
        assert set(opened) == {*split.store.files}
        assert len(opened) <= 5 + 4 - 1


def final_length(numbers, at_least):
    """Returns the length of a list when it no longer grows."""
    deadline = time.monotonic() + 60
    while len(numbers) < at_least and time.monotonic() < deadline:
        time.sleep(0.01)
    count = -1
    while count != len(numbers):
        count = len(numbers)
        time.sleep(0.3)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("order", ["stored", "shuffled"])
def test_at_most_three_windows_are_in_memory(tmp_path, order):
    """Independent of the size of the data and the speed of reading."""
    split, parsed = counting(records(230, tmp_path))
    if order == "stored":
        examples = split.stored()
    else:
        examples = shuffled_examples(split, seed=0, start=0)
    for used, _ in enumerate(examples.take(16)):
        if used % 7 == 1:
            # One window is read ahead, or in progress.
            assert 0 < final_length(parsed, used + 1) - used <= 3 * 7


def test_window_size_follows_the_memory_limit():
    def window(sizes):
        return RecordStore(["a", "b"], [3, 5], None, sizes).window

    assert window(WINDOW_BYTES / 100) == 100
    assert window(3.0 * WINDOW_BYTES) == 1
    # A size of 0 is not a divisor.
    assert window(0) > 0
    # The window of a split is at most the size of the split.
    assert Split.of_all(RecordStore(["a"], [3], None, 100.0)).window == 3


def test_records_have_the_ids_of_tfds(tmp_path):
    store = records(23, tmp_path).store
    assert store.name(0) == "0.tfrecord__0"
    assert store.name(9) == "5.tfrecord__4"
    assert store.name(22) == "20.tfrecord__2"


def test_empty_record_files_are_skipped(tmp_path):
    store = records(10, tmp_path).store
    empty = str(tmp_path / "empty.tfrecord")
    tf.io.TFRecordWriter(empty).close()
    first, second = store.files
    files = [empty, first, empty, second, empty]
    store = SmallWindows(files, [0, 5, 0, 5, 0], store.parse, 10.0)
    numbers = [9, 0, 4, 5]
    examples = store.read(tf.constant(numbers, tf.int64))
    assert examples["label"].numpy().tolist() == numbers
    assert store.name(5) == "5.tfrecord__0"
    examples = store.seekable.read(tf.constant(numbers, tf.int64))
    assert examples["label"].numpy().tolist() == numbers


def test_loader_maps_images_of_a_memory_store():
    store = MemoryStore(
        tf.constant([[1, 2], [3, 4]]),
        np.array([1, 0]),
        loader=lambda row: tf.strings.join(
            [tf.strings.as_string(row[0]), tf.strings.as_string(row[1])], "-"
        ),
    )
    example = store.read(tf.constant([1], tf.int64))
    assert store.load(example["image"][0]).numpy() == b"3-4"
    assert indexed(3).store.load(tf.constant("as it is")).numpy() == b"as it is"
