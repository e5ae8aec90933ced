"""Losses and hits of single examples."""

import numpy as np
import tensorflow as tf

from train_loop.training.losses import cross_entropy, is_correct

LABELS = tf.constant([0, 2, 1, 1, 0])
LOGITS = tf.constant(np.random.default_rng(1).normal(size=(5, 4)), tf.float32)


def test_cross_entropy_is_kerass():
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


def test_largest_logit_is_the_answer():
    logits = tf.constant([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(
        is_correct(tf.constant([1, 0], tf.int64), logits), [1, 0]
    )
    # Of a mixture, the part that most of it is.
    mixtures = tf.constant([[0.4, 0.6, 0.0], [0.6, 0.4, 0.0]])
    np.testing.assert_array_equal(is_correct(mixtures, logits), [1, 0])
