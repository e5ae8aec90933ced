"""Optimizers: how a gradient changes the weights."""

import tensorflow as tf


@tf.keras.utils.register_keras_serializable(package="train_loop")
class MomentumSGD(tf.keras.optimizers.Optimizer):
    """SGD with momentum and the L2 penalty of the papers.

    Keras's own SGD differs in two ways that matter for published recipes. Its
    weight decay stands beside the momentum, where the papers' penalty goes
    through it, which makes it about ten times weaker at momentum 0.9. And its
    velocity holds the learning rate, so that a change of the rate arrives late.
    Here, as in PyTorch:

        g = gradient + l2 * w           (kernels only)
        v = momentum * v + g
        w = w - learning_rate * (g + momentum * v)      Nesterov
        w = w - learning_rate * v                       otherwise

    Args:
      learning_rate: a number or a `LearningRateSchedule`.
      momentum: from 0 to 1.
      nesterov: take the step with the velocity of the next one.
      l2: strength of the penalty l2 / 2 * sum(w ** 2) on kernels. Biases and
        batch norm's parameters, the variables of rank 1, are left alone.
      factors: {path of a variable: factor on its learning rate}; 1 for those
        that are not named.
      **kwargs: `keras.optimizers.Optimizer`'s other arguments.

    Source: Sutskever et al., 2013, https://proceedings.mlr.press/v28/
    sutskever13.html, in the form of PyTorch's `torch.optim.SGD`.
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        nesterov=True,
        l2=0.0,
        factors=None,
        name="momentum_sgd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov
        self.l2 = l2
        self.factors = factors or {}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")
        paths = [getattr(v, "path", v.name) for v in variables]
        self._factors = [self.factors.get(path, 1.0) for path in paths]

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        if self.l2 and len(variable.shape) > 1:
            gradient += self.l2 * variable
        index = self._get_variable_index(variable)
        velocity = self.velocities[index]
        new_velocity = self.momentum * velocity + gradient
        self.assign(velocity, new_velocity)
        if self.nesterov:
            new_velocity = gradient + self.momentum * new_velocity
        rate = learning_rate * self._factors[index]
        self.assign_sub(variable, rate * new_velocity)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "l2": self.l2,
            "factors": self.factors,
        }


def sgd(learning_rate, weight_decay, factors=None):
    """Returns SGD with Nesterov momentum 0.9 and L2 on the kernels."""
    return MomentumSGD(learning_rate, l2=weight_decay, factors=factors)


# Name -> (learning_rate, weight_decay, factors) -> optimizer.
OPTIMIZERS = {"sgd": sgd}
