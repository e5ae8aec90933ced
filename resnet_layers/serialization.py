"""What the config of a layer holds: its arguments, and what is frozen in it.

Keras makes configs of its own (`keras.Operation.__new__`), but not these: it
records plain values as they were passed, so no dtype policy, class, initializer
or NumPy number; of the arguments in `**kwargs` no defaults; and nothing at all
where a parent has a `get_config`: a subclass of `Conv2D` loses its arguments in
silence.
"""

import inspect

import numpy as np
import tensorflow as tf

PLAIN = (str, int, float, bool, type(None), np.generic)


def own_keywords(layer_class):
    """Returns the names of the keywords in a class's own constructor."""
    # The first parameter is the layer, whatever it is called.
    _, *parameters = inspect.signature(layer_class.__init__).parameters.values()
    kinds = (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [each.name for each in parameters if each.kind in kinds]


class KeepsArguments:
    """Puts into a layer's config the arguments of its constructors.

    Those of all classes in front of this one: an argument of a subclass comes
    back without a `get_config` if an attribute has its name. A class with a
    `get_config` is responsible for its own arguments and for those of its
    parents. It goes in front of the Keras class:

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
    """Returns the name by which Keras finds a class; other values as is."""
    if inspect.isclass(value):
        return tf.keras.utils.get_registered_name(value)
    return value


class KeepsFrozen(KeepsArguments):
    """Puts into a layer's config which of the layers below it are frozen.

    For layers and models that create others, in `__init__` or in `build`. A
    class whose `build` creates layers calls `freeze_what_is_built` at its end.
    """

    # {path: trainable} for layers that only `build` creates. Never changed in
    # place, so that all instances may begin with this one.
    _trainable_later = {}

    def get_config(self):
        trainable_layers = {
            path: layer.trainable
            for path, _, layer, parent in _layers_below(self)
            if layer.trainable != parent.trainable
        }
        return {
            **super().get_config(),
            "trainable_layers": {**trainable_layers, **self._trainable_later},
        }

    @classmethod
    def from_config(cls, config, *args, **kwargs):
        """Makes the layer of a config, frozen where that one was."""
        config = dict(config)
        trainable_layers = config.pop("trainable_layers", {})
        layer = super().from_config(config, *args, **kwargs)
        layer._set_trainable(trainable_layers)
        return layer

    def freeze_what_is_built(self):
        """Freezes new layers as the config says."""
        self._set_trainable(self._trainable_later)

    def _set_trainable(self, trainable_layers):
        layers = {}
        for path, names, layer, _ in _layers_below(self):
            # Files of version 0.1.0 have names.
            layers[path] = layers[names] = layer
        # Parents come first: they set their children's as well.
        for path, trainable in trainable_layers.items():
            if path in layers:
                layers[path].trainable = trainable
        self._trainable_later = {
            path: trainable
            for path, trainable in trainable_layers.items()
            if path not in layers
        }


def _layers_below(parent, path="", names=""):
    """Yields (path, names, layer, its parent) of all layers, parents first.

    A path holds positions, "0/2": Keras makes up names anew in every process.
    """
    layers = parent._flatten_layers(include_self=False, recursive=False)
    for position, layer in enumerate(layers):
        at, name = f"{path}{position}", f"{names}{layer.name}"
        yield at, name, layer, parent
        yield from _layers_below(layer, f"{at}/", f"{name}/")
