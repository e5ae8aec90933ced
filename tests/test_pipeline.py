"""Order, resumption and exactness of the batches."""

import numpy as np
import pytest
import tensorflow as tf

from train_loop import pipeline
from train_loop.datasets import Split


@pytest.fixture
def split():
    """Returns 23 examples whose picture is their number as text."""
    numbers = np.arange(23)

    def read(seed):
        del seed
        return tf.data.Dataset.from_tensor_slices(
            {"image": numbers.astype(str), "label": numbers}
        )

    return Split(len(numbers), read)


def prepare(encoded, seed=None):
    number = tf.strings.to_number(encoded)
    if seed is not None:
        number += tf.random.stateless_uniform([], seed)
    return tf.reshape(number, [1])


def take(split, count, batch_size=5, seed=0, step=0):
    batches = pipeline.training_batches(
        split, prepare, batch_size, batch_size, seed, step
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
    halves = pipeline.training_batches(split, prepare, 3, 6, 0, 2)
    whole = pipeline.training_batches(split, prepare, 6, 6, 0, 2)
    halves = [labels for _, labels in halves.take(8).as_numpy_iterator()]
    whole = [labels for _, labels in whole.take(4).as_numpy_iterator()]
    np.testing.assert_array_equal(np.concatenate(halves), np.concatenate(whole))


@pytest.mark.parametrize("global_batch_size", [2, 6, 23, 46, 100])
@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_counts_every_example_once(
    split, global_batch_size, replicas
):
    if global_batch_size % replicas:
        pytest.skip("main refuses this batch size")
    batches = list(
        pipeline.evaluation_batches(
            split, prepare, global_batch_size // replicas, global_batch_size
        ).as_numpy_iterator()
    )
    assert len(batches) % replicas == 0
    images, labels, weights = map(np.concatenate, zip(*batches, strict=True))
    assert len(weights) % global_batch_size == 0
    assert len(weights) - 23 < global_batch_size
    np.testing.assert_array_equal(labels[weights == 1], range(23))
    np.testing.assert_array_equal(images[weights == 1, 0], range(23))
    assert set(weights) <= {0.0, 1.0}
