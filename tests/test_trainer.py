"""Replicas against one device, and one device against plain formulas."""

import time

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import ResNet
from train_loop import pipeline
from train_loop.optimizers import MomentumSGD
from train_loop.trainer import Trainer, cross_entropy, is_correct

BATCH_SIZE = 8


def make_model(**options):
    return ResNet(
        stage_sizes=(1, 1), width=8, num_classes=4, stem="small", **options
    )


def make_model_without_norm():
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, 3, activation="relu"),
            tf.keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(4),
        ]
    )


def make_trainer(strategy, make=make_model, optimizer=None, **options):
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make()
        model.build((None, 8, 8, 3))
        optimizer = (optimizer or MomentumSGD)(0.05)
    return Trainer(model, optimizer, strategy, **options)


def make_batches(strategy, steps=6, scale=1.0):
    """Returns distributed (images, labels): the same whatever the strategy."""
    random = np.random.default_rng(2)
    images = random.normal(size=(steps * BATCH_SIZE, 8, 8, 3)) * scale
    labels = random.integers(0, 4, steps * BATCH_SIZE)
    replicas = strategy.num_replicas_in_sync
    dataset = tf.data.Dataset.from_tensor_slices(
        (images.astype("float32"), labels)
    ).batch(BATCH_SIZE // replicas, drop_remainder=True)
    return pipeline.distribute(strategy, lambda share: dataset)


def train(strategy, steps=6, **options):
    trainer = make_trainer(strategy, **options)
    trainer.train(iter(make_batches(strategy, steps)), tf.constant(steps))
    return trainer


def assert_weights_agree(trainer, other, tolerance):
    pairs = zip(
        trainer.model.trainable_variables,
        other.model.trainable_variables,
        strict=True,
    )
    for variable, expected in pairs:
        value, expected = np.asarray(variable), np.asarray(expected)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value, expected, atol=tolerance * scale)


@pytest.mark.parametrize(
    "make",
    [make_model_without_norm, lambda: make_model(synchronized=True)],
    ids=["without_norm", "synchronized_norm"],
)
@pytest.mark.parametrize(
    "optimizer", [MomentumSGD, tf.keras.optimizers.SGD], ids=["ours", "keras"]
)
def test_replicas_agree_with_one_device(
    one_device, two_replicas, make, optimizer
):
    single = train(one_device, make=make, optimizer=optimizer)
    double = train(two_replicas, make=make, optimizer=optimizer)
    assert_weights_agree(double, single, 1e-6)
    expected, results = single.results("train"), double.results("train")
    assert results == pytest.approx(expected, rel=1e-5)


def test_replicas_hold_the_same_weights(two_replicas):
    trainer = train(two_replicas)
    for variable in trainer.model.trainable_variables:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


def test_statistics_are_averaged_over_replicas(two_replicas):
    trainer = train(two_replicas)
    moving = trainer.model.stem.bns[0].moving_mean
    values = two_replicas.experimental_local_results(moving.value)
    first, second = (value.numpy() for value in values)
    assert np.abs(first - second).max() > 1e-4
    trainer.average_statistics()
    for value in two_replicas.experimental_local_results(moving.value):
        np.testing.assert_allclose(value, (first + second) / 2, rtol=1e-6)
    np.testing.assert_allclose(moving, (first + second) / 2, rtol=1e-6)


