"""Layer configs: constructor arguments, and which sublayers are frozen.

Keras builds configs automatically (`keras.Operation.__new__`), but not these
ones. It records plain values only: no dtype policies, classes, initializers or
NumPy numbers. It omits the defaults of arguments in `**kwargs`. Where a parent
class has a `get_config`, it records nothing: a subclass of `Conv2D` loses its
arguments silently.
"""

import inspect

import numpy as np
import tensorflow as tf

PLAIN = (str, int, float, bool, type(None), np.generic)


def constructor_arguments(layer_class):
    """Returns the argument names of a class's own constructor."""
    # The first parameter is the layer, whatever its name.
    _, *parameters = inspect.signature(layer_class.__init__).parameters.values()
    kinds = (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [each.name for each in parameters if each.kind in kinds]


class ConfigMixin:
    """Adds the constructor arguments of all subclasses to the config.

    A subclass needs no `get_config` if it stores each argument in an attribute
    of the same name. A class with a `get_config` is responsible for its own
    arguments and those of its parents. List this class before the Keras class:

        class Block(ConfigMixin, tf.keras.Model):
    """

    def config_overrides(self):
        """Returns {argument: value} where the attribute differs."""
        return {}

    def get_config(self):
        config = {
            **super().get_config(),
            **tf.nest.map_structure(_name_of_class, self.config_overrides()),
        }
        parents = type(self).__mro__
        described = False
        for parent in parents[: parents.index(ConfigMixin)]:
            described = described or "get_config" in vars(parent)
            for name in constructor_arguments(parent):
                if name in config:
                    continue
                if _is_plain(self, name):
                    config[name] = tf.nest.map_structure(
                        _name_of_class, getattr(self, name)
                    )
                elif not described:
                    raise ValueError(
                        f"{parent.__name__}.{name}: cannot be saved. Store "
                        f"the argument in `self.{name}` as a built-in type, "
                        "or implement `get_config`."
                    )
        return config


def _is_plain(layer, name):
    # The default, the layer itself, is not plain.
    values = tf.nest.flatten(getattr(layer, name, layer))
    return all(isinstance(_name_of_class(v), PLAIN) for v in values)


def _name_of_class(value):
    """Returns the registered name of a class; other values unchanged."""
    if inspect.isclass(value):
        return tf.keras.utils.get_registered_name(value)
    return value


class FrozenConfigMixin(ConfigMixin):
    """Adds the trainable flags of sublayers to the config.

    For layers and models that create sublayers, in `__init__` or in `build`.
    If `build` creates sublayers, it must end with `restore_frozen_layers`.
    """

    # {path: trainable} of sublayers that `build` will create. Shared by all
    # instances, so it is replaced, never changed in place.
    _trainable_later: dict[str, bool] = {}

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
        """Creates a layer from a config, with the same frozen sublayers."""
        config = dict(config)
        trainable_layers = config.pop("trainable_layers", {})
        layer = super().from_config(config, *args, **kwargs)
        layer._set_trainable(trainable_layers)
        return layer

    def restore_frozen_layers(self):
        """Applies the trainable flags of the config to new sublayers."""
        self._set_trainable(self._trainable_later)

    def _set_trainable(self, trainable_layers):
        layers = {}
        for path, names, layer, _ in _layers_below(self):
            # Files of version 0.1.0 use names instead of positions.
            layers[path] = layers[names] = layer
        # Parents come first: setting a parent also sets its children.
        for path, trainable in trainable_layers.items():
            if path in layers:
                layers[path].trainable = trainable
        self._trainable_later = {
            path: trainable
            for path, trainable in trainable_layers.items()
            if path not in layers
        }


def _layers_below(parent, path="", names=""):
    """Yields (path, names, layer, its parent) of all sublayers, parents first.

    A path consists of positions, "0/2", because Keras generates different
    names in every process.
    """
    layers = parent._flatten_layers(include_self=False, recursive=False)
    for position, layer in enumerate(layers):
        at, name = f"{path}{position}", f"{names}{layer.name}"
        yield at, name, layer, parent
        yield from _layers_below(layer, f"{at}/", f"{name}/")
