"""The scale of the loss, which keeps float16 gradients from becoming zero."""

import tensorflow as tf

# float16 ends at 65504, and what is below 6e-8 is zero.
FIRST = 2.0**15
LARGEST = 2.0**24


class LossScale:
    """Multiplies a loss so that its gradients fit into float16.

    The scale doubles after some updates that went well. Where one of the
    gradients is not finite on any of the replicas, it is halved, and the update
    is taken back on all of them: weights, statistics and the optimizer's
    memory stay what they were. The step counts all the same, as its images
    have been read.

    Keras's own looks at the gradients of the first replica only. This one is
    asked after they were summed, and sees the same on all.

    Create it in the scope of a strategy.

    Args:
      growth_steps: after how many updates that went well it doubles.

    Source: Micikevicius et al., 2017, https://arxiv.org/abs/1710.03740.
    """

    def __init__(self, growth_steps=2000):
        self.growth_steps = growth_steps
        self.scale = tf.Variable(FIRST, trainable=False, name="loss_scale")
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

    def settle(self, finite, variables, before):
        """Takes an update back that was made of numbers that are not finite.

        Without a branch, which would make the host wait for the device.

        Args:
          finite: bool scalar, the same on all replicas.
          variables: everything that the step has changed.
          before: their values before it, a tensor for each.
        """
        for variable, value in zip(variables, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        good_steps = tf.where(finite, self.good_steps + 1, 0)
        grows = good_steps >= self.growth_steps
        scale = tf.where(finite, self.scale, self.scale / 2)
        scale = tf.where(grows, scale * 2, scale)
        self.scale.assign(tf.clip_by_value(scale, 1.0, LARGEST))
        self.good_steps.assign(tf.where(grows, 0, good_steps))
