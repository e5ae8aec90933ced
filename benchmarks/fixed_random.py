"""Reproducible random weights and images, and a measure of differences."""

import json
import zlib

import numpy as np

# Largest accepted difference of outputs, as a fraction of their range.
TOLERANCE = 1e-4


def random_weights(shapes):
    """Returns {name: float32 array}, which depends on name and shape alone.

    The weights keep activations near 1, and none of them is 0 or 1, which
    could hide a mistake.

    Args:
      shapes: {name in torch: shape}.
    """
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name, shape):
    # Not `hash`, which differs between processes. The numbers are uniform with
    # zero mean and unit variance, because normal ones take longer.
    random = np.random.default_rng(zlib.crc32(name.encode()))
    value = (random.random(shape, "float32") - np.float32(0.5)) * 12**0.5
    if len(shape) > 1:
        return value / np.sqrt(np.prod(shape[1:]), dtype="float32")
    if name.endswith("running_var"):
        return 1 + value / 4
    if name.endswith("weight"):
        return np.float32(0.7) + value / 10
    return value / 10


def images(side):
    """Returns the test images, float32 [2, side, side, 3]."""
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype("f")


def digest(shapes):
    """Returns a checksum of names and shapes of tensors, in any order."""
    return zlib.crc32(json.dumps(sorted(shapes.items())).encode())


def difference(values, expected):
    """Returns the largest difference as a fraction of the expected range."""
    values, expected = np.asarray(values), np.asarray(expected)
    extent = expected.max() - expected.min()
    if values.shape != expected.shape or not extent > 0:
        return float("inf")
    return float(np.abs(values - expected).max() / extent)
