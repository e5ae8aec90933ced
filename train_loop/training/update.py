"""How gradients become an update of the weights.

Accumulate over micro-batches, reduce over the replicas once, unscale, clip,
apply, average. Keras clips and unscales before it sums over the replicas, so
that the result depends on their number, and writes infinite numbers into the
weights where only one replica has some.
"""

import contextlib
from typing import NamedTuple

import tensorflow as tf

from resnet_layers.weights.names import path_below

# float16 ends at 65504, and what is below 6e-8 is zero.
INITIAL_SCALE = 2.0**15
MAX_SCALE = 2.0**24


class Update(NamedTuple):
    """How a batch becomes an update of the weights.

    A replica takes its share of the batch in micro-batches, one after another,
    which needs the memory of one. The update is that of the whole, but batch
    norm normalizes each micro-batch by itself, and its statistics move at every
    one.

    Args:
      micro_batches: how many.
      clip_norm: maximum global norm of the gradients; None for any.
      average: an `Average` of the weights over the steps, or None.
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
      gradients_of: maps (images, labels) to gradients, losses and hits.
      images: of this replica's share of the batch.
      labels: of the same.
      variables: that the gradients are of.
      count: number of micro-batches.
      unrolled: repeat the graph instead of looping over it.

    Returns:
      The sums of the gradients, and all losses and hits.
    """
    # A micro-batch is every third example, say, so that what is in it does not
    # depend on the number of replicas.
    images, labels = (
        tf.reshape(part, [-1, count, *part.shape[1:]])
        for part in (images, labels)
    )

    def add(index, sums, losses, correct):
        # One after another, or all of them would be in memory.
        with tf.control_dependencies(sums):
            piece = tf.identity(images[:, index])
        gradients, new_losses, new_correct = gradients_of(
            piece, labels[:, index]
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
      optimizer: a built Keras optimizer that has been through
        `skip_own_reduction`.
      gradients: of this replica's share of the loss, a tensor for each of the
        variables.
      variables: some of the optimizer's, None for all. The others and their
        slots stay as they are.
      clip_norm: maximum norm of all gradients together; larger ones are scaled
        down. None: any.
      loss_scale: the `LossScale` that the loss was multiplied with, or None.

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


def skip_own_reduction(optimizer):
    """Keeps a Keras optimizer from summing over the replicas again.

    It does so in every `apply`, without an option.
    `tests/training/test_update.py` counts the sums of a traced step.
    """
    optimizer._all_reduce_sum_gradients = list


class LossScale:
    """Multiplies a loss so that its gradients fit into float16.

    The scale doubles after some finite updates. Where a gradient is not finite
    on any of the replicas, the scale is halved, and the update is undone on all
    of them: weights, statistics and the optimizer's slots stay what they were.
    The step counts all the same, as its images have been read.

    Keras's own looks at the gradients of the first replica only. This one looks
    at their sum, and sees the same on all.

    Create it in the scope of a strategy.

    Args:
      growth_steps: after how many finite updates it doubles.

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
        """Returns the loss that gradients are to be taken of."""
        return loss * tf.cast(self.scale, loss.dtype)

    def unscale(self, gradients):
        """Returns the gradients of the loss itself.

        The scale is a power of two, which changes no digit of theirs.
        """
        return [gradient / self.scale for gradient in gradients]

    def update(self, norm, variables, before):
        """Adapts the scale, and undoes an update that was not finite.

        Without a branch, which would make the host wait for the device.

        Args:
          norm: of the gradients, the same on all replicas.
          variables: everything that the step has changed.
          before: their values before it, a tensor for each.

        Returns:
          Whether the step is skipped for the sake of the scale, and the norm,
          0 for such a step.
        """
        finite = tf.math.is_finite(norm)
        # With the smallest scale, it is not for the scale's sake.
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
    """Returns how much the weights of a step count, which is 1 - decay.

    In the beginning they count more: the average is not to remember the random
    weights that it began with. The first step's weights stand alone.

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

    Before that, the average is the weights themselves. It is for learning rates
    that stay large; statistics of batch norm are averaged like weights, instead
    of being measured anew.

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
    """Averages of weights and of batch-norm statistics over many steps.

    On every replica. Keras's own, in its optimizers, skips the statistics and
    fails under `tf.distribute`. Create it in the scope of a strategy.

    Args:
      model: a built Keras model.
      coefficient: step -> how much its weights count, see `AVERAGES`.
      name: of the kind of average, in front of its metrics.
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
        """Adds the weights after a step; call it on every replica."""
        coefficient = self.coefficient(step)
        for variable, average in self.pairs:
            average.assign_add((variable.value - average) * coefficient)

    @contextlib.contextmanager
    def in_place(self):
        """Puts the averages into the model for a while, on all replicas."""
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
    """Tells a Keras variable of real numbers from a counter."""
    return tf.as_dtype(variable.dtype).is_floating
