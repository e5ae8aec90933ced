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

# How a pixel is computed from those around it.
INTERPOLATIONS = ("bilinear", "bicubic")


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
    # Antialiased: evaluation is where a jagged image costs accuracy.
    return _resize(image, preprocessing, antialias=True)


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
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4]),
            seed,
            min_object_covered=0.0,
            area_range=sorted((smallest, largest)),
            aspect_ratio_range=sorted((narrowest, widest)),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], size[0], size[1]

    image = _decode_window(encoded, window)
    # Antialiasing takes longer, and matters where much is thrown away.
    shape = tf.shape(image)
    return tf.cond(
        tf.minimum(shape[0], shape[1]) > 2 * preprocessing.image_size,
        lambda: _resize(image, preprocessing, antialias=True),
        lambda: _resize(image, preprocessing, antialias=False),
    )


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


def _resize(image, preprocessing, antialias):
    image = tf.image.resize(
        image,
        [preprocessing.image_size] * 2,
        preprocessing.interpolation,
        antialias=antialias,
    )
    if preprocessing.interpolation == "bicubic":
        # Cubic curves swing beyond what they go through.
        image = tf.clip_by_value(image, 0.0, 255.0)
    return image
