"""The part of a layer's config that tells which layers are frozen."""

from resnet_layers.configs import KeepsArguments


class KeepsFrozen(KeepsArguments):
    """Puts into a layer's config which of the layers below it are frozen.

    For layers and models that create others, in `__init__` or in `build`. It
    goes in front of the Keras class:

        class Block(KeepsFrozen, tf.keras.Model):

    A class whose `build` creates layers calls `freeze_what_is_built` at the
    end of it.
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
        """Does to new layers what the config said."""
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
