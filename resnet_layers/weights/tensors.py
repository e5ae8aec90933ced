"""Basics of all weight readers: stored tensors, one-line errors."""

import contextlib
import json
from collections.abc import Callable
from typing import NamedTuple


class WeightsError(ValueError):
    """Error for weights that cannot be found, read or matched to a model.

    Its message is one line: the path, what is wrong, and what to do.
    """


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, dtype name, and a function to read it.

    `read()` returns a NumPy array, read from the file each time.
    """

    shape: tuple
    dtype: str
    read: Callable


@contextlib.contextmanager
def errors_as_one_line(path):
    """Converts all errors of reading a file into a WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    # Keras, h5py and TensorFlow raise all kinds of exceptions.
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be read as weights ({one_line(error)}). Pass an "
            "intact file of weights."
        ) from error


def one_line(error):
    """Returns the message of an error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def json_beside(path, name):
    """Yields the content of a JSON file beside weights, or {} without one.

    Args:
      path: `pathlib.Path` of the weights.
      name: name of the JSON file.

    Raises:
      WeightsError: the file is damaged, or the `with` block fails on its
        content.
    """
    config = path.with_name(name)
    try:
        text = config.read_text(encoding="utf-8") if config.is_file() else "{}"
        yield json.loads(text)
    except WeightsError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(
            f"{config}: damaged ({one_line(error)}). Fix it, or move "
            f"{path.name} to a folder without it."
        ) from error
