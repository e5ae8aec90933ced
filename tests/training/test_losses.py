"""Losses and hits of single examples."""

import numpy as np
import pytest
import tensorflow as tf

from train_loop import Settings
from train_loop.builders.training import training_loss
from train_loop.data.split import Data
from train_loop.errors import UserError
from train_loop.resolve import DEFAULTS
from train_loop.training.losses import (
    CLASS_WEIGHTS,
    LOSSES,
    cross_entropy,
    is_correct,
    sigmoid_cross_entropy,
    weighted,
)

LABELS = tf.constant([0, 2, 1, 1, 0])
LOGITS = tf.constant(np.random.default_rng(1).normal(size=(5, 4)), tf.float32)


def test_cross_entropy_equals_keras():
    for smoothing in (0.0, 0.2):
        expected = tf.keras.losses.categorical_crossentropy(
            tf.one_hot(LABELS, 4),
            LOGITS,
            from_logits=True,
            label_smoothing=smoothing,
        )
        np.testing.assert_allclose(
            cross_entropy(LABELS, LOGITS, smoothing), expected, rtol=1e-5
        )


def test_labels_may_be_probabilities():
    soft = tf.one_hot(LABELS, 4)
    np.testing.assert_array_equal(
        cross_entropy(soft, LOGITS, 0.1), cross_entropy(LABELS, LOGITS, 0.1)
    )
    np.testing.assert_array_equal(
        is_correct(soft, LOGITS), is_correct(LABELS, LOGITS)
    )
    mixed = 0.7 * soft + 0.3 * tf.roll(soft, 1, axis=0)
    expected = 0.7 * cross_entropy(LABELS, LOGITS)
    expected += 0.3 * cross_entropy(tf.roll(LABELS, 1, axis=0), LOGITS)
    np.testing.assert_allclose(
        cross_entropy(mixed, LOGITS), expected, rtol=1e-5
    )


def binary_entropies(targets):
    """Returns -t log p - (1 - t) log(1 - p), in float64."""
    logits = LOGITS.numpy().astype(float)
    yes, no = (-np.logaddexp(0, x) for x in (-logits, logits))
    return -(targets * yes + (1 - targets) * no)


def timms_targets(first, second, share, smoothing, num_classes):
    """Returns targets by timm's `mixup_target` and `BinaryCrossEntropy`."""
    off = smoothing / num_classes
    on = 1 - smoothing + off
    rows = np.arange(len(first))
    mixed = np.full([2, len(first), num_classes], off)
    mixed[0, rows, first] = mixed[1, rows, second] = on
    return np.float64(share * mixed[0] + (1 - share) * mixed[1] > 0.2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    ("share", "parts"), [(1.0, 1), (0.7, 2), (0.85, 1), (0.15, 1)]
)
def test_sigmoid_targets_equal_timm(smoothing, share, parts):
    """Labels above 0.2 become 1."""
    labels = LABELS.numpy()
    others = (labels + 1) % 4
    targets = timms_targets(labels, others, share, smoothing, 4)
    assert np.all(targets.sum(axis=1) == parts)
    one_hot = np.eye(4, dtype="float32")
    mixed = share * one_hot[labels] + (1 - share) * one_hot[others]
    np.testing.assert_allclose(
        sigmoid_cross_entropy(tf.constant(mixed), LOGITS, smoothing),
        binary_entropies(targets).mean(axis=1),
        rtol=1e-5,
    )
    if share == 1:
        np.testing.assert_array_equal(
            sigmoid_cross_entropy(LABELS, LOGITS, smoothing),
            sigmoid_cross_entropy(tf.constant(mixed), LOGITS, smoothing),
        )


def test_smoothing_raises_the_presence_threshold():
    """Of 1,000 classes, by a factor of 0.1, from 0.2 to 0.222."""
    logits = tf.constant([[1.0, 2.0] + 998 * [0.0]])
    for share, smoothing, parts in (
        (0.21, 0.0, 2),
        (0.21, 0.1, 1),
        (0.23, 0.1, 2),
    ):
        targets = timms_targets([1], [0], share, smoothing, 1000)
        assert targets.sum() == parts
        mixed = share * tf.one_hot([1], 1000) + (1 - share) * tf.one_hot(
            [0], 1000
        )
        expected = np.logaddexp(0, logits) - targets * logits
        np.testing.assert_allclose(
            sigmoid_cross_entropy(mixed, logits, smoothing),
            np.mean(expected, axis=1),
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("factor", "num_classes", "limit"),
    [(0.4, 2, "0.4"), (0.81, 1000, "0.801"), (1, 5, "1")],
)
def test_smoothing_that_hides_every_class_is_rejected(
    factor, num_classes, limit
):
    def loss(factor):
        settings = Settings(loss="sigmoid", label_smoothing=factor).over(
            DEFAULTS
        )
        data = Data(tuple(map(str, range(num_classes))), None, None, {})
        return training_loss(settings, data)

    with pytest.raises(UserError, match=f"must be less than {limit}. Try "):
        loss(factor)
    assert loss(0.1)(tf.constant([0]), tf.zeros([1, num_classes])) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_class_weights_scale_losses(name):
    weights = np.array([2.0, 0.5, 1.0, 3.0])
    loss = LOSSES[name]
    expected = weights[LABELS] * loss(LABELS, LOGITS, label_smoothing=0.1)
    values = weighted(loss, weights)(LABELS, LOGITS, label_smoothing=0.1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    mixed = 0.7 * tf.one_hot([0], 4) + 0.3 * tf.one_hot([1], 4)
    [value] = weighted(loss, weights)(mixed, LOGITS[:1])
    [plain] = loss(mixed, LOGITS[:1])
    assert float(value / plain) == pytest.approx(0.7 * 2.0 + 0.3 * 0.5)


def test_balanced_weights_give_classes_equal_totals():
    counts = np.array([30, 10, 0, 5])
    weights = CLASS_WEIGHTS["balanced"](counts)
    together = counts * weights
    # n / (k * n_c), for the three classes with examples.
    np.testing.assert_allclose(together, [15, 15, 0, 15])
    assert together.sum() == pytest.approx(counts.sum())
    assert np.isfinite(weights).all()
    np.testing.assert_array_equal(CLASS_WEIGHTS["balanced"]([4, 4]), [1, 1])


def test_largest_logit_is_the_prediction():
    logits = tf.constant([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(
        is_correct(tf.constant([1, 0], tf.int64), logits), [1, 0]
    )
    # In a mixed image, the class with the largest fraction.
    mixtures = tf.constant([[0.4, 0.6, 0.0], [0.6, 0.4, 0.0]])
    np.testing.assert_array_equal(is_correct(mixtures, logits), [1, 0])
