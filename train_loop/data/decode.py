"""From the bytes of an image file to a square image: decode, crop, resize.

Images are float32 [size, size, 3], RGB, from 0 to 255.
"""

import io
import warnings
from typing import Annotated

import numpy as np
import PIL.Image
import tensorflow as tf

from train_loop.bounds import Bounds

# It warns of what it then cannot decode, and of what it decodes all the same.
warnings.filterwarnings("ignore", module=r"PIL\.")

# How a pixel is computed from those around it -> TensorFlow's kernel.
INTERPOLATIONS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def decode_png(encoded):
    """Decodes a PNG file: uint8 [height, width, 3]."""
    return tf.io.decode_png(encoded, channels=3)


def decode_any(encoded):
    """Decodes a PNG file, or any other that Pillow reads, in this process."""
    return tf.cond(
        tf.strings.substr(encoded, 0, 4) == b"\x89PNG",
        lambda: decode_png(encoded),
        # TensorFlow takes the palettes of BMP files for greys, and keeps the
        # transparency of WebP.
        lambda: tf.ensure_shape(
            tf.numpy_function(_decode_by_pillow, [encoded], tf.uint8),
            [None, None, 3],
        ),
    )


def center_crop(encoded, preprocessing, decode_other=decode_any):
    """Decodes the middle of an image: the evaluation crop.

    Args:
      encoded: scalar string, a JPEG or PNG file, or any other that Pillow
        reads (of an animation, the first frame counts).
      preprocessing: a `resnet_layers.Preprocessing`.
      decode_other: decodes all files but JPEG. A graph that shall leave this
        process cannot take Pillow along: `decode_png`.

    Returns:
      float32 [image_size, image_size, 3] from 0 to 255.
    """

    def window(shape):
        shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
        side = tf.round(preprocessing.crop_fraction * shorter)
        side = tf.maximum(tf.cast(side, tf.int32), 1)
        return (shape[0] - side) // 2, (shape[1] - side) // 2, side, side

    image = _decode_window(encoded, window, decode_other)
    return _resize(image, preprocessing)


def random_resized_crop(
    encoded,
    seed,
    preprocessing,
    smallest: Annotated[float, Bounds(0.001, 1.0)] = 0.08,
    largest: Annotated[float, Bounds(0.001, 1.0)] = 1.0,
    narrowest: Annotated[float, Bounds(0.01, 100.0)] = 3 / 4,
    widest: Annotated[float, Bounds(0.01, 100.0)] = 4 / 3,
):
    """Decodes a random part of an image: the usual training crop.

    Source: Szegedy et al., 2014, https://arxiv.org/abs/1409.4842.

    Args:
      encoded: see `center_crop`.
      seed: int [2]; the same seed gives the same crop.
      preprocessing: a `resnet_layers.Preprocessing`.
      smallest: part of the area that is taken at least.
      largest: part of the area that is taken at most.
      narrowest: width, in heights, of the narrowest part.
      widest: width, in heights, of the widest part.

    Returns:
      float32 [image_size, image_size, 3] from 0 to 255.
    """

    def window(shape):
        return random_window(
            shape,
            seed,
            sorted((smallest, largest)),
            sorted((narrowest, widest)),
        )

    image = _decode_window(encoded, window)
    return _resize(image, preprocessing)


