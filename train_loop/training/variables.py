"""Variables of a model: what kind they are, and what a run calls them."""

import tensorflow as tf


def is_float(variable):
    """Tells a Keras variable of real numbers from a counter."""
    return tf.as_dtype(variable.dtype).is_floating


def path_below(variable):
    """Returns the path of a variable below its model, whatever its name."""
    return variable.path.partition("/")[2]
