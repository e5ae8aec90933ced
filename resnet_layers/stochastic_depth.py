"""Stochastic depth (drop path): random dropping of residual branches."""

from typing import Any

import tensorflow as tf

from resnet_layers.arguments import integer, number
from resnet_layers.serialization import ConfigMixin


def seed_or_none(seed):
    """Returns a seed as a Python int, or None.

    Raises:
      ValueError: `seed` is not an integer, or needs more than 64 bits.
    """
    return integer("seed", seed, optional=True, at_least=-(2**63), below=2**63)


def drop_rate(stochastic_depth):
    """Returns a drop probability as a Python float.

    Raises:
      ValueError: the probability is not in [0, 1).
    """
    return number("stochastic_depth", stochastic_depth, at_least=0, below=1)


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class StochasticDepth(ConfigMixin, tf.keras.layers.Layer):
    """Stochastic depth (drop path): drops the input of random examples.

    In training, each example is set to zero with the given probability, and
    the rest is scaled up so that the expected value stays the same. Each
    example and each replica draws its own random number; Keras's dropout uses
    the same mask on all replicas. With `trainable = False` the layer returns
    its inputs, as in inference. Inputs and outputs are [batch, ...].

    Args:
      stochastic_depth: probability that an example is dropped, at least 0 and
        below 1.
      seed: integer seed, or None for a random one.
      **kwargs: `name`, `dtype` and the other arguments of
        `keras.layers.Layer`.

    Raises:
      ValueError: an argument is invalid.

    Source: Huang et al., 2016, <https://arxiv.org/abs/1603.09382>.

    Example:
      ```python
      x = x + StochasticDepth(0.1)(residual, training=True)
      ```
    """

    def __init__(
        self,
        stochastic_depth: float,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stochastic_depth = drop_rate(stochastic_depth)
        self.seed = seed_or_none(seed)

    def build(self, input_shape):
        del input_shape
        if self.built:
            return
        # Not in `__init__`: there, the paths that checkpoints use would depend
        # on the other layers of the process.
        self.seed_generator = tf.keras.random.SeedGenerator(
            self.seed, name="seed_generator"
        )
        # Otherwise tf.train.Checkpoint skips the state.
        self._checkpointed = tf.train.Checkpoint(
            state=self.seed_generator.state
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=None):
        """Maps [batch, ...] to the same shape and dtype."""
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
        # There are no weights. Files of version 0.1.0 contain a counter here.
        del store
