"""Steps on the devices: replicas against one, and one against formulas."""

import functools
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from small_trainers import (
    BATCH_SIZE,
    assert_same,
    make_batches,
    make_examples,
    make_model,
    make_model_without_norm,
    make_trainer,
    start_again,
    state_of,
)
from tensorflow.python.framework import config

from train_loop.training.losses import cross_entropy
from train_loop.training.optimizers import MomentumSGD
from train_loop.training.trainer import Trainer

SMOOTHING = 0.1


@pytest.fixture(scope="module")
def traced(one_device, two_replicas):
    """Returns a function: replicas -> a trainer in its initial state.

    There is one for each number of replicas: tracing takes far longer than
    the steps themselves.
    """

    @functools.cache
    def make(replicas):
        strategy = {1: one_device, 2: two_replicas}[replicas]
        trainer = make_trainer(
            strategy,
            training_loss=functools.partial(
                cross_entropy, label_smoothing=SMOOTHING
            ),
        )
        return trainer, state_of(trainer)

    def new_trainer(replicas):
        trainer, start = make(replicas)
        start_again(trainer, start)
        return trainer

    return new_trainer


def train(trainer, steps=6, **options):
    batches = make_batches(trainer.strategy, **options)
    return trainer.train(batches, tf.constant(steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (make_model_without_norm, tf.keras.optimizers.SGD),
        (lambda: make_model(synchronized=True), MomentumSGD),
    ],
    ids=["keras_optimizer", "synchronized_norm"],
)
def test_replicas_agree_with_one_device(
    one_device, two_replicas, make, optimizer
):
    single = make_trainer(one_device, make, optimizer)
    double = make_trainer(two_replicas, make, optimizer)
    before = [np.asarray(v) for v in single.model.trainable_variables]
    train(single)
    train(double)
    after = [np.asarray(v) for v in single.model.trainable_variables]
    # Relative to the largest change of a weight: weights that should stay zero
    # have rounding errors only.
    way = max(np.abs(a - b).max() for a, b in zip(after, before, strict=True))
    for variable, expected in zip(
        double.model.trainable_variables, after, strict=True
    ):
        np.testing.assert_allclose(variable, expected, rtol=0, atol=1e-5 * way)
    expected, results = single.results("train"), double.results("train")
    assert results == pytest.approx(expected, rel=1e-5)


def test_replicas_have_identical_weights(traced):
    trainer = traced(2)
    train(trainer)
    for variable in trainer.model.trainable_variables:
        first, second = trainer.strategy.experimental_local_results(
            variable.value
        )
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_frozen_layers_stay_until_unfrozen(two_replicas):
    """Bitwise; afterwards they train as if never frozen."""
    optimizer = functools.partial(MomentumSGD, l2=0.1)
    trainer, other = (
        make_trainer(two_replicas, optimizer=optimizer) for _ in range(2)
    )
    start = state_of(trainer)
    for layer in trainer.model.layers[:-1]:
        layer.trainable = False
    train(trainer)
    trainer.average_statistics()
    moved = {
        variable.path.partition("/")[2]
        for variable, values, before in zip(
            [*trainer.model.variables, *trainer.optimizer.variables],
            state_of(trainer),
            start,
            strict=True,
        )
        if np.any(np.not_equal(values, before))
    }
    # Kernel and bias of the classifier, and their velocities.
    assert len(moved) == 5
    name = trainer.model.layers[-1].name
    assert all(name in path or path == "iteration" for path in moved)
    start_again(other, state_of(trainer))
    for layer in trainer.model.layers:
        layer.trainable = True
    thawed = trainer.retraced()
    train(thawed)
    train(other)
    assert_same(thawed, state_of(other))


