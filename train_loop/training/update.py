"""Updates: from gradients to new weights.

Accumulate over micro-batches, sum over the replicas once, unscale, clip, apply,
average. Keras clips and unscales before it sums over the replicas. Its result
depends on their number, and its weights become infinite if the gradients of one
replica are.
"""

import contextlib
from typing import NamedTuple

import tensorflow as tf

from resnet_layers.weights.names import path_below

# float16 has a maximum of 65504; numbers below 6e-8 are zero.
INITIAL_SCALE = 2.0**15
MAX_SCALE = 2.0**24


class Update(NamedTuple):
    """How a batch becomes an update of the weights.

    A replica splits its examples into micro-batches, which need the memory of
    one. The update is that of the whole batch, except that batch norm uses the
    statistics of each micro-batch.

    Args:
      micro_batches: number of micro-batches.
      clip_norm: maximum global gradient norm; None for no clipping.
      average: `Average` of the weights over the steps, or None.
      loss_scale: a `LossScale`, for float16, or None.
      compiled: whether XLA compiles the forward and backward pass.
    """

    micro_batches: int = 1
    clip_norm: float | None = None
    average: "Average | None" = None
    loss_scale: "LossScale | None" = None
    compiled: bool = False


def accumulate(gradients_of, images, labels, variables, count, unrolled=False):
    """Computes the gradients of micro-batches, one after another.

    Args:
      gradients_of: maps (images, labels) to gradients, losses and correctness.
      images: images of this replica.
      labels: their labels.
      variables: trainable variables.
      count: number of micro-batches.
      unrolled: whether to repeat the graph instead of looping over it.

    Returns:
      The summed gradients, and losses and correctness of all examples.
    """
    # Of three micro-batches, each has every third example, so that its examples
    # do not depend on the number of replicas.
    images, labels = (
        tf.reshape(part, [-1, count, *part.shape[1:]])
        for part in (images, labels)
    )

    def add(index, sums, losses, correct):
        # One after another: together they would need the memory of all.
        with tf.control_dependencies(sums):
            micro_batch = tf.identity(images[:, index])
        gradients, new_losses, new_correct = gradients_of(
            micro_batch, labels[:, index]
        )
        return (
            index + 1,
            [a + b for a, b in zip(sums, gradients, strict=True)],
            losses.write(index, new_losses),
            correct.write(index, new_correct),
        )

    state = (
        0,
        [tf.zeros(variable.shape) for variable in variables],
        tf.TensorArray(tf.float32, count),
        tf.TensorArray(tf.float32, count),
    )
    if unrolled:
        for _ in range(count):
            state = add(*state)
    else:
        state = tf.while_loop(lambda index, *_: index < count, add, state)
    _, sums, losses, correct = state
    return sums, losses.concat(), correct.concat()


def reduce_and_apply(
    optimizer, gradients, variables=None, clip_norm=None, loss_scale=None
):
    """Sums gradients over the replicas and updates the weights.

    Call it on every replica, inside `strategy.run`.

    Args:
      optimizer: a built Keras optimizer after `skip_own_reduction`.
      gradients: gradients of this replica's share of the loss, one tensor per
        variable.
      variables: the optimizer's variables to update; None for all.
      clip_norm: maximum global gradient norm; larger gradients are scaled down.
        None for no clipping.
      loss_scale: `LossScale` that the loss was multiplied with, or None.

    Returns:
      Global norm of the summed gradients before clipping; a scalar.
    """
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce("SUM", gradients)
    if loss_scale is not None:
        gradients = loss_scale.unscale(gradients)
    norm = tf.linalg.global_norm(gradients)
    if clip_norm is not None:
        gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, norm)
    # Only after all gradients are computed: this lowers the peak memory of a
    # step of ResNet-50 by a tenth.
    with tf.control_dependencies([norm]):
        optimizer.apply(gradients, variables)
    return norm


def skip_own_reduction(optimizer):
    """Prevents a Keras optimizer from summing over the replicas again.

    Every `apply` does so, without an option. `tests/training/test_update.py`
    counts the sums in a traced step.
    """
    optimizer._all_reduce_sum_gradients = list


