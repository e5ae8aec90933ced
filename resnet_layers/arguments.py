"""Checks of constructor arguments, and the errors for invalid ones."""

import difflib
import inspect
import math
import numbers
import operator

import numpy as np
import tensorflow as tf

IntOrPair = int | tuple[int, int]

BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def integer(name, value, optional=False, **bounds):
    """Returns an integer of any library as a Python int.

    Args:
      name: name of the argument.
      value: value of the argument.
      optional: whether None is accepted too.
      **bounds: limits, keyed as in `BOUNDS`; `at_least=1` by default.

    Raises:
      ValueError: `value` is not an integer, is a bool, or is out of bounds.
    """
    if optional and value is None:
        return None
    bounds = bounds or {"at_least": 1}
    index = _index(value)
    if index is None or not _within(index, bounds):
        accepted = f"an integer, {_in_words(bounds)}"
        if optional:
            accepted += ", or None"
        raise argument_error(name, value, accepted)
    return index


def integers(name, values):
    """Returns a list, tuple or array of positive integers as a tuple.

    Raises:
      ValueError: `values` is anything else, or empty.
    """
    accepted = "a list or tuple of integers, all at least 1"
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) == 0:
        raise argument_error(name, values, accepted)
    try:
        return tuple(integer(name, value) for value in values)
    except ValueError:
        raise argument_error(name, values, accepted) from None


def integer_pair(name, value):
    """Returns one or two positive integers as (height, width).

    Raises:
      ValueError: `value` is anything else.
    """
    try:
        if not isinstance(value, (list, tuple)):
            return (integer(name, value),) * 2
        height, width = integers(name, value)
    except ValueError:
        accepted = "an integer, at least 1, or two of them"
        raise argument_error(name, value, accepted) from None
    return height, width


def number(name, value, **bounds):
    """Returns a finite number of any library as a Python float.

    Args:
      name: name of the argument.
      value: value of the argument.
      **bounds: limits, keyed as in `BOUNDS`.

    Raises:
      ValueError: `value` is not a real number, or is out of bounds.
    """
    if (
        not isinstance(value, numbers.Real)
        or _is_bool(value)
        or not math.isfinite(value)
        or not _within(value, bounds)
    ):
        accepted = f"a finite number, {_in_words(bounds)}"
        raise argument_error(name, value, accepted)
    return float(value)


def boolean(name, value):
    """Returns a bool of any library as a Python bool.

    Raises:
      ValueError: `value` is anything else, even if it has a truth value.
    """
    if not _is_bool(value):
        raise argument_error(name, value, "True or False")
    return bool(value)


def one_of(name, value, choices):
    """Returns `value`, one of several strings, integers or None.

    Raises:
      ValueError: `value` is not in `choices`.
    """
    named = value is None or isinstance(value, str)
    choice = value if named else _index(value)
    if choice not in choices or (choice is None and not named):
        raise choice_error(name, value, choices)
    return choice


def find_class(argument, kind, table):
    """Returns the class or function that creates a layer.

    Args:
      argument: name of the argument.
      kind: a key of `table`, or a Keras layer class.
      table: {name: class or function}.

    Raises:
      ValueError: `kind` is anything else.
    """
    if inspect.isclass(kind) and issubclass(kind, tf.keras.layers.Layer):
        return kind
    if isinstance(kind, str):
        # A config stores a class by its registered name. Keras registers none
        # of its own classes.
        found = (
            table.get(kind)
            or tf.keras.utils.get_registered_object(kind)
            or getattr(tf.keras.layers, kind, None)
        )
        if found is not None:
            return found
    raise choice_error(argument, kind, table, "a layer class")


def create_layer(argument, choice, table, **options):
    """Creates a layer from a name, a class, or a dict with arguments.

    Args:
      argument: name of the argument.
      choice: a `kind` of `find_class`, or a dict with the kind as "kind" and
        arguments of the layer.
      table: {name: class or function}.
      **options: more arguments of the layer; those in `choice` win.

    Raises:
      ValueError: the kind, or an argument of the layer, is unknown.
    """
    if isinstance(choice, dict):
        options |= choice
        choice = options.pop("kind", None)
    return find_class(argument, choice, table)(**options)


def argument_error(name, value, accepted):
    """Returns a ValueError that states the value and what is accepted."""
    return ValueError(f"{name}={value!r}: must be {accepted}.")


def choice_error(name, value, choices, alternative=None):
    """Returns a ValueError for a value that is not one of some choices.

    Args:
      name: name of the argument.
      value: value of the argument.
      choices: accepted values; the nearest one is suggested.
      alternative: what else is accepted, in words.
    """
    accepted = ", ".join(map(repr, choices))
    if alternative:
        accepted += f", or {alternative}"
    strings = [choice for choice in choices if isinstance(choice, str)]
    near = difflib.get_close_matches(str(value), strings, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{name}={value!r}: must be one of {accepted}.{hint}")


def _is_bool(value):
    return isinstance(value, (bool, np.bool_))


def _index(value):
    """Returns an integer of any library as a Python int, else None."""
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
