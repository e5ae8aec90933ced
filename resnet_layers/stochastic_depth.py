"""Stochastic depth: blocks that are dropped at random."""

import tensorflow as tf

from resnet_layers.arguments import number, whole_number
from resnet_layers.serialization import KeepsArguments


def seed_or_none(seed):
    """Returns a seed as Python's own integer, or None.

    Raises:
      ValueError: it is something else, or needs more than 64 bits.
    """
    return whole_number(
        "seed", seed, optional=True, at_least=-(2**63), below=2**63
    )


def drop_rate(stochastic_depth):
    """Returns the probability of being dropped as Python's own number.

    Raises:
      ValueError: it is none, or nothing would be left.
    """
    return number("stochastic_depth", stochastic_depth, at_least=0, below=1)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class StochasticDepth(KeepsArguments, tf.keras.layers.Layer):
    """Drops its input for some of the examples of a batch, in training.

    What is kept is scaled up, so that the mean stays. Every example and every
    replica draws for itself; Keras's dropout draws the same on all replicas.
    A frozen layer (`trainable = False`) drops nothing and draws nothing: it
    does what it does in inference, as a frozen batch norm.

    Args:
      stochastic_depth: probability that an example is dropped, in [0, 1).
      seed: int, or None to draw one.
      **kwargs: `name`, `dtype` and so on, for `keras.layers.Layer`.

    Raises:
      ValueError: an argument has none of the values possible.

    Source: Huang et al., 2016, https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, stochastic_depth, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.stochastic_depth = drop_rate(stochastic_depth)
        self.seed = seed_or_none(seed)

    def build(self, input_shape):
        del input_shape
        if self.built:
            return
        # Here rather than in `__init__`: paths, by which checkpoints keep it,
        # then do not depend on what else a process has made.
        self.seed_generator = tf.keras.random.SeedGenerator(
            self.seed, name="seed_generator"
        )
        # Else tf.train.Checkpoint leaves it out.
        self._checkpointed = tf.train.Checkpoint(
            state=self.seed_generator.state
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=None):
        """Maps [batch, ...] to the same shape."""
        rate = self.stochastic_depth
        if not (training and self.trainable) or rate == 0:
            return inputs
        seed = self.seed_generator.next()
        context = tf.distribute.get_replica_context()
        if context is not None:
            replica = context.replica_id_in_sync_group
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        rank = len(inputs.shape)
        shape = [tf.shape(inputs)[0]] + [1] * (rank - 1)
        kept = tf.random.stateless_uniform(shape, seed) >= rate
        return tf.where(kept, inputs / (1 - rate), tf.zeros_like(inputs))

    def load_own_variables(self, store):
        """Takes nothing: there are no weights.

        Files of version 0.1.0 hold a counter here.
        """
