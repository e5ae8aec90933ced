"""The values that a constructor takes, and the refusal of all others."""

import difflib
import functools
import inspect
import math
import numbers
import operator

import numpy as np
import tensorflow as tf

BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def whole_number(name, value, optional=False, **bounds):
    """Returns an integer of any library as Python's own.

    Args:
      name: what the caller calls the value.
      value: what the caller gave.
      optional: whether None is taken as well.
      **bounds: limits, by name of `BOUNDS`; `at_least=1` where none is given.

    Raises:
      ValueError: `value` is no integer, or true or false, or out of bounds.
    """
    if optional and value is None:
        return None
    bounds = bounds or {"at_least": 1}
    index = _index(value)
    if index is None or not _within(index, bounds):
        accepted = f"a whole number {_in_words(bounds)}"
        if optional:
            accepted += ", or None"
        raise refusal(name, value, accepted)
    return index


def whole_numbers(name, values):
    """Returns a list, tuple or array of positive integers as a tuple.

    Raises:
      ValueError: it is something else, or empty.
    """
    accepted = "a list or tuple of whole numbers, all at least 1"
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) == 0:
        raise refusal(name, values, accepted)
    try:
        return tuple(whole_number(name, value) for value in values)
    except ValueError:
        raise refusal(name, values, accepted) from None


def pair(name, value):
    """Returns a positive integer, or two, for height and width, as two.

    Raises:
      ValueError: it is something else.
    """
    try:
        if not isinstance(value, (list, tuple)):
            return (whole_number(name, value),) * 2
        rows, columns = whole_numbers(name, value)
    except ValueError:
        accepted = "a whole number at least 1, or two of them"
        raise refusal(name, value, accepted) from None
    return rows, columns


def number(name, value, **bounds):
    """Returns a finite number of any library as a Python float.

    Args:
      name: what the caller calls the value.
      value: what the caller gave.
      **bounds: limits, by name of `BOUNDS`.

    Raises:
      ValueError: `value` is no real number, or out of bounds.
    """
    if (
        not isinstance(value, numbers.Real)
        or _is_bool(value)
        or not math.isfinite(value)
        or not _within(value, bounds)
    ):
        raise refusal(name, value, f"a finite number {_in_words(bounds)}")
    return float(value)


def true_or_false(name, value):
    """Returns a bool of any library as Python's own.

    Raises:
      ValueError: `value` is something else, even if it has a truth value.
    """
    if not _is_bool(value):
        raise refusal(name, value, "True or False")
    return bool(value)


def one_of(name, value, accepted):
    """Returns `value`, one of several strings, integers or None.

    Raises:
      ValueError: it is none of `accepted`.
    """
    named = value is None or isinstance(value, str)
    choice = value if named else _index(value)
    if choice not in accepted or (choice is None and not named):
        raise refusal(name, value, f"one of {tuple(accepted)}")
    return choice


def own_keywords(layer_class):
    """Returns the names of the keywords that a class itself writes out."""
    parameters = inspect.signature(layer_class.__init__).parameters.values()
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
        or parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name != "self"
    ]


@functools.cache
def keywords(layer_class):
    """Returns the names of all keywords that a layer class takes."""
    names = []
    for parent in layer_class.__mro__:
        names += own_keywords(parent)
        if parent is tf.keras.layers.Layer:
            break
    # What a layer of a `Sequential` may say of its input is in no signature.
    return tuple(dict.fromkeys([*names, "input_shape"]))


def check_keywords(layer_class, given, accepted):
    """Refuses keywords that a constructor does not have.

    Args:
      layer_class: whose constructor it is.
      given: {name: value} of what the caller gave.
      accepted: names that it takes.

    Raises:
      ValueError: a name in `given` is none of `accepted`.
    """
    for name, value in given.items():
        if name not in accepted:
            nearest = difflib.get_close_matches(name, accepted) or ["none"]
            raise ValueError(
                f"`{name}` is not taken by {layer_class.__name__}; nearest: "
                f"{', '.join(nearest)}. It takes {', '.join(accepted)}. "
                f"Received: {name}={value!r}"
            )


def _is_bool(value):
    return isinstance(value, (bool, np.bool_))


def _index(value):
    """Returns an integer of any library as Python's own, else None."""
    try:
        return None if _is_bool(value) else operator.index(value)
    except TypeError:
        return None


def _within(value, bounds):
    return all(BOUNDS[bound](value, limit) for bound, limit in bounds.items())


def _in_words(bounds):
    return " and ".join(
        f"{bound.replace('_', ' ')} {limit}" for bound, limit in bounds.items()
    )


def refusal(name, value, accepted):
    """Returns an error that says what was given, and what would be taken."""
    return ValueError(
        f"`{name}` must be {accepted}. Received: {name}={value!r}"
    )
