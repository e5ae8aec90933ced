"""Schedules: the learning rate of every step."""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import tensorflow as tf

from train_loop import values
from train_loop.values import Bounds

FRACTION = Bounds(0.0, 1.0)


class Span(NamedTuple):
    """The length of a schedule, in steps.

    `warmup` steps precede its own `steps`. An epoch has `per_epoch` steps, not
    necessarily an integer. `begun` steps of the run, those before unfreezing,
    precede the warm-up.
    """

    warmup: int
    steps: int
    per_epoch: float
    begun: int = 0


def constant(rate, span):
    """Returns a constant learning rate."""
    del span
    return tf.keras.optimizers.schedules.PolynomialDecay(rate, 1, rate)


def step(
    rate,
    span,
    factor: Annotated[float, FRACTION] = 0.1,
    *epoch: Annotated[float, Bounds(0.0)],
):
    """Returns a learning rate that is multiplied by a factor at some epochs.

    Epochs count from the start of the run, as in papers; by default 30, 60 and
    80, those of Goyal et al., 2017, https://arxiv.org/abs/1706.02677. Epochs
    before unfreezing do not lower the learning rate after it.
    """
    starts = [
        start
        for each in sorted(epoch or (30, 60, 80))
        if (start := each * span.per_epoch) > span.begun or not span.begun
    ]
    if not starts:
        return constant(rate, span)
    begun = span.begun + span.warmup
    return tf.keras.optimizers.schedules.PiecewiseConstantDecay(
        # Keras keeps the previous learning rate in the step of the boundary.
        [math.ceil(start) - 1.0 - begun for start in starts],
        [rate * factor**passed for passed in range(len(starts) + 1)],
    )


def cosine(rate, span, end: Annotated[float, FRACTION] = 0.0):
    """Returns a cosine decay to a fraction of the learning rate.

    Source: Loshchilov and Hutter, 2016, https://arxiv.org/abs/1608.03983.
    """
    return tf.keras.optimizers.schedules.CosineDecay(rate, span.steps, end)


def polynomial(
    rate,
    span,
    power: Annotated[float, Bounds(0.01, 100.0)] = 2.0,
    end: Annotated[float, FRACTION] = 0.0,
):
    """Returns a polynomial decay to a fraction of the learning rate."""
    return tf.keras.optimizers.schedules.PolynomialDecay(
        rate, span.steps, end * rate, power
    )


def exponential(
    rate,
    span,
    factor: Annotated[float, FRACTION] = 0.97,
    epochs: Annotated[float, Bounds(0.001)] = 2.4,
):
    """Returns an exponential decay by a factor per number of epochs.

    Source of the defaults: Tan and Le, 2019, https://arxiv.org/abs/1905.11946.
    """
    return tf.keras.optimizers.schedules.ExponentialDecay(
        rate, epochs * span.per_epoch, factor
    )


def one_cycle(
    rate,
    span,
    rise: Annotated[float, FRACTION] = 0.3,
    start: Annotated[float, FRACTION] = 0.04,
):
    """Returns a linear rise to the learning rate, then a cosine decay to 0.

    Args:
      rate: peak learning rate.
      span: see `Span`.
      rise: fraction of the steps of the rise.
      start: first learning rate, as a fraction of the peak.

    Source: Smith and Topin, 2017, https://arxiv.org/abs/1708.07120, with the
    fractions of fastai.
    """
    rises = round(rise * span.steps)
    return tf.keras.optimizers.schedules.CosineDecay(
        start * rate if rises else rate,
        max(span.steps - rises, 1),
        warmup_target=rate if rises else None,
        warmup_steps=rises,
    )


# Name -> (rate, span, and numbers) -> schedule after the warm-up.
SCHEDULES = {
    "cosine": cosine,
    "constant": constant,
    "step": step,
    "polynomial": polynomial,
    "exponential": exponential,
    "one_cycle": one_cycle,
}


class Schedule(values.Call):
    """An entry of `SCHEDULES`, with numbers for its parameters."""

    __slots__ = ()

    flag = "--schedule"
    table = SCHEDULES

    def rates(
        self, learning_rate, warmup_steps, steps, steps_per_epoch, begun=0
    ):
        """Returns the learning rates of a run, a `LearningRateSchedule`.

        A linear warm-up from 0, then the schedule.

        Args:
          learning_rate: peak learning rate.
          warmup_steps: steps of the warm-up.
          steps: steps of the whole run, or of one of two phases.
          steps_per_epoch: not necessarily an integer.
          begun: steps of the run before the phase.
        """
        span = Span(
            warmup_steps, max(steps - warmup_steps, 1), steps_per_epoch, begun
        )
        after = self.entry(learning_rate, span, *self.arguments)
        return WarmedUp(after, warmup_steps)


def schedule_usage(name):
    """Returns how a schedule is written, as NAME:NUMBER (its default)."""
    return values.call_usage(name, SCHEDULES[name])


@tf.keras.utils.register_keras_serializable(package="train_loop")
class WarmedUp(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up from 0 to the start of another schedule, then that one.

    Args:
      after: schedule after the warm-up, from its own step 0.
      warmup_steps: steps of the warm-up.

    Source: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
    """

    def __init__(self, after: Callable, warmup_steps: int):
        self.after = after
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        if not self.warmup_steps:
            return self.after(step)
        rising = self.after(tf.constant(0.0)) * step / self.warmup_steps
        later = self.after(tf.maximum(step - self.warmup_steps, 0.0))
        return tf.where(step < self.warmup_steps, rising, later)

    def get_config(self):
        schedules = tf.keras.optimizers.schedules
        return {
            "after": schedules.serialize(self.after),
            "warmup_steps": self.warmup_steps,
        }

    @classmethod
    def from_config(cls, config):
        schedules = tf.keras.optimizers.schedules
        return cls(
            schedules.deserialize(config["after"]), config["warmup_steps"]
        )


@tf.keras.utils.register_keras_serializable(package="train_loop")
class TwoPhases(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Two schedules, one after the other.

    Args:
      first: a learning-rate schedule.
      second: a learning-rate schedule, from its own step 0.
      boundary: first step of the second one.
    """

    def __init__(self, first, second, boundary):
        self.first = first
        self.second = second
        self.boundary = boundary

    def __call__(self, step):
        step = tf.cast(step, tf.int64)
        return tf.where(
            step < self.boundary,
            self.first(step),
            self.second(step - self.boundary),
        )

    def get_config(self):
        schedules = tf.keras.optimizers.schedules
        return {
            "first": schedules.serialize(self.first),
            "second": schedules.serialize(self.second),
            "boundary": self.boundary,
        }

    @classmethod
    def from_config(cls, config):
        schedules = tf.keras.optimizers.schedules
        first, second = (
            schedules.deserialize(config[name]) for name in ("first", "second")
        )
        return cls(first, second, config["boundary"])
