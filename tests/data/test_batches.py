"""Order, resuming and completeness of batches."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from samples import encoded, indexed, records
from tensorflow.core.framework import graph_pb2

from resnet_layers import Preprocessing
from train_loop.data import cache, datasets
from train_loop.data.batches import (
    Batching,
    evaluation_batches,
    num_evaluation_steps,
    shuffled_examples,
    training_batches,
)
from train_loop.data.split import MemoryStore, Split
from train_loop.data.transforms import Transforms, parse_operations

# Name -> split of the numbers from 0 to 22: in one window, or in windows of
# groups of 5.
SPLITS = {
    "memory": indexed(23),
    "windows": indexed(23, groups=np.arange(23) // 5, window=7),
}


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    return SPLITS[request.param]


@pytest.fixture(scope="module")
def epochs(split):
    """Returns (images, labels) of five epochs in batches of 5."""
    return take(split, 23)


class Numbers:
    """Transforms of numbers as text; training adds a random fraction."""

    def train(self, encoded, seed):
        return self.evaluate(encoded) + tf.random.stateless_uniform([], seed)

    def transcode(self, encoded):
        return encoded

    def evaluate(self, encoded):
        return tf.reshape(tf.strings.to_number(encoded), [1])

    def finish(self, images, labels, partners, seed):
        return images, labels


class Offset(Numbers):
    """Adds a random number to a whole batch."""

    def finish(self, images, labels, partners, seed):
        return images + tf.random.stateless_uniform([], seed), labels


class Mixed(Offset):
    """Also adds the batch in reverse order."""

    def finish(self, images, labels, partners, seed):
        mixed = images + tf.reverse(images, [0])
        return super().finish(mixed, labels, partners, seed)


class Partners(Numbers):
    """Replaces each image by the number of its partner."""

    def train(self, encoded, seed):
        return self.evaluate(encoded)

    def finish(self, images, labels, partners, seed):
        return tf.gather(images, partners), labels


class Seeds(Numbers):
    """Replaces each image by the seed of its position."""

    def train(self, encoded, seed):
        return seed


def pipelines(count):
    """Returns the input contexts of machines with one replica each."""
    return [tf.distribute.InputContext(count, i, count) for i in range(count)]


def take(
    split, count, batch_size=5, seed=0, step=0, transforms=None, **options
):
    context = options.pop("context", tf.distribute.InputContext())
    batches = training_batches(
        split,
        transforms or Numbers(),
        Batching(batch_size, seed, **options),
        step,
        context,
    )
    batches = list(batches.take(count).as_numpy_iterator())
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def test_every_epoch_contains_every_example_once(epochs):
    images, labels = epochs
    np.testing.assert_array_equal(np.floor(images[:, 0]), labels)
    orders = {tuple(order) for order in labels.reshape(5, 23)}
    assert len(orders) == 5
    assert all(sorted(order) == [*range(23)] for order in orders)


@pytest.mark.slow
def test_batches_depend_only_on_seed_and_step(split, epochs):
    images, labels = epochs
    for step in (1, 9, 14):
        tf.keras.utils.set_random_seed(step)
        later_images, later_labels = take(split, 16 - step, step=step)
        np.testing.assert_array_equal(later_labels, labels[step * 5 : 80])
        np.testing.assert_array_equal(later_images, images[step * 5 : 80])
    other_images, other_labels = take(split, 5, seed=1)
    assert np.any(labels[:25] != other_labels)
    assert not np.any(np.isin(images[:25] % 1, other_images % 1))


@pytest.mark.slow
def test_batches_do_not_depend_on_the_store(tmp_path):
    for options in ({"step": 3}, {"step": 2, "context": pipelines(2)[1]}):
        expected = take(SPLITS["windows"], 6, 6, **options)
        found = take(records(23, tmp_path), 6, 6, **options)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_replicas_split_the_batches_of_one_device(split):
    context = tf.distribute.InputContext(1, 0, num_replicas_in_sync=2)
    options = {"step": 2, "transforms": Mixed()}
    halves = take(split, 8, 6, context=context, **options)
    whole = take(split, 4, 6, **options)
    for half, one in zip(halves, whole, strict=True):
        np.testing.assert_array_equal(half, one)


@pytest.mark.parametrize(
    ("name", "batch_size", "replicas"),
    [
        ("memory", 23, 1),
        ("memory", 6, 2),
        ("windows", 100, 1),
        ("windows", 2, 2),
        ("windows", 46, 2),
    ],
)
def test_evaluation_counts_every_example_once(name, batch_size, replicas):
    context = tf.distribute.InputContext(1, 0, replicas)
    split, arguments = SPLITS[name], (batch_size, context)
    batches = [*evaluation_batches(split, Numbers(), *arguments)]
    steps = num_evaluation_steps(split, *arguments)
    assert len(batches) == steps * replicas
    images, labels, weights = map(np.concatenate, zip(*batches, strict=True))
    assert len(weights) % batch_size == 0
    assert len(weights) - 23 < batch_size
    np.testing.assert_array_equal(labels[weights == 1], range(23))
    np.testing.assert_array_equal(images[weights == 1, 0], range(23))
    assert set(weights) <= {0.0, 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "workers"), [("memory", 2), ("windows", 3)])
def test_workers_split_every_batch(name, workers):
    # Each worker reads one example per step, in the order of one worker.
    split = SPLITS[name]
    _, together = take(split, 23, workers)
    parts = [
        take(split, 23, workers, context=context)[1]
        for context in pipelines(workers)
    ]
    np.testing.assert_array_equal(np.stack(parts, 1).ravel(), together)
    evaluated, lengths = [], set()
    for context in pipelines(workers):
        batches = list(
            evaluation_batches(split, Numbers(), 2 * workers, context)
        )
        lengths.add(len(batches))
        for _, labels, weights in batches:
            evaluated += labels.numpy()[weights.numpy() == 1].tolist()
    assert sorted(evaluated) == list(range(23))
    assert lengths == {num_evaluation_steps(split, 2 * workers, context)}


@pytest.mark.slow
def test_workers_augment_like_a_single_worker(split):
    options = {"batch_size": 6, "step": 2, "skipped": (1, 4), "repeats": 2}
    whole, _ = take(split, 8, **options)
    halves = [
        take(split, 8, context=context, **options)[0].reshape(8, 3)
        for context in pipelines(2)
    ]
    np.testing.assert_array_equal(np.hstack(halves).ravel(), whole.ravel())


@pytest.mark.slow
def test_only_skipped_batches_are_missing(split, epochs):
    batching = Batching(5, skipped=(6, 3))
    numbers = [batching.batch_of(step) for step in range(8)]
    assert numbers == [0, 1, 2, 4, 5, 7, 8, 9]
    expected = epochs[0].reshape(23, 5)[numbers]
    for step in (0, 3):
        found, _ = take(split, 8 - step, step=step, skipped=(6, 3))
        np.testing.assert_array_equal(found.reshape(-1, 5), expected[step:])


@pytest.mark.slow
def test_repeats_differ_and_resume(split):
    images, labels = take(split, 12, repeats=3)
    rows = labels[: len(labels) // 3 * 3].reshape(-1, 3)
    assert np.all(rows == rows[:, :1])
    assert len(np.unique(images % 1)) == len(images)
    assert len(set(rows[:20, 0])) == 20
    # Resuming between the repeats of an image.
    for step in (4, 8):
        later = take(split, 12 - step, step=step, repeats=3)
        np.testing.assert_array_equal(later[0], images[step * 5 :])
        np.testing.assert_array_equal(later[1], labels[step * 5 :])


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    [tf.distribute.InputContext(1, 0, 2), *pipelines(2)],
    ids=["two replicas", "first worker", "second worker"],
)
def test_repeats_are_mixed_with_other_images(context):
    """Batches begin and end between the repeats of an image."""
    options = {"transforms": Partners(), "context": context}
    split = SPLITS["memory"]
    partners, labels = take(split, 24, 10, repeats=3, **options)
    assert not np.any(partners[:, 0] == labels)
    # One device mixes the same batch as two replicas.
    if context.num_input_pipelines == 1:
        whole, _ = take(split, 12, 10, repeats=3, transforms=Partners())
        np.testing.assert_array_equal(partners, whole)


@pytest.mark.slow
def test_mixing_depends_on_seed_and_position(split, epochs):
    mixed, _ = take(split, 8, transforms=Offset())
    added = (mixed - epochs[0][:40]).reshape(8, 5)
    np.testing.assert_allclose(added, added[:, :1] + np.zeros(5), atol=1e-5)
    assert len(np.unique(added[:, 0].round(4))) == 8
    later, _ = take(split, 3, step=5, transforms=Offset())
    np.testing.assert_array_equal(later, mixed[25:])


def test_resuming_does_not_read_earlier_examples():
    """The millionth step starts at once."""
    read = []

    def load(image):
        tf.py_function(lambda: read.append(1), [], [])
        return image

    numbers = np.arange(100_000)
    store = MemoryStore(
        tf.strings.as_string(tf.constant(numbers)), numbers, loader=load
    )
    _, labels = take(Split.of_all(store), 2, step=1_000_003)
    assert len(set(labels)) == 10
    assert len(read) < 1000


@pytest.mark.slow
def test_resuming_does_not_parse_earlier_windows(tmp_path):
    split, parsed = records(230, tmp_path), []

    def parse(record):
        example = split.store.parse(record)
        tf.py_function(lambda: parsed.append(1), [], [])
        return example

    store = dataclasses.replace(split.store, parse=parse)
    examples = shuffled_examples(Split.of_all(store), seed=0, start=200)
    [first] = examples.take(1)
    [expected] = shuffled_examples(split, seed=0, start=0).skip(200).take(1)
    assert int(first["label"]) == int(expected["label"])
    assert int(first["position"]) == 200
    # None of the 28 earlier windows. The amount read ahead depends on speed.
    assert 0 < len(parsed) <= 3 * 7


# A dispatcher and two workers in a separate process: if they stop in this
# process, they can wait for each other forever.
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


@pytest.mark.slow
def test_data_service_reads_every_example_once_per_epoch(
    tmp_path, data_service
):
    split = records(23, tmp_path)
    _, labels = take(split, 23 * 3, 4, data_service=data_service)
    counts = np.bincount(labels, minlength=23)
    # The order of windows is arbitrary, so that epochs can overlap.
    assert abs(counts - 12).max() <= 4
    # Each of two trainers reads its own slice of each batch.
    found = [
        take(
            split,
            23,
            4,
            transforms=Seeds(),
            data_service=data_service,
            context=tf.distribute.InputContext(2, number, 2),
        )[0]
        for number in range(2)
    ]
    own, others = ({*map(tuple, seeds)} for seeds in found)
    assert len(own) == len(others) == 2 * 23
    assert not own & others
    # A single trainer reads the same examples in a few more epochs.
    stream = {*map(tuple, take(split, 23 * 4, 4, transforms=Seeds())[0])}
    assert own | others <= stream


def maps_with_python(dataset):
    """Returns the operations of each map that calls Python.

    TensorFlow's op determinism makes these maps sequential.
    """
    graph = graph_pb2.GraphDef.FromString(
        dataset._as_serialized_graph().numpy()
    )
    functions = {f.signature.name: f.node_def for f in graph.library.function}

    def operations(nodes):
        for node in nodes:
            yield node.op
            for attribute in node.attr.values():
                for function in (attribute.func, *attribute.list.func):
                    yield from operations(functions.get(function.name, ()))

    maps = [
        [*operations(functions[node.attr["f"].func.name])]
        for nodes in (graph.node, *functions.values())
        for node in nodes
        if "Map" in node.op
    ]
    return [found for found in maps if any("PyFunc" in op for op in found)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keep"), [("0.jpg", "memory"), ("really.jpg", "none")]
)
def test_python_decodes_only_the_formats_that_need_it(name, keep, tmp_path):
    pixels = np.full((8, 8, 3), 200, "uint8")
    (tmp_path / "a").mkdir()
    for number, file_format in enumerate(["jpeg", "png"]):
        path = tmp_path / "a" / f"{number}.{file_format}"
        path.write_bytes(encoded(pixels, file_format))
    if name == "really.jpg":
        (tmp_path / "a" / name).write_bytes(encoded(pixels, "bmp"))
    split = datasets.open_dataset(str(tmp_path)).splits["train"]
    for cached in cache.CACHES["memory"](split, None, None), split:
        assert cached.needs_pillow == (name == "really.jpg")
    split = cache.CACHES[keep](split, None, None)
    preprocessing = Preprocessing(None, 8, 1.0, "bilinear", True)
    operations = parse_operations("random_resized_crop,flip")
    transforms = Transforms(preprocessing, operations)
    training = training_batches(split, transforms, Batching(2))
    evaluation = evaluation_batches(split, transforms, 2)
    for dataset in (training, evaluation):
        found = maps_with_python(dataset)
        # It neither reads nor decodes, so that the maps that do stay parallel.
        assert len(found) == (name == "really.jpg")
        pixels = ("DecodeJpeg", "DecodePng", "DecodeAndCropJpeg", "ReadFile")
        assert {*pixels}.isdisjoint(sum(found, []))
        images, *_ = next(iter(dataset))
        assert np.ptp(images - 200) <= 1
