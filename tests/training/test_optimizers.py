"""Updates against the papers' own, in NumPy's float64."""

import numpy as np
import pytest
import tensorflow as tf

from train_loop.training.optimizers import (
    OPTIMIZERS,
    OPTIONS,
    MomentumSGD,
    optimizer_usage,
    options_of,
)
from train_loop.training.update import reduce_and_apply, skip_own_reduction

# Exact in float32.
RATES = [0.5, 0.125, 0.03125, 0.03125]
DECAY = 0.3


def momentum(state, gradient, rate, nesterov):
    """Returns the step of PyTorch's SGD."""
    state["v"] = 0.9 * state.get("v", 0.0) + gradient
    return rate * (gradient + 0.9 * state["v"] if nesterov else state["v"])


def moments(state, gradient):
    """Returns Adam's bias-corrected moments."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * gradient
    state["s"] = 0.999 * state.get("s", 0.0) + 0.001 * gradient**2
    corrected = [1 - beta ** state["t"] for beta in (0.9, 0.999)]
    return state["m"] / corrected[0], state["s"] / corrected[1]


def sgd(state, w, gradient, rate, decay):
    """Sutskever et al., 2013, with the penalty inside."""
    return momentum(state, gradient + decay * w, rate, nesterov=True)


def adam(state, w, gradient, rate, decay):
    """Kingma and Ba, 2014, end of section 2, with the penalty inside."""
    m, s = moments(state, gradient + decay * w)
    epsilon = 1e-7 / np.sqrt(1 - 0.999 ** state["t"])
    return rate * m / (np.sqrt(s) + epsilon)


def adamw(state, w, gradient, rate, decay):
    """Loshchilov and Hutter, 2017, algorithm 2."""
    return adam(state, w, gradient, rate, 0) + rate * decay * w


def rmsprop(state, w, gradient, rate, decay):
    """Tieleman and Hinton, 2012, with the penalty inside."""
    gradient = gradient + decay * w
    state["s"] = 0.9 * state.get("s", 0.0) + 0.1 * gradient**2
    return rate * gradient / np.sqrt(state["s"] + 1e-7)


def lars(state, w, gradient, rate, decay):
    """You et al., 2017, algorithm 1, with the learning rate outside."""
    if w.ndim > 1:
        norms = np.linalg.norm(w), np.linalg.norm(gradient)
        gradient = gradient + decay * w
        if all(norms):
            ratio = norms[0] / (norms[1] + decay * norms[0])
            gradient = 0.001 * ratio * gradient
    return momentum(state, gradient, rate, nesterov=False)


def lamb(state, w, gradient, rate, decay):
    """You et al., 2019, algorithm 2."""
    m, s = moments(state, gradient)
    update = m / (np.sqrt(s) + 1e-6) + decay * w
    if w.ndim > 1 and np.linalg.norm(w) and np.linalg.norm(update):
        update = update * np.linalg.norm(w) / np.linalg.norm(update)
    return rate * update


PAPERS = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "lars": lars,
    "lamb": lamb,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [DECAY, 0.0])
def test_updates_follow_the_papers(name, decay):
    random = np.random.default_rng(0)
    # A kernel, a bias, a zero kernel and one without gradients.
    expected = [random.normal(size=(3, 2)), random.normal(size=2)]
    expected += [np.zeros((2, 2)), random.normal(size=(3, 1, 2, 4))]
    expected += [random.normal(size=(1, 1, 2, 6)), random.normal(size=(2, 2))]
    variables = [tf.Variable(value) for value in expected]
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], RATES[:3]
    )
    optimizer = OPTIMIZERS[name](schedule, weight_decay=decay)
    optimizer.build(variables)
    states = [{} for _ in variables]
    for rate in RATES:
        gradients = [random.normal(size=w.shape) for w in expected]
        gradients[-1][:] = 0
        optimizer.apply([tf.constant(gradient) for gradient in gradients])
        for i, (w, gradient) in enumerate(
            zip(expected, gradients, strict=True)
        ):
            # Biases and the parameters of norms do not decay.
            strength = decay if w.ndim > 1 else 0.0
            step = PAPERS[name](states[i], w, gradient, rate, strength)
            expected[i] = w - step
    # Keras computes 1 - 0.999 ** t in float32.
    tolerance = {"sgd": 1e-12, "lars": 1e-12, "rmsprop": 1e-6}.get(name, 5e-5)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_trained_later_start_like_others(name):
    """Adam's bias correction counts from their first step."""
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(2, 3)), random.normal(size=(4, 2, 3))
    late, alone = (tf.Variable(start, name=n) for n in ("late", "alone"))
    other = tf.Variable(start)
    optimizer, of_alone = (OPTIMIZERS[name](0.1, DECAY) for _ in range(2))
    optimizer.build([other, late], {late.name: 2})
    of_alone.build([alone])
    for gradient in map(tf.constant, gradients[:2]):
        optimizer.apply([gradient], [other])
    for gradient in map(tf.constant, gradients):
        optimizer.apply([gradient, gradient], [other, late])
        of_alone.apply([gradient])
    np.testing.assert_allclose(late, alone, rtol=0, atol=1e-5)


