"""The part of a layer's config that holds its arguments."""

import inspect

import numpy as np
import tensorflow as tf

from resnet_layers.arguments import own_keywords

PLAIN = (str, int, float, bool, type(None), np.generic)


class KeepsArguments:
    """Puts into a layer's config what its constructors name.

    Of all classes in front of this one, so that an argument of a subclass
    comes back without a `get_config`: it only needs an attribute of its name.
    A class that has a `get_config` answers for its own arguments, and for
    those of its parents. It goes in front of the Keras class:

        class Block(KeepsArguments, tf.keras.Model):
    """

    def arguments_kept_elsewhere(self):
        """Returns {argument: value} where no attribute of that name has it."""
        return {}

    def get_config(self):
        config = {
            **super().get_config(),
            **tf.nest.map_structure(
                _name_of_class, self.arguments_kept_elsewhere()
            ),
        }
        parents = type(self).__mro__
        described = False
        for parent in parents[: parents.index(KeepsArguments)]:
            described = described or "get_config" in vars(parent)
            for name in own_keywords(parent):
                if name in config:
                    continue
                if _is_plain(self, name):
                    config[name] = tf.nest.map_structure(
                        _name_of_class, getattr(self, name)
                    )
                elif not described:
                    raise ValueError(
                        f"`{name}` of {parent.__name__} cannot be saved: keep "
                        f"its value as `self.{name}`, of Python's own types, "
                        "or write a `get_config`"
                    )
        return config


def _is_plain(layer, name):
    # The layer itself, where it has no such attribute, is not.
    values = tf.nest.flatten(getattr(layer, name, layer))
    return all(isinstance(_name_of_class(v), PLAIN) for v in values)


def _name_of_class(value):
    """Returns what Keras finds a class by; other values as they are."""
    if inspect.isclass(value):
        return tf.keras.utils.get_registered_name(value)
    return value
