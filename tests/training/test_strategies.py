"""Devices, as they are asked for."""

import os

import pytest
import tensorflow as tf

from train_loop import UserError
from train_loop.training.strategies import STRATEGIES, distribute, split_cpu


@pytest.mark.parametrize(
    ("name", "replicas"), [("mirrored", 2), ("one_device", 1)]
)
def test_strategies_use_available_devices(name, replicas):
    assert STRATEGIES[name]("").num_replicas_in_sync == replicas


def test_one_machine_does_not_parse_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{oops")
    assert STRATEGIES["mirrored"]("").num_replicas_in_sync == 2
    assert os.environ["TF_CONFIG"] == "{oops"


def test_cpu_is_split_only_before_tensorflow_starts(two_replicas):
    # It is split already.
    split_cpu(2)
    with pytest.raises(UserError, match="--virtual_devices=3"):
        split_cpu(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.distribute.OneDeviceStrategy("CPU:1"),
        lambda: tf.distribute.MirroredStrategy(["CPU:1"]),
    ],
    ids=["one_device", "mirrored"],
)
def test_two_batches_are_prefetched_to_the_device(make):
    # The second CPU stands for a GPU, and the first one is the host.
    strategy, batches = make(), tf.data.Dataset.range(9).batch(3)
    iterator = iter(distribute(strategy, lambda context: batches))
    [of_worker] = iterator._iterators
    [of_device] = of_worker._iterator._device_iterators
    assert of_device._dataset._buffer_size == 2
    [batch] = strategy.experimental_local_results(next(iterator))
    assert batch.device.endswith("CPU:1")
