"""Devices, as they are asked for."""

import pytest

from train_loop import UserError
from train_loop.training.strategies import STRATEGIES, split_cpu


@pytest.mark.parametrize(
    ("name", "replicas"), [("mirrored", 2), ("one_device", 1)]
)
def test_strategies_take_the_devices_that_are_there(name, replicas):
    assert STRATEGIES[name]("").num_replicas_in_sync == replicas


def test_cpu_is_split_before_anything_runs(two_replicas):
    # As it is split already.
    split_cpu(2)
    with pytest.raises(UserError, match="--virtual_devices=3"):
        split_cpu(3)
