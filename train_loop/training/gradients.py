"""The way of gradients from the replicas to the weights: one place, once.

Reduce, then whatever looks at the sum, then apply. Keras clips and unscales
before it sums over the replicas, so that the result depends on their number.
"""

import tensorflow as tf


def sum_once(optimizer):
    """Keeps a Keras optimizer from summing over the replicas again.

    It does so in every `apply`, and asks nobody whether that was done already.
    `tests/training/test_gradients.py` counts the sums of a traced step.
    """
    optimizer._all_reduce_sum_gradients = list


def reduce_and_apply(optimizer, gradients):
    """Sums gradients over the replicas and updates the weights.

    Call it on every replica, inside `strategy.run`.

    Args:
      optimizer: a built Keras optimizer that has been through `sum_once`.
      gradients: of this replica's share of the loss, a tensor for each of the
        optimizer's variables.

    Returns:
      Norm of all summed gradients together, a scalar.
    """
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce("SUM", gradients)
    norm = tf.linalg.global_norm(gradients)
    optimizer.apply(gradients)
    return norm