def test_one_step_is_the_gradient_of_the_mean_loss(one_device):
    trainer = make_trainer(one_device, label_smoothing=0.1)
    model = trainer.model
    images, labels = next(iter(make_batches(one_device, 1)))
    before = [tf.identity(v) for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        targets = tf.one_hot(labels, 4) * 0.9 + 0.1 / 4
        loss = tf.keras.losses.CategoricalCrossentropy(from_logits=True)(
            targets, logits
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    trainer.train(iter(make_batches(one_device, 1)), tf.constant(1))
    trainer.optimizer.learning_rate = 0.05
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
    assert trainer.step == 1


def test_several_steps_in_one_call_are_the_same_bit_by_bit(two_replicas):
    together = train(two_replicas)
    apart = make_trainer(two_replicas)
    iterator = iter(make_batches(two_replicas))
    for _ in range(6):
        apart.train(iterator, tf.constant(1))
    assert_weights_agree(apart, together, 0)
    assert apart.results("train") == together.results("train")


@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_does_not_count_weight_zero(
    request, one_device, two_replicas, replicas
):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    # Smoothing is for training alone.
    trainer = make_trainer(strategy, label_smoothing=0.3)
    random = np.random.default_rng(3)
    images = random.normal(size=(8, 8, 8, 3)).astype("float32")
    labels = random.integers(0, 4, 8)
    weights = np.array([1, 1, 1, 1, 1, 0, 0, 0], "float32")
    logits = trainer.model(images, training=False).numpy()
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, weights))
    batches = pipeline.distribute(
        strategy, lambda share: dataset.batch(4 // replicas)
    )
    trainer.evaluate(iter(batches), tf.constant(2))
    log_probabilities = np.asarray(tf.nn.log_softmax(logits))
    results = trainer.results("eval")
    assert set(results) == {"loss", "accuracy"}
    assert results["loss"] == pytest.approx(
        -log_probabilities[range(5), labels[:5]].mean(), rel=1e-5
    )
    assert results["accuracy"] == pytest.approx(
        (logits.argmax(-1) == labels)[:5].mean()
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_first_broken_step_is_named(one_device, two_replicas, replicas):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    images = np.ones((6 * BATCH_SIZE, 8, 8, 3), "float32")
    # Only the last example of the fourth batch: with two replicas, the second
    # one's.
    images[4 * BATCH_SIZE - 1] = np.nan
    labels = np.zeros(6 * BATCH_SIZE, "int64")
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(
        BATCH_SIZE // replicas, drop_remainder=True
    )
    iterator = iter(pipeline.distribute(strategy, lambda share: dataset))
    trainer = make_trainer(strategy, make=make_model_without_norm)
    assert int(trainer.train(iterator, tf.constant(3))[0]) == -1
    assert int(trainer.train(iterator, tf.constant(3))[0]) == 4


def test_waiting_for_input_is_timed(two_replicas):
    def batch(number):
        tf.py_function(lambda: time.sleep(0.1), [], [])
        return tf.zeros([4, 8, 8, 3]), tf.zeros([4], tf.int64)

    dataset = tf.data.Dataset.range(20).map(batch)
    trainer = make_trainer(two_replicas, make=make_model_without_norm)
    iterator = iter(pipeline.distribute(two_replicas, lambda share: dataset))
    trainer.train(iterator, tf.constant(1))
    began = time.perf_counter()
    _, waited = trainer.train(iterator, tf.constant(4))
    assert 0.4 < float(waited) < time.perf_counter() - began


def test_labels_may_be_probabilities(one_device):
    labels = tf.constant([0, 2, 1])
    logits = tf.random.normal([3, 4])
    soft = tf.one_hot(labels, 4)
    np.testing.assert_array_equal(
        cross_entropy(soft, logits, 0.1), cross_entropy(labels, logits, 0.1)
    )
    np.testing.assert_array_equal(
        is_correct(soft, logits), is_correct(labels, logits)
    )
    mixed = 0.7 * soft + 0.3 * tf.roll(soft, 1, axis=0)
    expected = 0.7 * cross_entropy(labels, logits)
    expected += 0.3 * cross_entropy(tf.roll(labels, 1, axis=0), logits)
    np.testing.assert_allclose(cross_entropy(mixed, logits), expected, 1e-5)


def test_cross_entropy_is_kerass():
    logits = tf.random.normal([5, 3])
    labels = tf.constant([0, 2, 1, 1, 0])
    for smoothing in (0.0, 0.2):
        expected = tf.keras.losses.categorical_crossentropy(
            tf.one_hot(labels, 3),
            logits,
            from_logits=True,
            label_smoothing=smoothing,
        )
        np.testing.assert_allclose(
            cross_entropy(labels, logits, smoothing), expected, rtol=1e-5
        )
