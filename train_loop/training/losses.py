"""Losses and correctness of single examples."""

import numpy as np
import tensorflow as tf

# A class with a smaller fraction of a mixed image counts as absent: the value
# of timm's recipes of `sigmoid_cross_entropy`'s paper.
PRESENCE_THRESHOLD = 0.2


def cross_entropy(labels, logits, label_smoothing=0.0):
    """Returns the cross entropy of every example, in nats.

    Args:
      labels: int [batch], or probabilities, float [batch, num_classes].
      logits: float [batch, num_classes].
      label_smoothing: label-smoothing factor; Szegedy et al., 2015,
        https://arxiv.org/abs/1512.00567.

    Returns:
      A tensor [batch] of the dtype of `logits`.
    """
    targets = _smoothed(_targets(labels, logits), label_smoothing)
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def sigmoid_cross_entropy(labels, logits, label_smoothing=0.0):
    """Returns the mean binary cross-entropy over the classes.

    In a mixed image, labels above `PRESENCE_THRESHOLD` become 1, and others 0.
    Labels are smoothed before, as in timm, so that smoothing only raises the
    fraction that a class needs: from 0.2 to 0.222 for 1,000 classes and a
    factor of 0.1.

    Source: Wightman et al., 2021, https://arxiv.org/abs/2110.00476.

    Arguments and result are those of `cross_entropy`.
    """
    targets = _smoothed(_targets(labels, logits), label_smoothing)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        tf.cast(targets > PRESENCE_THRESHOLD, logits.dtype), logits
    )
    return tf.reduce_mean(losses, axis=-1)


LOSSES = {"softmax": cross_entropy, "sigmoid": sigmoid_cross_entropy}


def weighted(loss, class_weights):
    """Returns a loss that weights examples by their class.

    Args:
      loss: a function like `cross_entropy`.
      class_weights: float [num_classes]. A mixed image has the mean weight of
        its classes.

    Returns:
      A function like `cross_entropy`.
    """
    class_weights = np.float32(class_weights)

    def weighted_loss(labels, logits, **options):
        weights = tf.linalg.matvec(
            _targets(labels, logits), tf.cast(class_weights, logits.dtype)
        )
        return weights * loss(labels, logits, **options)

    return weighted_loss


def balanced_weights(counts):
    """Returns class weights that give all classes the same total weight.

    n / (k * n_c), for n_c of n examples in class c, one of k classes with
    examples. The mean weight of an example is 1, so that the mean loss keeps
    its scale. A class without examples gets 1.

    Args:
      counts: int [num_classes], examples per class.
    """
    counts = np.asarray(counts)
    present = counts > 0
    mean = counts.sum() / max(present.sum(), 1)
    return np.where(present, mean / np.maximum(counts, 1), 1.0)


# Name -> (examples per class) -> class weights; None for equal weights.
CLASS_WEIGHTS = {"none": None, "balanced": balanced_weights}


def is_correct(labels, logits):
    """Returns float32 [batch]: 1 if the largest logit is that of the label.

    For labels that are probabilities, the most probable class counts.
    """
    if labels.dtype.is_floating:
        labels = tf.argmax(labels, axis=-1)
    predictions = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return tf.cast(tf.equal(predictions, labels), tf.float32)


def _targets(labels, logits):
    """Returns labels as probabilities [batch, num_classes]."""
    if labels.dtype.is_integer:
        return tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return tf.cast(labels, logits.dtype)


def _smoothed(targets, label_smoothing):
    share = label_smoothing / targets.shape[-1]
    return targets * (1.0 - label_smoothing) + share
