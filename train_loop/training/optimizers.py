"""Optimizers: how a gradient changes the weights.

Gradients arrive summed over the replicas. Each replica updates its own copy of
the weights, so that norms of weights and gradients are the same on all.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class PerVariable:
    """Weight decay of kernels only, and a learning-rate factor per variable.

    A mixin in front of a Keras optimizer. Keras's own `weight_decay` is
    decoupled from the gradient and applies to all variables, and Keras has no
    factors.

    Args:
      l2: strength of the penalty l2 / 2 * sum(w ** 2) on kernels, whose
        gradient the optimizer processes like the loss's. Biases and parameters
        of norms, variables of rank 1, have no penalty.
      decay: decoupled weight decay: each step subtracts
        learning_rate * decay * w from a kernel w.
      factors: {path of a variable: factor of its learning rate}; 1 for all
        others.
      **kwargs: arguments of the optimizer.
    """

    def __init__(self, *args, l2=0.0, decay=0.0, factors=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.l2 = l2
        self.decay = decay
        self.factors = factors or {}

    def build(self, variables, starts=None):
        """Creates the slots of an optimizer.

        Args:
          variables: all variables that are ever trained.
          starts: {path of a variable: number of steps before it is trained};
            0 for all others.
        """
        if self.built:
            return
        super().build(variables)
        paths = [getattr(v, "path", v.name) for v in variables]
        self._factors = [self.factors.get(path, 1.0) for path in paths]
        self._starts = [(starts or {}).get(path, 0) for path in paths]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate = self.scaled_rate(index, tf.cast(learning_rate, variable.dtype))
        gradient = tf.cast(gradient, variable.dtype)
        if is_kernel(variable):
            gradient = self.add_penalty(gradient, variable)
            if self.decay:
                self.assign_sub(variable, rate * self.decay * variable)
        rate = self.corrected_rate(rate, self._starts[index])
        super().update_step(gradient, variable, rate)

    def scaled_rate(self, index, rate):
        """Returns the learning rate of a variable, times its factor."""
        factor = self._factors[index]
        # Otherwise the graph would have a product by 1 per variable.
        return rate if factor == 1.0 else rate * factor

    def corrected_rate(self, rate, start):
        """Returns the learning rate of a variable trained from a step on."""
        del start
        return rate

    def add_penalty(self, gradient, kernel):
        """Returns the gradient of a kernel, penalty included."""
        return gradient + self.l2 * kernel if self.l2 else gradient

    def get_config(self):
        return {
            **super().get_config(),
            "l2": self.l2,
            "decay": self.decay,
            "factors": self.factors,
        }


def is_kernel(variable):
    """Tells kernels from biases and parameters of norms."""
    return len(variable.shape) > 1


class Momentum(tf.keras.optimizers.Optimizer):
    """Momentum without the learning rate in it; see `MomentumSGD`."""

    def __init__(
        self, learning_rate=0.1, momentum=0.9, nesterov=True, **kwargs
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        # One pass over the memory of all three.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.value.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
        }


@tf.keras.utils.register_keras_serializable(package="train_loop")
class MomentumSGD(PerVariable, Momentum):
    """SGD with momentum and the L2 penalty of the papers.

    Keras's SGD differs in two ways that matter for published recipes. Its
    weight decay is decoupled from the momentum, which makes it about ten times
    weaker than the papers' penalty at momentum 0.9. Its velocity includes the
    learning rate, so that a change of the learning rate takes effect late.
    Here, as in PyTorch:

        g = gradient + l2 * w           (kernels only)
        v = momentum * v + g
        w = w - learning_rate * (g + momentum * v)      Nesterov
        w = w - learning_rate * v                       otherwise

    Args:
      learning_rate: a number or a `LearningRateSchedule`.
      momentum: momentum coefficient, from 0 to 1.
      nesterov: whether to use Nesterov momentum.
      **kwargs: `l2` and `factors`, see `PerVariable`, and
        `keras.optimizers.Optimizer`'s other arguments.

    Source: Sutskever et al., 2013, https://proceedings.mlr.press/v28/
    sutskever13.html, in the form of PyTorch's `torch.optim.SGD`.
    """


@tf.keras.utils.register_keras_serializable(package="train_loop")
class LARS(PerVariable, Momentum):
    """SGD with layer-wise adaptive learning rates.

        g = trust * |w| / (|gradient| + l2 * |w|) * (gradient + l2 * w)

    replaces a kernel's gradient in `MomentumSGD`. Biases and norms are neither
    adapted nor decayed. If a norm is 0, the gradient is used unchanged. The
    paper's velocity includes the learning rate; as in timm, this one does not.

    Args:
      learning_rate: a number or a `LearningRateSchedule`.
      trust: norm of a step at learning rate 1, as a fraction of the kernel's.
      **kwargs: `momentum` and `nesterov`; `l2` and `factors`, see
        `PerVariable`; `keras.optimizers.Optimizer`'s other arguments.

    Source: You et al., 2017, https://arxiv.org/abs/1708.03888.
    """

    def __init__(self, learning_rate=1.0, trust=0.001, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.trust = trust

    def add_penalty(self, gradient, kernel):
        kernel_norm, gradient_norm = tf.norm(kernel), tf.norm(gradient)
        ratio = self.trust / (gradient_norm + self.l2 * kernel_norm)
        ratio *= kernel_norm
        return ratio_or_one(ratio, kernel_norm, gradient_norm) * (
            super().add_penalty(gradient, kernel)
        )

    def get_config(self):
        return {**super().get_config(), "trust": self.trust}


@tf.keras.utils.register_keras_serializable(package="train_loop")
class LAMB(PerVariable, tf.keras.optimizers.Adam):
    """Adam with layer-wise adaptive learning rates.

        u = m / (sqrt(v) + epsilon) + decay * w
        w = w - learning_rate * |w| / |u| * u

    with Adam's bias-corrected moments m and v. Biases and norms are neither
    adapted nor decayed: they take Adam's step. Keras's `Lamb` decays before it
    computes the norms, and adapts all variables.

    Args:
      **kwargs: arguments of `keras.optimizers.Adam`; `decay` and `factors`, see
        `PerVariable`.

    Source: You et al., 2019, https://arxiv.org/abs/1904.00962.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate = self.scaled_rate(index, tf.cast(learning_rate, variable.dtype))
        gradient = tf.cast(gradient, variable.dtype)
        step = self.iterations + 1 - self._starts[index]
        step = tf.cast(step, variable.dtype)
        corrected = []
        for moment, beta, value in (
            (self._momentums[index], self.beta_1, gradient),
            (self._velocities[index], self.beta_2, tf.square(gradient)),
        ):
            self.assign_add(moment, (1 - beta) * (value - moment))
            corrected.append(moment / (1 - beta**step))
        update = corrected[0] / (tf.sqrt(corrected[1]) + self.epsilon)
        if is_kernel(variable):
            update += self.decay * variable
            kernel_norm, update_norm = tf.norm(variable), tf.norm(update)
            ratio = kernel_norm / update_norm
            update *= ratio_or_one(ratio, kernel_norm, update_norm)
        self.assign_sub(variable, rate * update)


