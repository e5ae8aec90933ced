"""This file answers: how do the bytes of a picture file become an image?

Images are float32 [height, width, 3], RGB, from 0 to 255 until `normalize`.
"""

from typing import NamedTuple

import tensorflow as tf


class Normalization(NamedTuple):
    """What is taken off each channel, what it is divided by, and their order.

    Mean and standard deviation are on the scale from 0 to 255, in the order
    that the model gets.
    """

    mean: tuple
    stddev: tuple
    bgr: bool = False


# Weights want the normalisation that they were trained with: torchvision and
# timm "imagenet", keras.applications' ResNets v1 "caffe", v2 "symmetric".
NORMALIZATIONS = {
    "imagenet": Normalization(
        mean=(123.675, 116.28, 103.53), stddev=(58.395, 57.12, 57.375)
    ),
    "caffe": Normalization(
        mean=(103.939, 116.779, 123.68), stddev=(1.0, 1.0, 1.0), bgr=True
    ),
    "symmetric": Normalization(mean=(127.5,) * 3, stddev=(127.5,) * 3),
}


def center_crop(encoded, image_size, crop_fraction):
    """Decodes the middle of a picture: the evaluation crop.

    Args:
      encoded: scalar string, a JPEG, PNG, BMP or GIF file.
      image_size: height and width of the result.
      crop_fraction: side of the square that is cut out, as a part of the
        picture's shorter side.

    Returns:
      float32 [image_size, image_size, 3] from 0 to 255.
    """

    def window(shape):
        shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
        side = tf.maximum(
            tf.cast(tf.round(crop_fraction * shorter), tf.int32), 1
        )
        return (shape[0] - side) // 2, (shape[1] - side) // 2, side, side

    image = _decode_window(encoded, window)
    # Antialiased: evaluation is where a jagged picture costs accuracy.
    return _resize(image, image_size, antialias=True)


def random_resized_crop(encoded, image_size, seed):
    """Decodes a random part of a picture: the usual training crop.

    The part has 8 to 100 % of the area and sides in a proportion of 3:4 to
    4:3: Szegedy et al., 2014, https://arxiv.org/abs/1409.4842.

    Args:
      encoded: scalar string, a JPEG, PNG, BMP or GIF file.
      image_size: height and width of the result.
      seed: int [2]; the same seed gives the same crop.

    Returns:
      float32 [image_size, image_size, 3] from 0 to 255.
    """

    def window(shape):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4]),
            seed,
            min_object_covered=0.0,
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], size[0], size[1]

    return _resize(_decode_window(encoded, window), image_size)


# Ways to decode for training, beside the crop of the evaluation.
TRAINING_CROPS = {"random_resized_crop": random_resized_crop}


def normalize(image, name):
    """Maps an RGB image from 0..255 to what a model was trained with.

    Args:
      image: float32 [..., 3].
      name: a row of `NORMALIZATIONS`.

    Returns:
      A tensor of the same shape.
    """
    row = NORMALIZATIONS[name]
    if row.bgr:
        image = image[..., ::-1]
    return (image - row.mean) / row.stddev


def denormalize(image, name):
    """Undoes `normalize` and clips, to RGB in 0..1: for people to look at."""
    row = NORMALIZATIONS[name]
    image = image * row.stddev + row.mean
    if row.bgr:
        image = image[..., ::-1]
    return tf.clip_by_value(image / 255.0, 0.0, 1.0)


def _decode_window(encoded, window):
    """Decodes the (top, left, height, width) that `window(shape)` returns."""

    def decode_jpeg():
        # Decodes only the blocks that the window touches. The accurate
        # transform is as fast as the default one, and what Pillow computes.
        shape = tf.io.extract_jpeg_shape(encoded)
        return tf.io.decode_and_crop_jpeg(
            encoded,
            tf.stack(window(shape)),
            channels=3,
            dct_method="INTEGER_ACCURATE",
        )

    def decode_other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        top, left, height, width = window(tf.shape(image))
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_other)
    return tf.ensure_shape(image, [None, None, 3])


def _resize(image, image_size, antialias=False):
    return tf.image.resize(image, [image_size] * 2, antialias=antialias)
