"""A tensor in a file, whatever the file is."""

from collections.abc import Callable
from typing import NamedTuple


class Stored(NamedTuple):
    """A tensor in a file: its shape, the name of its type, and a function.

    `read()` returns the numbers, read from the file each time.
    """

    shape: tuple
    dtype: str
    read: Callable
