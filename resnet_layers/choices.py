"""A part of a net that is chosen by name, class, or with arguments."""

import inspect

import tensorflow as tf

from resnet_layers.arguments import refusal


def find_class(option, kind, table):
    """Returns what makes a part of a kind.

    Args:
      option: what the caller calls it.
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
    """Returns the part of a choice.

    Args:
      option: see `find_class`.
      choice: what `find_class` takes as `kind`, or a dict with that as "kind"
        and arguments for the part.
      table: see `find_class`.
      **arguments: for the part as well.

    Raises:
      ValueError: there is no such part, or it does not take an argument.
    """
    if isinstance(choice, dict):
        arguments |= choice
        choice = arguments.pop("kind", None)
    return find_class(option, choice, table)(**arguments)