class LossScale:
    """Multiplies a loss so that its gradients fit into float16.

    The scale doubles after a number of finite updates. If a gradient of any
    replica is not finite, the scale is halved, and the update is undone on all
    replicas: weights, statistics and the optimizer's slots do not change. The
    step counts, because its images have been read.

    Keras checks the gradients of the first replica only. This class checks
    their sum, which is the same on all replicas.

    Create it in the scope of a strategy.

    Args:
      growth_steps: number of finite updates after which the scale doubles.

    Source: Micikevicius et al., 2017, https://arxiv.org/abs/1710.03740.
    """

    def __init__(self, growth_steps=2000):
        self.growth_steps = growth_steps
        self.scale = tf.Variable(
            INITIAL_SCALE, trainable=False, name="loss_scale"
        )
        self.good_steps = tf.Variable(0, trainable=False, name="good_steps")

    @property
    def variables(self):
        return [self.scale, self.good_steps]

    def multiply(self, loss):
        """Returns the scaled loss."""
        return loss * tf.cast(self.scale, loss.dtype)

    def unscale(self, gradients):
        """Returns the gradients of the unscaled loss.

        The scale is a power of two, so that this is exact.
        """
        return [gradient / self.scale for gradient in gradients]

    def update(self, norm, variables, before):
        """Adapts the scale, and undoes an update that was not finite.

        Without branches, which would make the host wait for the device.

        Args:
          norm: global gradient norm, the same on all replicas.
          variables: all variables that the step has changed.
          before: their values before the step, one tensor each.

        Returns:
          Whether the step is skipped because of the scale, and the norm, 0 for
          a skipped step.
        """
        finite = tf.math.is_finite(norm)
        # At the smallest scale, the scale is not the reason.
        skipped = ~finite & (self.scale > 1.0)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        good_steps = tf.where(finite, self.good_steps + 1, 0)
        grows = good_steps >= self.growth_steps
        scale = tf.where(finite, self.scale, self.scale / 2)
        scale = tf.where(grows, scale * 2, scale)
        self.scale.assign(tf.clip_by_value(scale, 1.0, MAX_SCALE))
        self.good_steps.assign(tf.where(grows, 0, good_steps))
        return skipped, tf.where(skipped, 0.0, norm)


def ema_coefficient(decay, steps):
    """Returns the coefficients of an exponential moving average: 1 - decay.

    They are larger in the first steps, so that the average forgets the random
    initial weights. After the first step, the average is its weights.

    Source: Polyak and Juditsky, 1992; the warm-up is that of
    `tf.train.ExponentialMovingAverage`, one step later.
    """
    del steps

    def coefficient(step):
        step = tf.cast(step, tf.float32)
        return 1.0 - tf.minimum(decay, (step - 1.0) / (step + 8.0))

    return coefficient


def swa_coefficient(decay, steps):
    """Returns the coefficients of a mean over the last quarter of all steps.

    Before that, the average equals the weights. Use it with learning rates that
    stay large. Batch-norm statistics are averaged like weights, instead of
    being recomputed.

    Source: stochastic weight averaging, Izmailov et al., 2018,
    https://arxiv.org/abs/1803.05407.
    """
    del decay
    first = steps - steps // 4

    def coefficient(step):
        return 1.0 / tf.cast(tf.maximum(step - first, 0) + 1, tf.float32)

    return coefficient


# Name -> (decay, number of steps) -> function: step from 1 on -> coefficient.
AVERAGES = {"ema": ema_coefficient, "swa": swa_coefficient}


class Average:
    """Average of weights and batch-norm statistics over steps.

    Each replica has its own. The average of Keras optimizers skips statistics
    and fails under `tf.distribute`. Create it in the scope of a strategy.

    Args:
      model: a built Keras model.
      coefficient: step -> coefficient of its weights, see `AVERAGES`.
      name: kind of average, the prefix of its metrics.
    """

    def __init__(self, model, coefficient, name="average"):
        self.coefficient = coefficient
        self.name = name
        self.pairs = [
            (
                variable,
                tf.Variable(
                    variable.value,
                    trainable=False,
                    name=f"{variable.name}_average",
                ),
            )
            for variable in model.variables
            if is_float(variable)
        ]
        self.by_path = {
            path_below(model, variable): average
            for variable, average in self.pairs
        }

    def update(self, step):
        """Updates the average after a step; call it on every replica."""
        coefficient = self.coefficient(step)
        for variable, average in self.pairs:
            average.assign_add((variable.value - average) * coefficient)

    @contextlib.contextmanager
    def in_place(self):
        """Uses the averages as the model's weights, on all replicas."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for variable, average in self.pairs:
            value = tf.identity(variable.value)
            variable.assign(tf.identity(average))
            average.assign(value)


def is_float(variable):
    """Tells whether a Keras variable is floating-point, not a counter."""
    return tf.as_dtype(variable.dtype).is_floating
