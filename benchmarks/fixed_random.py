"""Random weights and images that are the same for ever, and how to compare."""

import json
import zlib

import numpy as np

# Of outputs, as a part of their spread.
TOLERANCE = 1e-4


def random_weights(shapes):
    """Returns {name: float32 array}, the same for a name and shape for ever.

    They keep what goes through a net near one, and leave nothing at 0 or 1
    that would hide a mistake.

    Args:
      shapes: {torch's name: shape}.
    """
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name, shape):
    # Not `hash`, which differs from process to process. Uniform, of zero mean
    # and unit variance: normal numbers take longer.
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
    """Returns the images that every net sees: float32 [2, side, side, 3]."""
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype("f")


def digest(shapes):
    """Returns a number for names and shapes of tensors, in any order."""
    return zlib.crc32(json.dumps(sorted(shapes.items())).encode())


def difference(values, expected):
    """Returns the largest difference, as a part of the expected spread."""
    values, expected = np.asarray(values), np.asarray(expected)
    spread = expected.max() - expected.min()
    if values.shape != expected.shape or not spread > 0:
        return float("inf")
    return float(np.abs(values - expected).max() / spread)