def random_window(shape, seed, areas=(0.08, 1.0), ratios=(3 / 4, 4 / 3)):
    """Draws a part of an image as torchvision's `RandomResizedCrop` does.

    The area and the logarithm of width / height are uniform. If none of ten
    draws fits into the image, the window is the middle of the image, as much
    as the ratios allow.

    Args:
      shape: int [2 or 3], the height and width of an image.
      seed: int [2]; the same seed gives the same window.
      areas: smallest and largest area, as fractions of the image's.
      ratios: smallest and largest width / height.

    Returns:
      (top, left, height, width), int32 scalars.
    """
    image_size = tf.cast(shape[:2], tf.float32)
    area, ratio, *place = tf.unstack(tf.random.stateless_uniform([4, 10], seed))
    area = (areas[0] + (areas[1] - areas[0]) * area) * tf.reduce_prod(
        image_size
    )
    ratio = ratios[0] * (ratios[1] / ratios[0]) ** ratio
    sides = [tf.sqrt(area / ratio), tf.sqrt(area * ratio)]
    sizes = tf.round(tf.stack(sides, axis=1))
    fits = tf.reduce_all((sizes > 0) & (sizes <= image_size), axis=1)
    first = tf.argmax(fits)
    free = image_size - sizes[first] + 1
    low = tf.floor(tf.stack(place, axis=1)[first] * free)
    # What no draw fits into is wider or higher than the ratios allow.
    height, width = tf.unstack(image_size)
    middle = tf.stack(
        [
            tf.minimum(height, tf.round(width / ratios[0])),
            tf.minimum(width, tf.round(height * ratios[1])),
        ]
    )
    middle = tf.maximum(middle, 1)
    size = tf.where(fits[first], sizes[first], middle)
    low = tf.where(fits[first], low, (image_size - middle) // 2)
    return tf.unstack(tf.cast(tf.concat([low, size], 0), tf.int32))


# Ways to decode for training, in place of the crop of the evaluation.
CROPS = {"random_resized_crop": random_resized_crop}


def check_image(encoded):
    """Decodes a whole image, as training and evaluation may have to.

    Args:
      encoded: see `center_crop`.

    Returns:
      True, a scalar tensor.

    Raises:
      tf.errors.OpError: it cannot be decoded.
    """
    image = _decode_window(encoded, lambda shape: (0, 0, shape[0], shape[1]))
    return tf.size(image) > 0


def _decode_window(encoded, window, decode_other=decode_any):
    """Decodes the (top, left, height, width) that `window(shape)` returns."""

    def decode_jpeg():
        # Decodes only the blocks that the window touches. The accurate
        # transform is as fast as the default one, and what Pillow computes.
        return tf.io.decode_and_crop_jpeg(
            encoded,
            tf.stack(window(tf.io.extract_jpeg_shape(encoded))),
            channels=3,
            dct_method="INTEGER_ACCURATE",
        )

    def decode_then_crop():
        image = decode_other(encoded)
        top, left, height, width = window(tf.shape(image))
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_then_crop)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_by_pillow(encoded):
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            if image.mode.startswith("I;16"):
                # Of TIFF. Pillow would cut off what is above 255.
                grey = np.asarray(image) >> 8
                return np.repeat(grey.astype("uint8")[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError(
                    "its pixels are numbers of 32 bits, of which nobody knows "
                    "what is black and what is white"
                )
            return np.asarray(image.convert("RGB"))
    except PIL.UnidentifiedImageError as error:
        # Pillow's own words name an object in memory.
        raise ValueError("not the content of an image file") from error


def _resize(image, preprocessing):
    """Resizes with antialiasing, as Pillow and torchvision do."""
    size = preprocessing.image_size
    # One side after the other, in an image of a single column with many
    # channels: the same numbers as of `tf.image.resize`, three times as fast.
    for _ in range(2):
        height, width, channels = tf.unstack(tf.shape(image))
        scale = size / tf.cast(height, tf.float32)
        image = tf.raw_ops.ScaleAndTranslate(
            images=tf.reshape(image, [1, height, 1, width * channels]),
            size=[size, 1],
            scale=tf.stack([scale, 1.0]),
            translation=tf.zeros([2]),
            kernel_type=INTERPOLATIONS[preprocessing.interpolation],
            antialias=True,
        )
        image = tf.reshape(image, [size, width, channels])
        image = tf.transpose(image, [1, 0, 2])
    image = tf.ensure_shape(image, [size, size, 3])
    if preprocessing.interpolation == "bicubic":
        # Cubic curves swing beyond what they go through.
        image = tf.clip_by_value(image, 0.0, 255.0)
    return image
