"""Averages of the weights over many steps, which often do better than the last.

An average takes in the weights after every step: as much of them as its row
of `AVERAGES` says.
"""

import contextlib

import tensorflow as tf

from train_loop.training.variables import is_float, path_below


def exponential(decay, steps):
    """Returns how much the weights of a step count, which is 1 - decay.

    In the beginning they count more: the average is not to remember the random
    weights that it began with. The first step's weights stand alone.

    Source: Polyak and Juditsky, 1992; the warm-up is that of
    `tf.train.ExponentialMovingAverage`, one step later.
    """
    del steps

    def share(step):
        step = tf.cast(step, tf.float32)
        return 1.0 - tf.minimum(decay, (step - 1.0) / (step + 8.0))

    return share


def stochastic(decay, steps):
    """Returns the shares of a plain mean over the last quarter of all steps.

    Before that, the average is the weights themselves. It is for learning rates
    that stay large; statistics of batch norm are averaged like weights, in
    place of being measured anew.

    Source: stochastic weight averaging, Izmailov et al., 2018,
    https://arxiv.org/abs/1803.05407.
    """
    del decay
    first = steps - steps // 4

    def share(step):
        return 1.0 / tf.cast(tf.maximum(step - first, 0) + 1, tf.float32)

    return share


# Name -> (decay, number of steps) -> function: step from 1 on -> share.
AVERAGES = {"ema": exponential, "swa": stochastic}


class Average:
    """Averages of weights and of batch-norm statistics.

    On every replica. Keras's own, in its optimizers, leaves the statistics out
    and fails under `tf.distribute`. Create it in the scope of a strategy.

    Args:
      model: a built Keras model.
      share: step -> how much its weights count, see `AVERAGES`.
    """

    def __init__(self, model, share):
        self.share = share
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

    @property
    def by_path(self):
        """{path below the model: average}."""
        return {
            path_below(variable): average for variable, average in self.pairs
        }

    def update(self, step):
        """Takes in the weights after a step; call it on every replica."""
        share = self.share(step)
        for variable, average in self.pairs:
            average.assign_add((variable.value - average) * share)

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
