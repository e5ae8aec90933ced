"""Views: an image that a model sees several times, in the same evaluation."""

from typing import NamedTuple

import tensorflow as tf

# How much larger the images are that corners are cut out of, where evaluation
# keeps the whole of them.
ENLARGED = 8 / 7
# So that logarithms of mean probabilities are finite.
LEAST_PROBABILITY = 1e-30


class Views(NamedTuple):
    """What a model sees of an image: middle, corners, mirrored or not."""

    crops: bool = False
    flips: bool = False

    def preprocessing(self, preprocessing):
        """Returns what images go through before the views are taken."""
        if not self.crops:
            return preprocessing
        scale = ENLARGED
        if preprocessing.crop_fraction < 1:
            scale = 1 / preprocessing.crop_fraction
        side = round(preprocessing.image_size * scale)
        return preprocessing._replace(image_size=side, crop_fraction=1.0)

    def logits(self, function, images, image_size):
        """Returns the logarithms of the mean probabilities over all views.

        Args:
          function: maps uint8 [batch, image_size, image_size, 3] to logits.
          images: uint8 [batch, side, side, 3], as `preprocessing` makes them.
          image_size: of a view.

        Returns:
          float32 [batch, classes]; of a single view, the logits themselves.
        """
        views = [images]
        if self.crops:
            most = images.shape[1] - image_size
            places = [(0, 0), (0, most), (most, 0), (most, most)]
            views = [
                images[:, top : top + image_size, left : left + image_size]
                for top, left in [*places, (most // 2, most // 2)]
            ]
        if self.flips:
            views += [view[:, :, ::-1] for view in views]
        if len(views) == 1:
            return tf.cast(function(images), tf.float32)
        probabilities = [
            tf.nn.softmax(tf.cast(function(view), tf.float32)) for view in views
        ]
        mean = tf.add_n(probabilities) / len(views)
        return tf.math.log(tf.maximum(mean, LEAST_PROBABILITY))


VIEWS = {
    "none": Views(),
    "flip": Views(flips=True),
    "five_crops": Views(crops=True),
    "ten_crops": Views(crops=True, flips=True),
}
