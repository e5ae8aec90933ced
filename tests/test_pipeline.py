"""Order, resumption and exactness of the batches."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from samples import indexed, records

from train_loop import pipeline
from train_loop.pipeline import Share
from train_loop.splits import IndexedSplit


@pytest.fixture(params=["indexed", "records"])
def split(request, tmp_path):
    if request.param == "indexed":
        return indexed(23)
    return records(23, tmp_path)


def prepare(encoded, seed=None):
    number = tf.strings.to_number(encoded)
    if seed is not None:
        number += tf.random.stateless_uniform([], seed)
    return tf.reshape(number, [1])


def take(split, count, batch_size=5, seed=0, step=0, **options):
    batches = pipeline.training_batches(
        split, prepare, batch_size, seed, step, **options
    )
    batches = list(batches.take(count).as_numpy_iterator())
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def test_every_epoch_holds_every_example_once(split):
    _, labels = take(split, 23, batch_size=5)
    for epoch in range(5):
        assert sorted(labels[epoch * 23 : (epoch + 1) * 23]) == list(range(23))
    orders = {tuple(labels[e * 23 : (e + 1) * 23]) for e in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize("step", [1, 4, 5, 9, 14])
def test_batches_depend_on_seed_and_step_alone(split, step):
    images, labels = take(split, 16)
    later_images, later_labels = take(split, 16 - step, step=step)
    np.testing.assert_array_equal(later_labels, labels[step * 5 :])
    np.testing.assert_array_equal(later_images, images[step * 5 :])


def test_batches_do_not_depend_on_the_seed_of_the_process(split):
    images, _ = take(split, 10)
    for seed in (0, 5):
        tf.keras.utils.set_random_seed(seed)
        np.testing.assert_array_equal(take(split, 10)[0], images)


def test_another_seed_gives_other_batches(split):
    images, labels = take(split, 5)
    other_images, other_labels = take(split, 5, seed=1)
    assert np.any(labels != other_labels)
    fractions, other_fractions = images % 1, other_images % 1
    assert not np.any(np.isin(fractions, other_fractions))


def test_replicas_share_what_one_device_would_take(split):
    def mix(images, labels, seed):
        return images + tf.reverse(images, [0]), labels

    for options in ({}, {"mix": mix}):
        share = Share(replicas=2)
        halves = take(split, 8, 6, step=2, share=share, **options)
        whole = take(split, 4, 6, step=2, **options)
        for half, one in zip(halves, whole, strict=True):
            np.testing.assert_array_equal(half, one)


@pytest.mark.parametrize("global_batch_size", [2, 6, 23, 46, 100])
@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_counts_every_example_once(
    split, global_batch_size, replicas
):
    if global_batch_size % replicas:
        pytest.skip("main refuses this batch size")
    batches = list(
        pipeline.evaluation_batches(
            split, prepare, global_batch_size, Share(replicas=replicas)
        ).as_numpy_iterator()
    )
    assert len(batches) % replicas == 0
    images, labels, weights = map(np.concatenate, zip(*batches, strict=True))
    assert len(weights) % global_batch_size == 0
    assert len(weights) - 23 < global_batch_size
    np.testing.assert_array_equal(labels[weights == 1], range(23))
    np.testing.assert_array_equal(images[weights == 1, 0], range(23))
    assert set(weights) <= {0.0, 1.0}


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_read_disjoint_parts_that_are_the_whole(split, workers):
    shares = [Share(worker, workers) for worker in range(workers)]
    # An epoch of the largest part, and no more.
    parts = [
        set(
            take(
                split, share.of_split(split).num_examples, workers, share=share
            )[1]
        )
        for share in shares
    ]
    assert sum(map(len, parts)) == 23
    assert set().union(*parts) == set(range(23))
    evaluated, lengths = [], set()
    for share in shares:
        batches = list(
            pipeline.evaluation_batches(split, prepare, 2 * workers, share)
        )
        lengths.add(len(batches))
        for _, labels, weights in batches:
            evaluated += labels.numpy()[weights.numpy() == 1].tolist()
    assert sorted(evaluated) == list(range(23))
    assert lengths == {
        pipeline.num_evaluation_steps(split, 2 * workers, workers)
    }


def test_workers_augment_in_ways_of_their_own(split):
    fractions = [
        set(take(split, 10, 2, share=Share(worker, 2))[0].ravel() % 1)
        for worker in range(2)
    ]
    assert not fractions[0] & fractions[1]


@pytest.mark.parametrize("step", [0, 1, 4, 7])
def test_repeated_pictures_differ_and_resume(split, step):
    images, labels = take(split, 12, repeats=3)
    rows = labels[: len(labels) // 3 * 3].reshape(-1, 3)
    assert np.all(rows == rows[:, :1])
    assert len(np.unique(images % 1)) == len(images)
    assert len(set(rows[:20, 0])) == 20
    later = take(split, 12 - step, step=step, repeats=3)
    np.testing.assert_array_equal(later[0], images[step * 5 :])
    np.testing.assert_array_equal(later[1], labels[step * 5 :])


def test_mixing_follows_seed_and_position(split):
    def mix(images, labels, seed):
        return images + tf.random.stateless_uniform([], seed), labels

    plain, _ = take(split, 8)
    mixed, _ = take(split, 8, mix=mix)
    added = (mixed - plain).reshape(8, 5)
    np.testing.assert_allclose(added, added[:, :1] + np.zeros(5), atol=1e-5)
    assert len(np.unique(added[:, 0].round(4))) == 8
    later, _ = take(split, 3, step=5, mix=mix)
    np.testing.assert_array_equal(later, mixed[25:])


def test_resuming_does_not_read_what_was_there_before():
    """The millionth step of many examples comes at once."""
    read = []

    def load(image):
        tf.py_function(lambda: read.append(1), [], [])
        return image

    numbers = tf.range(100_000, dtype=tf.int64)
    split = IndexedSplit(tf.strings.as_string(numbers), numbers, loader=load)
    _, labels = take(split, 2, step=1_000_003)
    assert len(set(labels)) == 10
    assert len(read) < 1000


# A dispatcher and two workers, in a process of their own: stopped in ours,
# they may wait for each other for ever.
DATA_SERVICE = """
import tensorflow as tf
service = tf.data.experimental.service
dispatcher = service.DispatchServer()
address = dispatcher.target.partition("://")[2]
config = service.WorkerConfig(dispatcher_address=address)
workers = [service.WorkerServer(config) for _ in range(2)]
print(dispatcher.target, flush=True)
dispatcher.join()
"""


@pytest.fixture
def data_service():
    process = subprocess.Popen(
        [sys.executable, "-c", DATA_SERVICE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_data_service_hands_out_every_example_once_an_epoch(
    tmp_path, data_service
):
    split = records(23, tmp_path)
    _, labels = take(split, 23 * 3, 4, data_service=data_service)
    counts = np.bincount(labels, minlength=23)
    # Windows come in any order, so that an epoch or two may overlap.
    assert abs(counts - 12).max() <= 4


READING = """
import os
import sys
import tensorflow as tf
from train_loop import pipeline, splits

splits.WINDOW_BYTES = 2**22


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_of_an_epoch(path, times):
    split = splits.RecordSplit(
        [splits.Piece(path, 0, 300)] * times,
        lambda record: {"image": record, "label": tf.constant(0, tf.int64)},
        times * 30_000_000,
    )
    batches = pipeline.training_batches(
        split, lambda encoded, seed: tf.strings.length(encoded), 10, 0, 0
    )
    return max(resident_bytes() for _ in batches.take(times * 30))


for times in (1, 10):
    print(peak_of_an_epoch(sys.argv[1], times))
"""


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").is_file(), reason="needs Linux"
)
def test_memory_does_not_grow_with_the_data(tmp_path):
    """30 MB against 300 MB of ten such files."""
    path = tmp_path / "large.tfrecord"
    random = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(300):
            writer.write(random.bytes(100_000))
    output = subprocess.run(
        [sys.executable, "-c", READING, path],
        # Else each thread keeps for itself what it once was given.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    small, large = map(int, output.split())
    assert large - small < 30e6
