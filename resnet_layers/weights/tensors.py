"""What all readers of weights share: tensors in files, and errors in a line."""

import contextlib
import json
from collections.abc import Callable
from typing import NamedTuple


class WeightsError(ValueError):
    """A file of weights that cannot be used; its text is one line."""


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, the name of its type, and a function.

    `read()` returns the numbers, read from the file each time.
    """

    shape: tuple
    dtype: str
    read: Callable


@contextlib.contextmanager
def errors_as_one_line(path):
    """Raises a WeightsError in place of all errors in reading a file."""
    try:
        yield
    except WeightsError:
        raise
    # Keras, h5py and TensorFlow raise exceptions of any kind.
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights: {one_line(error)}"
        ) from error


def one_line(error):
    """Returns the text of an error, without line breaks and cut short."""
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def json_beside(path, name):
    """Yields the content of a JSON file beside weights, {} without one.

    Args:
      path: a `pathlib.Path` of the weights.
      name: of the JSON file.

    Raises:
      WeightsError: it is damaged, or has another content than the `with`
        statement expects.
    """
    config = path.with_name(name)
    try:
        text = config.read_text(encoding="utf-8") if config.is_file() else "{}"
        yield json.loads(text)
    except WeightsError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(
            f"{config} is damaged: {one_line(error)}; mend it, or move "
            f"{path.name} to a folder without it"
        ) from error