def ratio_or_one(ratio, *norms):
    """Returns a ratio of norms; 1 where one of them is 0."""
    return tf.where(tf.reduce_all(tf.stack(norms) > 0), ratio, 1.0)


@tf.keras.utils.register_keras_serializable(package="train_loop")
class Adam(PerVariable, tf.keras.optimizers.Adam):
    """Keras's Adam with the options of `PerVariable`.

    Source: Kingma and Ba, 2014, https://arxiv.org/abs/1412.6980; `decay`:
    Loshchilov and Hutter, 2017, https://arxiv.org/abs/1711.05101.
    """

    def corrected_rate(self, rate, start):
        if not start:
            return rate
        # Keras corrects all moments as if they had started with the run, which
        # makes the first steps several times too large.
        step = tf.cast(self.iterations + 1, rate.dtype)
        right = self._correction(step - start)
        return rate * right / self._correction(step)

    def _correction(self, step):
        return tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)


@tf.keras.utils.register_keras_serializable(package="train_loop")
class RMSprop(PerVariable, tf.keras.optimizers.RMSprop):
    """Keras's RMSprop with the options of `PerVariable`.

    Source: Tieleman and Hinton, 2012, http://www.cs.toronto.edu/~tijmen/csc321/
    slides/lecture_slides_lec6.pdf.
    """

    def build(self, variables, starts=None):
        if self.built:
            return
        super().build(variables, starts)
        if not self._momentums:
            # A run may change its momentum and resume from its checkpoints.
            self._momentums = self.add_optimizer_variables(
                variables, "momentum"
            )


class OptimizerFactory(NamedTuple):
    """Creates an optimizer from common arguments and its own options.

    `decay_argument` is the argument of `make` for weight decay; `options` are
    {option: default}.
    """

    make: Callable
    decay_argument: str
    options: dict

    def __call__(self, learning_rate, weight_decay, factors=None, **options):
        return self.make(
            learning_rate=learning_rate,
            factors=factors,
            **{self.decay_argument: weight_decay},
            **{**self.options, **options},
        )


MOMENTS = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
# Name -> (learning_rate, weight_decay, factors, and options) -> optimizer.
OPTIMIZERS = {
    "sgd": OptimizerFactory(
        MomentumSGD, "l2", {"momentum": 0.9, "nesterov": True}
    ),
    # L2 penalty, and decoupled weight decay.
    "adam": OptimizerFactory(Adam, "l2", MOMENTS),
    "adamw": OptimizerFactory(Adam, "decay", MOMENTS),
    "rmsprop": OptimizerFactory(
        RMSprop, "l2", {"momentum": 0.0, "epsilon": 1e-7}
    ),
    # Both include the decay in the trust ratio.
    "lars": OptimizerFactory(LARS, "l2", {"momentum": 0.9, "nesterov": False}),
    "lamb": OptimizerFactory(LAMB, "decay", {**MOMENTS, "epsilon": 1e-6}),
}


def options_of(name):
    """Returns {option: default} of an optimizer."""
    return OPTIMIZERS[name].options


# The options of any optimizer, in the order of the table.
OPTIONS = tuple(
    dict.fromkeys(option for name in OPTIMIZERS for option in options_of(name))
)


def optimizer_usage(name):
    """Returns a name with its options, as NAME (option default)."""
    options = [f"{n} {d!s:.5}" for n, d in options_of(name).items()]
    return f"{name} ({', '.join(options)})"
