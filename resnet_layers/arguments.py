"""The values that constructors accept, and the errors for all others."""

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


def find_class(option, kind, table):
    """Returns the class, or the function, that makes a part of a kind.

    Args:
      option: name of the argument.
      kind: a name in `table`, or the class of a layer.
      table: {name: what makes such a part}.

    Raises:
      ValueError: it is something else.
    """
    if inspect.isclass(kind) and issubclass(kind, tf.keras.layers.Layer):
        return kind
    if isinstance(kind, str):
        # Configs have classes by the names that they are registered with, and
        # Keras registers none of its own.
        found = (
            table.get(kind)
            or tf.keras.utils.get_registered_object(kind)
            or getattr(tf.keras.layers, kind, None)
        )
        if found is not None:
            return found
    raise refusal(
        option, kind, f"one of {tuple(table)}, or the class of a layer"
    )


def make(option, choice, table, **arguments):
    """Returns a part that is chosen by name, class, or with arguments.

    Args:
      option: see `find_class`.
      choice: a `kind` of `find_class`, or a dict with that as "kind" and
        arguments for the part.
      table: see `find_class`.
      **arguments: for the part as well.

    Raises:
      ValueError: there is no such part, or it has no such argument.
    """
    if isinstance(choice, dict):
        arguments |= choice
        choice = arguments.pop("kind", None)
    return find_class(option, choice, table)(**arguments)


def refusal(name, value, accepted):
    """Returns an error that says what was given, and what would be taken."""
    return ValueError(
        f"`{name}` must be {accepted}. Received: {name}={value!r}"
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
