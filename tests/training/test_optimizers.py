"""Updates against plain NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from train_loop.training.optimizers import OPTIMIZERS, MomentumSGD


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_sgd_is_the_papers(nesterov):
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(3, 2)), random.normal(size=2)
    variables = [tf.Variable(kernel), tf.Variable(bias)]
    rates = [0.5, 0.1, 0.02]
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], rates
    )
    optimizer = MomentumSGD(schedule, momentum=0.9, nesterov=nesterov, l2=0.01)
    optimizer.build(variables)
    velocities = [np.zeros_like(kernel), np.zeros_like(bias)]
    expected = [kernel.copy(), bias.copy()]
    for rate in rates:
        gradients = [random.normal(size=v.shape) for v in expected]
        optimizer.apply([tf.constant(g) for g in gradients])
        for i, l2 in enumerate([0.01, 0.0]):  # Not on the bias.
            gradient = gradients[i] + l2 * expected[i]
            velocities[i] = 0.9 * velocities[i] + gradient
            update = velocities[i]
            if nesterov:
                update = gradient + 0.9 * velocities[i]
            expected[i] -= rate * update
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-6)


def test_optimizer_round_trips_through_its_config():
    optimizer = MomentumSGD(0.3, momentum=0.8, nesterov=False, l2=0.1)
    config = tf.keras.optimizers.serialize(optimizer)
    clone = tf.keras.optimizers.deserialize(config)
    assert clone.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_pulls_kernels_only(name):
    kernel, gamma = tf.Variable(tf.ones([2, 2])), tf.Variable(tf.ones([2]))
    optimizer = OPTIMIZERS[name](0.1, weight_decay=0.5)
    optimizer.build([kernel, gamma])
    optimizer.apply([tf.zeros([2, 2]), tf.zeros([2])])
    assert np.all(kernel.numpy() < 1)
    assert np.all(gamma.numpy() == 1)


def test_factors_slow_down_what_they_name():
    variables = [
        tf.keras.Variable(tf.ones([2, 2]), name=name)
        for name in ("slow", "fast")
    ]
    optimizer = MomentumSGD(0.1, factors={variables[0].path: 0.1})
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply([tf.ones([2, 2])] * 2)
    slow, fast = (1 - np.asarray(v)[0, 0] for v in variables)
    assert slow == pytest.approx(fast / 10, rel=1e-5)
