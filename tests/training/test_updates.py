"""Updates of large batches: in pieces, clipped, compiled, on replicas."""

import numpy as np
import pytest
import tensorflow as tf
from small_trainers import (
    BATCH_SIZE,
    make_batches,
    make_examples,
    make_model,
    make_model_without_norm,
    make_trainer,
)

from train_loop.training.optimizers import OPTIMIZERS, MomentumSGD
from train_loop.training.trainer import Trainer
from train_loop.training.update import AVERAGES, Average, LossScale, Update

CLIP_NORM = 0.4


def synchronized_model():
    return make_model(norm={"kind": "batch", "synchronized": True})


def updated(
    strategy,
    make=make_model_without_norm,
    optimizer=MomentumSGD,
    everything=False,
    **options,
):
    """Returns (weights and their averages, results) of some steps.

    Args:
      strategy: a `tf.distribute.Strategy`.
      make: returns the model.
      optimizer: learning rate -> optimizer.
      everything: with averages, clipping and a scaled loss.
      **options: of the `Update`.
    """
    trainer = make_trainer(strategy, make, optimizer)
    model = trainer.model
    if everything:
        with strategy.scope():
            options |= {
                "clip_norm": CLIP_NORM,
                "average": Average(model, AVERAGES["ema"](0.9, 6)),
                "loss_scale": LossScale(growth_steps=2),
            }
    trainer = Trainer(
        model, trainer.optimizer, strategy, update=Update(**options)
    )
    trainer.train(make_batches(strategy), tf.constant(6))
    averages = trainer.update.get("average", {}).values()
    values = [*model.trainable_variables, *averages]
    return [np.asarray(v) for v in values], trainer.results("train")


def assert_close(found, expected):
    (values, results), (others, other_results) = found, expected
    for value, other in zip(values, others, strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-6)
    assert results == pytest.approx(other_results, rel=1e-5)


@pytest.fixture(scope="module")
def whole(one_device):
    return updated(one_device)


@pytest.mark.parametrize("replicas", [1, 2])
def test_pieces_make_the_update_of_the_whole(
    whole, one_device, two_replicas, replicas
):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    assert_close(updated(strategy, micro_batches=2), whole)


def test_batch_norm_sees_the_pieces(one_device):
    pieces = make_trainer(one_device, rate=0.0, update=Update(micro_batches=2))
    images, labels = make_examples()
    model = make_trainer(one_device).model
    pieces.train(make_batches(one_device, images, labels), tf.constant(1))
    # Every second example makes a piece.
    for start in range(2):
        model(images[start:BATCH_SIZE:2], training=True)
    found = pieces.model.stem.bns[0].moving_mean
    expected = model.stem.bns[0].moving_mean
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(np.asarray(found)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "factor"), [("sgd", 1.0), ("adamw", 0.1), ("lars", 20.0)]
)
def test_replicas_agree_with_everything_switched_on(
    one_device, two_replicas, name, factor
):
    def optimizer(rate):
        return OPTIMIZERS[name](factor * rate, 1e-3)

    found, expected = (
        updated(
            strategy,
            synchronized_model,
            optimizer,
            everything=True,
            micro_batches=2,
        )
        for strategy in (two_replicas, one_device)
    )
    assert_close(found, expected)
    # It was clipped, and not every time.
    assert expected[1]["gradient_norm"] > CLIP_NORM


def test_clipping_shortens_the_sum_of_all_gradients(one_device):
    # The way of one step of plain SGD is as long as the gradient.
    lengths = []
    for clip_norm in (None, CLIP_NORM):
        trainer = make_trainer(
            one_device,
            make_model_without_norm,
            tf.keras.optimizers.SGD,
            rate=1.0,
            update=Update(clip_norm=clip_norm),
        )
        weights = trainer.model.trainable_variables
        before = [np.asarray(variable) for variable in weights]
        trainer.train(make_batches(one_device), tf.constant(1))
        way = [np.asarray(v) - b for v, b in zip(weights, before, strict=True)]
        lengths.append(np.sqrt(sum(np.square(part).sum() for part in way)))
    assert lengths[0] > CLIP_NORM
    assert lengths[1] == pytest.approx(CLIP_NORM, rel=1e-4)


@pytest.mark.parametrize("make", [make_model, make_model_without_norm])
def test_compiled_step_equals_the_other_to_rounding(one_device, make):
    assert_close(
        updated(one_device, make, compiled=True), updated(one_device, make)
    )
