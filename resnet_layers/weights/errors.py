"""Errors of files of weights, each made one line."""

import contextlib

from resnet_layers.weights.names import WeightsError


@contextlib.contextmanager
def errors_as_one_line(path):
    """Raises a WeightsError in place of all errors in reading a file."""
    try:
        yield
    except WeightsError:
        raise
    # Keras, h5py and TensorFlow raise whatever they trip over.
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights: {one_line(error)}"
        ) from error


def one_line(error):
    """Returns what an error says, without line breaks and cut short."""
    return " ".join(str(error).split())[:300]
