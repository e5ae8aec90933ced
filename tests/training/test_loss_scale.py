"""The scale of the loss: what it leaves alone, and what it takes back."""

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
    remembered,
    start_again,
)

from train_loop.training.trainer import Trainer
from train_loop.training.update import (
    INITIAL_SCALE,
    MAX_SCALE,
    LossScale,
    Update,
)


def scaling_trainer(strategy, make=make_model, growth_steps=2000):
    """Returns a trainer whose loss is scaled."""
    trainer = make_trainer(strategy, make)
    with strategy.scope():
        update = Update(loss_scale=LossScale(growth_steps))
    return Trainer(trainer.model, trainer.optimizer, strategy, update=update)


@pytest.fixture(scope="module")
def traced(two_replicas):
    # Norms would keep any image's gradients small.
    make = make_model_without_norm
    trainer = scaling_trainer(two_replicas, make, growth_steps=3)
    return trainer, remembered(trainer)


@pytest.fixture
def two(traced):
    """Returns a trainer on two replicas, as if it were new."""
    trainer, start = traced
    start_again(trainer, start)
    trainer.update.loss_scale.scale.assign(INITIAL_SCALE)
    trainer.update.loss_scale.good_steps.assign(0)
    return trainer


def exploding(number):
    """Returns examples of which one makes gradients, not its loss, infinite."""
    images, labels = make_examples()
    images[number] *= 1e35
    return images, labels


def scale(trainer):
    return float(trainer.update.loss_scale.scale.numpy())


def test_scale_changes_no_digit(two, two_replicas):
    plain = make_trainer(two_replicas, make_model_without_norm)
    plain.train(make_batches(two_replicas), tf.constant(4))
    two.train(make_batches(two_replicas), tf.constant(4))
    assert_same(two, remembered(plain))
    # After three good steps it doubles.
    assert scale(two) == 2 * INITIAL_SCALE
    results = two.results("train")
    assert results["skipped_steps"] == 0
    assert results["loss_scale"] == 2 * INITIAL_SCALE
    assert results["gradient_norm"] == plain.results("train")["gradient_norm"]


def test_step_is_taken_back_on_all_replicas(two, two_replicas):
    # The last example of the third batch: the second replica's.
    examples = exploding(3 * BATCH_SIZE - 1)
    batches = make_batches(two_replicas, *examples)
    two.train(batches, tf.constant(2))
    before = remembered(two)
    broken_step, _ = two.train(batches, tf.constant(1))
    # It is known, and goes on.
    assert int(broken_step) == -1
    assert two.step == 3
    assert two.is_finite()
    after = remembered(two)
    steps = [v is two.optimizer.iterations for v in two.optimizer.variables]
    steps = [False] * len(two.model.variables) + steps
    for is_step, ours, theirs in zip(steps, after, before, strict=True):
        if not is_step:
            np.testing.assert_array_equal(ours, theirs)
    assert scale(two) == INITIAL_SCALE / 2
    results = two.results("train")
    assert results["skipped_steps"] == 1
    assert np.isfinite(results["gradient_norm"])
    # What went well is counted anew.
    two.train(batches, tf.constant(2))
    assert scale(two) == INITIAL_SCALE / 2
    two.train(batches, tf.constant(1))
    assert scale(two) == INITIAL_SCALE


def test_statistics_are_taken_back_too(one_device):
    trainer = scaling_trainer(one_device)
    before = remembered(trainer)[: len(trainer.model.variables)]
    images, labels = make_examples()
    images[0] = np.nan
    batches = make_batches(one_device, images, labels)
    broken_step, _ = trainer.train(batches, tf.constant(1))
    # A loss that is not finite is none that a smaller scale would mend.
    assert int(broken_step) == 1
    after = remembered(trainer)[: len(before)]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_smallest_scale_is_the_end(two, two_replicas):
    two.update.loss_scale.scale.assign(1.0)
    batches = make_batches(two_replicas, *exploding(0))
    broken_step, _ = two.train(batches, tf.constant(1))
    assert int(broken_step) == 1


def test_largest_scale_stays(two, two_replicas):
    two.update.loss_scale.scale.assign(MAX_SCALE)
    two.train(make_batches(two_replicas), tf.constant(6))
    assert scale(two) == MAX_SCALE


def test_float16_trains(one_device):
    def make():
        return make_model(dtype="mixed_float16")

    trainer = scaling_trainer(one_device, make)
    single = make_trainer(one_device)
    trainer.train(make_batches(one_device), tf.constant(6))
    single.train(make_batches(one_device), tf.constant(6))
    results, expected = trainer.results("train"), single.results("train")
    assert results["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert results["skipped_steps"] == 0
