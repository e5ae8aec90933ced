"""Averages of weights and statistics: shares, replicas, and back again."""

import numpy as np
import pytest
import tensorflow as tf
from small_trainers import make_batches, make_trainer

from train_loop.training.trainer import Trainer
from train_loop.training.update import AVERAGES, Average, Update


def shares(name, decay, steps):
    share = AVERAGES[name](decay, steps)
    return [float(share(tf.constant(step))) for step in range(1, steps + 1)]


def test_exponential_average_warms_up():
    found = shares("ema", 0.75, 40)
    # As `tf.train.ExponentialMovingAverage(0.75, num_updates)` one step later.
    expected = [1 - min(0.75, (1 + n) / (10 + n)) for n in range(39)]
    assert found[0] == 1.0
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6)


def test_stochastic_average_is_the_mean_of_the_last_quarter():
    values = np.random.default_rng(0).normal(size=40)
    mean = 0.0
    for value, share in zip(values, shares("swa", 0.0, 40), strict=True):
        mean += share * (value - mean)
    np.testing.assert_allclose(mean, values[29:].mean(), rtol=1e-5)


def averaging_trainer(strategy):
    trainer = make_trainer(strategy)
    with strategy.scope():
        average = Average(trainer.model, AVERAGES["ema"](0.5, 6))
    return Trainer(
        trainer.model,
        trainer.optimizer,
        strategy,
        update=Update(average=average),
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_averages_follow_the_formula(one_device, two_replicas, replicas):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    trainer = averaging_trainer(strategy)
    average, batches = trainer.update.average, make_batches(strategy)
    floats = [variable for variable, _ in average.pairs]
    # Weights and statistics, and no counters.
    assert len(floats) == len(trainer.model.variables)
    expected = [np.asarray(variable) for variable in floats]
    for number in range(6):
        trainer.train(batches, tf.constant(1))
        trainer.average_statistics()
        decay = min(0.5, number / (number + 9))
        expected = [
            decay * mean + (1 - decay) * np.asarray(variable)
            for mean, variable in zip(expected, floats, strict=True)
        ]
    for (variable, mean), value in zip(average.pairs, expected, strict=True):
        local = strategy.experimental_local_results(mean)
        assert len(local) == replicas
        for on_replica in local:
            np.testing.assert_allclose(
                on_replica, value, atol=1e-6, err_msg=variable.path
            )


def test_average_that_is_not_finite_is_not_sound(one_device):
    trainer = averaging_trainer(one_device)
    assert trainer.is_finite()
    _, mean = trainer.update.average.pairs[0]
    mean.assign(mean * np.inf)
    assert not trainer.is_finite()


def test_averages_stand_in_place_and_go_back(two_replicas):
    trainer = averaging_trainer(two_replicas)
    trainer.train(make_batches(two_replicas), tf.constant(3))
    trainer.average_statistics()
    pairs = trainer.update.average.pairs
    before = [(np.asarray(v), m.numpy()) for v, m in pairs]

    def evaluate():
        with trainer.update.average.in_place():
            for (variable, _), (_, mean) in zip(pairs, before, strict=True):
                for value in two_replicas.experimental_local_results(
                    variable.value
                ):
                    np.testing.assert_array_equal(value, mean)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    for (variable, mean), (value, other) in zip(pairs, before, strict=True):
        np.testing.assert_array_equal(variable, value)
        np.testing.assert_array_equal(mean, other)
