"""Schedules: the learning rate of every step."""

import tensorflow as tf


def cosine(learning_rate, warmup_steps, steps):
    """Returns a linear warm-up from 0, then half a cosine down to 0.

    Source: Loshchilov and Hutter, 2016, https://arxiv.org/abs/1608.03983;
    warm-up: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
    """
    return tf.keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(steps - warmup_steps, 1),
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def constant(learning_rate, warmup_steps, steps):
    """Returns a linear warm-up from 0, then the same rate to the end."""
    del steps
    return tf.keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(warmup_steps, 1),
        end_learning_rate=learning_rate,
    )


# Name -> (learning_rate, warmup_steps, steps) -> learning-rate schedule.
SCHEDULES = {"cosine": cosine, "constant": constant}
