"""The way of gradients from the replicas to the weights: one place, once.

Reduce, then whatever looks at the sum, then apply. Keras clips and unscales
before it sums over the replicas, so that the result depends on their number,
and writes infinite numbers into the weights where only one replica has some.
"""

import tensorflow as tf


def sum_once(optimizer):
    """Keeps a Keras optimizer from summing over the replicas again.

    It does so in every `apply`, and asks nobody whether that was done already.
    `tests/training/test_gradients.py` counts the sums of a traced step.
    """
    optimizer._all_reduce_sum_gradients = list


def reduce_and_apply(
    optimizer, gradients, variables=None, clip_norm=None, loss_scale=None
):
    """Sums gradients over the replicas and updates the weights.

    Call it on every replica, inside `strategy.run`.

    Args:
      optimizer: a built Keras optimizer that has been through `sum_once`.
      gradients: of this replica's share of the loss, a tensor for each of the
        variables.
      variables: some of the optimizer's, None for all. The others stay as
        they are, and so does what the optimizer remembers of them.
      clip_norm: the largest norm that all gradients together may have; longer
        ones are shortened. None: any.
      loss_scale: the `LossScale` that the loss was multiplied with; None if
        it was not.

    Returns:
      Norm of all summed gradients together, before it is clipped; a scalar.
    """
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce("SUM", gradients)
    if loss_scale is not None:
        gradients = loss_scale.unscale(gradients)
    norm = tf.linalg.global_norm(gradients)
    if clip_norm is not None:
        gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, norm)
    # Not before all gradients are there: a step of ResNet-50 takes a tenth
    # less memory at its peak where no weights change under way.
    with tf.control_dependencies([norm]):
        optimizer.apply(gradients, variables)
    return norm
