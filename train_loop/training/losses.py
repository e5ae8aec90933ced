"""Losses of examples, and whether the predictions for them are right."""

import tensorflow as tf


def cross_entropy(labels, logits, label_smoothing=0.0):
    """Returns the cross entropy of every example, in nats.

    Args:
      labels: int [batch], or probabilities, float [batch, num_classes].
      logits: float [batch, num_classes].
      label_smoothing: probability handed out evenly to all classes; Szegedy et
        al., 2015, https://arxiv.org/abs/1512.00567.

    Returns:
      A tensor [batch] of the dtype of `logits`.
    """
    num_classes = logits.shape[-1]
    targets = labels
    if labels.dtype.is_integer:
        targets = tf.one_hot(labels, num_classes)
    targets = tf.cast(targets, logits.dtype)
    targets = targets * (1.0 - label_smoothing) + label_smoothing / num_classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def is_correct(labels, logits):
    """Returns float32 [batch]: 1 where the largest logit is the label's.

    Of labels that are probabilities, the most probable one counts.
    """
    if labels.dtype.is_floating:
        labels = tf.argmax(labels, axis=-1)
    predictions = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return tf.cast(tf.equal(predictions, labels), tf.float32)
