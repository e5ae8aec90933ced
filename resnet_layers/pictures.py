"""The pictures that layers take, and the shapes that follow from them."""

import tensorflow as tf

from resnet_layers.freezing import KeepsFrozen

SHAPES = {"compute_output_shape", "compute_output_spec"}
# What a symbolic shape stands for, and a subclass may do in another way.
CALLS = {"call", "embed", "features"}


class TakesPictures(KeepsFrozen):
    """A layer of pictures, [batch, height, width, channels]; no other input.

    It is built once, by `build_layers` of a subclass; whoever builds it again
    changes nothing. It goes in front of the Keras class:

        class Block(TakesPictures, tf.keras.Model):
    """

    _channels = None

    def __init_subclass__(cls, **kwargs):
        """Gives a class that only has another `call` the shapes of that one."""
        super().__init_subclass__(**kwargs)
        for parent in cls.__mro__:
            if SHAPES & vars(parent).keys():
                return
            if CALLS & vars(parent).keys():
                cls.compute_output_shape = _shape_of_the_call
                cls.compute_output_spec = tf.keras.Operation.compute_output_spec
                return

    def __call__(self, *args, **kwargs):
        if args and hasattr(args[0], "shape"):
            self._check_pictures(args[0].shape)
        return super().__call__(*args, **kwargs)

    def build_layers(self, input_shape):
        """Creates and builds what the shape decides."""
        raise NotImplementedError

    def build(self, input_shape):
        self._check_pictures(input_shape)
        if self.built:
            return
        self.build_layers(input_shape)
        self.freeze_what_is_built()
        self._channels = input_shape[-1]

    def _check_pictures(self, shape):
        shape = tf.TensorShape(shape)
        if self._channels is None:
            fits = shape.rank == 4 and shape[-1] is not None
        else:
            fits = shape.rank == 4 and shape[-1] in (self._channels, None)
        if not fits:
            channels = self._channels or "a known number of"
            raise picture_error(self, shape, f"of {channels} channels")


def picture_error(layer, shape, accepted):
    """Returns a ValueError for pictures of a wrong shape.

    Args:
      layer: that does not take them.
      shape: theirs.
      accepted: what it would have taken.
    """
    return ValueError(
        f"{layer.name} takes pictures [batch, height, width, channels], "
        f"channels last, {accepted}. Received: shape={shape}"
    )


def _shape_of_the_call(self, input_shape):
    # The call takes layers that `build` makes.
    if not self.built:
        self.build(input_shape)
    inputs = tf.keras.KerasTensor(input_shape, dtype=self.compute_dtype)
    outputs = self.compute_output_spec(inputs)
    return tf.nest.map_structure(lambda output: output.shape, outputs)
