"""Random numbers and rectangles that follow from a seed."""

import numpy as np
import tensorflow as tf


def draw(seed, counts):
    """Draws a number from 0 to count - 1 for each of `counts`."""
    uniform = tf.random.stateless_uniform([len(counts)], seed)
    return tf.unstack(tf.cast(uniform * np.float32(counts), tf.int32))


def box(shape, low, high):
    """Returns float32 of `shape`: 1 from (y, x) `low` to before `high`."""

    def within(axis):
        places = tf.range(shape[axis])
        inside = (low[axis] <= places) & (places < high[axis])
        return tf.cast(inside, tf.float32)

    rows = within(0)[:, tf.newaxis] * tf.repeat(within(1), shape[2])
    return tf.reshape(rows, shape)