def test_nesterov_momentum_can_be_disabled():
    variable, state, w = tf.Variable([1.0]), {}, np.ones(1)
    optimizer = OPTIMIZERS["sgd"](0.1, 0.0, nesterov=False)
    optimizer.build([variable])
    for gradient in (1.0, -2.0, 3.0):
        optimizer.apply([tf.constant([gradient])])
        w = w - momentum(state, gradient, 0.1, nesterov=False)
    np.testing.assert_allclose(variable, w, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoints_do_not_depend_on_options(name):
    """A run may resume with other options."""
    shapes = []
    for number in (0.0, 0.5):
        options = {n: number for n in options_of(name) if n != "nesterov"}
        optimizer = OPTIMIZERS[name](0.1, 0.0, **options)
        optimizer.build([tf.Variable([[1.0, 2.0]])])
        shapes.append([variable.shape for variable in optimizer.variables])
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_reach_the_optimizer(name):
    assert set(options_of(name)) <= set(OPTIONS)
    for option, default in options_of(name).items():
        assert option in optimizer_usage(name)
        other = not default if isinstance(default, bool) else 0.123
        optimizer = OPTIMIZERS[name](0.1, 0.0, **{option: other})
        assert optimizer.get_config()[option] == other
        optimizer = OPTIMIZERS[name](0.1, 0.0)
        assert optimizer.get_config()[option] == default


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_round_trips_through_its_config(name):
    optimizer = OPTIMIZERS[name](0.3, DECAY, {"stem/kernel": 0.5})
    config = tf.keras.optimizers.serialize(optimizer)
    clone = tf.keras.optimizers.deserialize(config)
    assert type(clone) is type(optimizer)
    assert clone.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factors_scale_the_learning_rate(name):
    variables = [
        tf.keras.Variable(tf.ones([2, 2]), name=pace)
        for pace in ("slow", "fast")
    ]
    # The decay too, which acts alone without a gradient.
    factors = {variables[0].path: 0.1}
    optimizer = OPTIMIZERS[name](0.01, 0.5, factors)
    optimizer.build(variables)
    optimizer.apply([tf.zeros([2, 2])] * 2)
    slow, fast = (1 - np.asarray(v)[0, 0] for v in variables)
    assert slow == pytest.approx(fast / 10, rel=1e-3)
    assert fast > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replicas_update_like_one_device(one_device, two_replicas, name):
    def after_steps(strategy):
        random = np.random.default_rng(1)
        shapes = (3, 2), (2,), (1, 2, 2, 3)
        values = [random.normal(size=shape) for shape in shapes]
        with strategy.scope():
            variables = [tf.Variable(np.float32(value)) for value in values]
            optimizer = OPTIMIZERS[name](0.1, DECAY)
            optimizer.build(variables)
        skip_own_reduction(optimizer)
        share = 1 / strategy.num_replicas_in_sync

        @tf.function
        def step(gradients):
            strategy.run(
                lambda: reduce_and_apply(
                    optimizer, [share * g for g in gradients]
                )
            )

        for _ in range(3):
            step([tf.random.stateless_normal(v.shape, [1, 2]) for v in values])
        results = map(strategy.experimental_local_results, variables)
        return [value.numpy() for on_all in results for value in on_all]

    expected = [value for value in after_steps(one_device) for _ in range(2)]
    for value, other in zip(after_steps(two_replicas), expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)


def test_velocity_excludes_the_learning_rate():
    """With a learning rate of 0, weights stop at once."""
    variable = tf.Variable([1.0])
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay(
        [0], [1.0, 0.0]
    )
    optimizer = MomentumSGD(schedule)
    optimizer.build([variable])
    optimizer.apply([tf.constant([1.0])])
    before = variable.numpy()
    optimizer.apply([tf.constant([1.0])])
    np.testing.assert_array_equal(variable, before)
