"""Embeddings of a split, compared with those of each image."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import ResNet
from train_loop.builders.phases import backbone_hash, write_embeddings
from train_loop.console import transient_bar
from train_loop.process import StoppedError, recording_signals
from train_loop.training.workers import Workers
from train_loop.workdir import is_made_from

IMAGES = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
LABELS = np.arange(8)
# The last three pad the last batch.
WEIGHTS = np.array([1, 1, 1, 1, 1, 0, 0, 0], "float32")
ORIGIN = {"backbone": "a hash"}


def embed(images):
    return tf.concat([images, 2 * images], axis=-1)


def write(folder, strategy, origin=ORIGIN, embed=embed):
    examples = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, WEIGHTS))
    batches = examples.batch(4 // strategy.num_replicas_in_sync)
    with transient_bar(2, "batch") as bar:
        write_embeddings(
            folder,
            origin,
            embed,
            Workers(strategy),
            strategy.distribute_datasets_from_function(lambda context: batches),
            bar,
        )


def read(folder):
    embeddings = np.fromfile(folder / "embeddings.bin", "float32")
    return embeddings.reshape(-1, 4), np.load(folder / "labels.npy")


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_image_is_embedded_once_in_order(
    tmp_path, one_device, two_replicas, replicas
):
    folder = tmp_path / "train"
    write(folder, {1: one_device, 2: two_replicas}[replicas])
    embeddings, labels = read(folder)
    np.testing.assert_array_equal(embeddings, embed(IMAGES[:5]))
    np.testing.assert_array_equal(labels, LABELS[:5])
    assert is_made_from(folder, ORIGIN)


class TwoWorkers(Workers):
    """Two workers on a shared disk; a replica stands for each."""

    count = 2

    def __init__(self, strategy):
        self.strategy, self.number = strategy, 0

    def sums(self, *numbers):
        return [2.0 * number for number in numbers]


def test_embeddings_of_workers_are_in_the_order_of_the_split(
    tmp_path, two_replicas
):
    # The first has 0, 1, 2, the second 3, 4; the rest is padding.
    order = np.array([0, 1, 3, 4, 2, 5, 6, 7])
    parts = (IMAGES[order], LABELS[order], WEIGHTS[order])
    batches = tf.data.Dataset.from_tensor_slices(parts).batch(2)
    with transient_bar(2, "batch") as bar:
        write_embeddings(
            tmp_path / "train",
            ORIGIN,
            embed,
            TwoWorkers(two_replicas),
            two_replicas.distribute_datasets_from_function(lambda _: batches),
            bar,
        )
    embeddings, labels = read(tmp_path / "train")
    np.testing.assert_array_equal(embeddings, embed(IMAGES[:5]))
    np.testing.assert_array_equal(labels, LABELS[:5])
    assert len([*(tmp_path / "train").iterdir()]) == 3


def test_stop_signal_is_handled_between_batches(
    tmp_path, one_device, default_signals
):
    with recording_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError):
            write(tmp_path / "train", one_device)
    assert [*tmp_path.iterdir()] == []


def test_embeddings_are_computed_again_only_for_other_inputs(
    tmp_path, one_device
):
    folder = tmp_path / "train"
    write(folder, one_device)
    write(folder, one_device, embed=pytest.fail)
    write(
        folder,
        one_device,
        {"backbone": "another"},
        embed=lambda images: -embed(images),
    )
    np.testing.assert_array_equal(read(folder)[0], -embed(IMAGES[:5]))


def test_incomplete_embeddings_are_not_used(tmp_path, one_device):
    folder = tmp_path / "train"

    def fail_later(images):
        # Only the second batch.
        check = tf.debugging.assert_none_equal(images, IMAGES[4, 0])
        with tf.control_dependencies([check]):
            return embed(images)

    with pytest.raises(tf.errors.InvalidArgumentError):
        write(folder, one_device, embed=fail_later)
    assert list(tmp_path.iterdir()) == []


def test_hash_excludes_the_head():
    model = ResNet("basic", (1,), 3, width=4, stem="small")
    model.build((None, 8, 8, 3))
    before = backbone_hash(model)
    for variable in model.head.variables:
        variable.assign(tf.ones_like(variable))
    assert backbone_hash(model) == before
    # Statistics count too.
    moving = model.stem.bns[0].moving_mean
    moving.assign(moving + 1)
    assert backbone_hash(model) != before