def test_statistics_are_averaged_over_replicas(traced):
    trainer = traced(2)
    train(trainer)
    local_results = trainer.strategy.experimental_local_results
    moving = trainer.model.layers[1].moving_mean
    first, second = (value.numpy() for value in local_results(moving.value))
    assert np.abs(first - second).max() > 1e-4
    trainer.average_statistics()
    for value in [*local_results(moving.value), moving]:
        np.testing.assert_allclose(
            value, (first + second) / 2, rtol=0, atol=1e-6 * np.abs(first).max()
        )


def test_one_step_is_the_gradient_of_the_mean_loss(traced):
    trainer = traced(1)
    model = trainer.model
    images, labels = (part[:BATCH_SIZE] for part in make_examples())
    before = [tf.identity(v) for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        targets = tf.one_hot(labels, 4) * (1 - SMOOTHING) + SMOOTHING / 4
        loss = tf.keras.losses.CategoricalCrossentropy(from_logits=True)(
            targets, logits
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    train(trainer, steps=1)
    for old, variable, gradient in zip(
        before, model.trainable_variables, gradients, strict=True
    ):
        # The first step of Nesterov's momentum: gradient + 0.9 * gradient.
        expected = old - 0.05 * 1.9 * gradient
        np.testing.assert_allclose(variable, expected, atol=1e-6)
    results = trainer.results("train")
    assert results["loss"] == pytest.approx(float(loss), rel=1e-5)
    norm = float(tf.linalg.global_norm(gradients))
    assert results["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert results["learning_rate"] == pytest.approx(0.05)
    assert trainer.step == 1


def test_several_steps_in_one_call_are_bitwise_identical(traced):
    trainer = traced(2)
    train(trainer)
    together, expected = state_of(trainer), trainer.results("train")
    trainer = traced(2)
    batches = make_batches(trainer.strategy)
    for _ in range(6):
        trainer.train(batches, tf.constant(1))
    assert_same(trainer, together)
    assert trainer.results("train") == expected


@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_ignores_weight_zero(traced, replicas):
    # Label smoothing is for training only.
    trainer = traced(replicas)
    images, labels = (part[: 2 * BATCH_SIZE] for part in make_examples())
    weights = np.ones(2 * BATCH_SIZE, "float32")
    weights[-3:] = 0
    logits = trainer.model(images, training=False).numpy()
    batches = make_batches(trainer.strategy, images, labels, weights)
    trainer.evaluate(batches, tf.constant(2))
    log_probabilities = np.asarray(tf.nn.log_softmax(logits))
    results = trainer.results("eval")
    assert set(results) == {"loss", "accuracy"}
    count = len(labels) - 3
    assert results["loss"] == pytest.approx(
        -log_probabilities[range(count), labels[:count]].mean(), rel=1e-5
    )
    assert results["accuracy"] == pytest.approx(
        (logits.argmax(-1) == labels)[:count].mean()
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_first_diverged_step_is_reported(traced, replicas):
    trainer = traced(replicas)
    images, labels = make_examples()
    # Only the last example of the fourth batch: with two replicas, the second
    # one's.
    images[4 * BATCH_SIZE - 1] = np.nan
    batches = make_batches(trainer.strategy, images, labels)
    assert int(trainer.train(batches, tf.constant(3))[0]) == -1
    assert int(trainer.train(batches, tf.constant(3))[0]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replicas", "place"), [(1, 0), (2, 0), (2, BATCH_SIZE - 1)]
)
def test_unreadable_batch_changes_nothing(traced, replicas, place):
    trainer = traced(replicas)
    train(trainer, steps=3)
    expected = state_of(trainer)
    # With two replicas, the half of either replica.
    broken = tf.constant(3 * BATCH_SIZE + place, tf.int64)
    for _ in range(10):
        trainer = traced(replicas)
        with pytest.raises(tf.errors.InvalidArgumentError):
            train(
                trainer,
                check=lambda number: tf.debugging.assert_none_equal(
                    number, broken
                ),
            )
        assert trainer.step == 3
        assert_same(trainer, expected)


def traced_nodes(trainer):
    """Yields the nodes of `train`'s graph, and of each function it calls."""
    function = trainer.train.get_concrete_function(
        make_batches(trainer.strategy), tf.constant(1)
    )
    graph = function.graph.as_graph_def()
    yield graph.node
    for function in graph.library.function:
        yield function.node_def


@pytest.mark.parametrize("replicas", [1, 2])
def test_steps_do_not_branch_on_device_values(traced, replicas):
    types = [
        node.op for nodes in traced_nodes(traced(replicas)) for node in nodes
    ]
    assert sum("While" in name for name in types) == 1
    conditionals = {"If", "StatelessIf", "Case", "StatelessCase", "Switch"}
    assert not conditionals & set(types)


def test_steps_copy_no_value_to_the_host():
    # The second CPU stands for a GPU, and the first one is the host.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    trainer = make_trainer(strategy, make_model_without_norm)
    _, *functions = traced_nodes(trainer)
    devices = {node.device[-5:] for nodes in functions for node in nodes}
    # An operation without a device runs where its inputs are.
    assert devices == {"", "CPU:1"}


@pytest.mark.parametrize("replicas", [1, 2])
def test_clock_is_read_before_a_batch_is_requested(traced, replicas):
    count = 0
    for nodes in traced_nodes(traced(replicas)):
        clocks = {f"^{node.name}" for node in nodes if node.op == "Timestamp"}
        for node in nodes:
            if node.op == "IteratorGetNext":
                assert clocks & set(node.input)
                count += 1
    assert count == replicas


def test_input_wait_is_measured(two_replicas, monkeypatch):
    times, asked, late = [], threading.Event(), []

    def timestamp():
        times.append(time.perf_counter())
        # Twice a step: the second batch is requested here.
        if len(times) == 3:
            asked.set()
        return times[-1]

    def wait(number):
        # The first example of the second batch is late: it is read only when
        # the step waits for it.
        if number == BATCH_SIZE:
            late.append(asked.wait(60))
            time.sleep(0.05)
        return number

    def asked_of_python():
        now = tf.numpy_function(timestamp, [], tf.float64)
        return tf.ensure_shape(now, [])

    monkeypatch.setattr(tf, "timestamp", asked_of_python)
    trainer = make_trainer(two_replicas, make_model_without_norm)
    batches = make_batches(
        two_replicas,
        check=lambda number: tf.numpy_function(wait, [number], tf.int64),
    )
    began = time.perf_counter()
    _, waited = trainer.train(batches, tf.constant(2))
    assert late == [True]
    assert 0.05 <= float(waited) < time.perf_counter() - began


def test_training_works_with_deterministic_operations():
    tf.config.experimental.enable_op_determinism()
    try:
        one_device = tf.distribute.get_strategy()
        trainer = make_trainer(one_device, make_model_without_norm)
        trainer.train(make_batches(one_device), tf.constant(2))
    finally:
        config.disable_op_determinism()
    assert trainer.step == 2


@pytest.mark.parametrize("broken", ["model", "optimizer"])
def test_non_finite_values_are_found_anywhere(traced, broken):
    trainer = traced(1)
    assert trainer.is_finite()
    variable = getattr(trainer, broken).variables[-1]
    value = np.zeros(variable.shape, "float32")
    value.flat[-1] = np.inf
    variable.assign(value)
    assert not trainer.is_finite()


def test_forward_replaces_the_model(one_device):
    images, labels = make_examples()
    plain = make_trainer(one_device, make_model_without_norm)
    plain.train(make_batches(one_device, images, labels), tf.constant(2))
    other = make_trainer(one_device, make_model_without_norm)
    doubling = Trainer(
        other.model,
        other.optimizer,
        one_device,
        forward=lambda images, training: other.model(
            2 * images, training=training
        ),
    )
    # Doubling half of a number is exact.
    halves = make_batches(one_device, images / 2, labels)
    doubling.train(halves, tf.constant(2))
    assert_same(doubling, state_of(plain))
