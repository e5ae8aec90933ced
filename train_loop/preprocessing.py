"""This file answers: how do the bytes of a picture file become an image?

Images are float32 [height, width, 3], RGB, from 0 to 255. The devices get them
as uint8, and normalise them.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
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


# How a pixel is computed from those around it.
INTERPOLATIONS = ("bilinear", "bicubic")

# Larger pictures are taken for a mistake, as Pillow takes them: decoded, they
# would fill the memory.
MAX_PIXELS = 178_956_970

# Where the first bytes of a file are these, width and height stand at (offset,
# type, least byte first).
SIDES = {
    b"\x89PNG": (16, tf.int32, False),
    b"BM": (18, tf.int32, True),
    b"GIF8": (6, tf.uint16, True),
}


def center_crop(encoded, image_size, crop_fraction, interpolation="bilinear"):
    """Decodes the middle of a picture: the evaluation crop.

    Args:
      encoded: scalar string, a JPEG, PNG, BMP, GIF (the first frame counts) or
        WebP file.
      image_size: height and width of the result.
      crop_fraction: side of the square that is cut out, as a part of the
        picture's shorter side.
      interpolation: one of `INTERPOLATIONS`.

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
    return _resize(image, image_size, interpolation, antialias=True)


def random_resized_crop(
    encoded,
    image_size,
    seed,
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    interpolation="bilinear",
):
    """Decodes a random part of a picture: the usual training crop.

    Source: Szegedy et al., 2014, https://arxiv.org/abs/1409.4842.

    Args:
      encoded: see `center_crop`.
      image_size: height and width of the result.
      seed: int [2]; the same seed gives the same crop.
      scale: smallest and largest part of the area that is taken.
      ratio: smallest and largest width, in heights.
      interpolation: one of `INTERPOLATIONS`.

    Returns:
      float32 [image_size, image_size, 3] from 0 to 255.
    """

    def window(shape):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4]),
            seed,
            min_object_covered=0.0,
            area_range=scale,
            aspect_ratio_range=ratio,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], size[0], size[1]

    image = _decode_window(encoded, window)
    # Antialiasing takes longer, and matters where much is thrown away.
    shape = tf.shape(image)
    return tf.cond(
        tf.minimum(shape[0], shape[1]) > 2 * image_size,
        lambda: _resize(image, image_size, interpolation, antialias=True),
        lambda: _resize(image, image_size, interpolation),
    )


# Ways to decode for training, beside the crop of the evaluation.
TRAINING_CROPS = {"random_resized_crop": random_resized_crop}


def to_bytes(image):
    """Rounds an image to whole numbers, as Pillow's are: uint8.

    That is what the host hands to the devices: a quarter of the bytes.
    """
    return tf.cast(image + 0.5, tf.uint8)


def normalize(images, name):
    """Maps RGB images from 0..255 to what a model was trained with.

    Args:
      images: [..., height, width, 3], of a known width.
      name: a row of `NORMALIZATIONS`.

    Returns:
      A float32 tensor of the same shape.
    """
    row = NORMALIZATIONS[name]
    images = tf.cast(images, tf.float32)
    if row.bgr:
        images = images[..., ::-1]
    # A whole row of pixels at once: over three numbers, TensorFlow takes
    # several times as long on CPUs.
    width = images.shape[-2]
    scale = 1.0 / np.tile(np.float32(row.stddev), width)
    offset = np.tile(np.float32(row.mean), width) * scale
    shape = tf.shape(images)
    rows = tf.reshape(images, tf.concat([shape[:-2], [3 * width]], axis=0))
    return tf.ensure_shape(
        tf.reshape(rows * scale - offset, shape), images.shape
    )


def find_normalization(mean, stddev, bgr):
    """Returns the name of a row of `NORMALIZATIONS`, or None for no such row.

    Args:
      mean: three numbers, on the scale from 0 to 255.
      stddev: three numbers, on the same scale.
      bgr: whether they are for blue, green and red.
    """
    for name, row in NORMALIZATIONS.items():
        theirs = (*mean, *stddev)
        if row.bgr == bgr and np.allclose((*row.mean, *row.stddev), theirs):
            return name
    return None


def check_picture(encoded):
    """Decodes a whole picture, as training and evaluation may have to.

    Args:
      encoded: see `center_crop`.

    Returns:
      True, a scalar tensor.

    Raises:
      tf.errors.InvalidArgumentError: it cannot be decoded.
    """
    image = _decode_window(encoded, lambda shape: (0, 0, shape[0], shape[1]))
    return tf.size(image) > 0


def _decode_window(encoded, window):
    """Decodes the (top, left, height, width) that `window(shape)` returns."""

    def decode_jpeg():
        # Decodes only the blocks that the window touches. The accurate
        # transform is as fast as the default one, and what Pillow computes.
        shape = tf.io.extract_jpeg_shape(encoded)
        with _limited(shape[0], shape[1]):
            return tf.io.decode_and_crop_jpeg(
                encoded,
                tf.stack(window(shape)),
                channels=3,
                dct_method="INTEGER_ACCURATE",
            )

    def decode_other():
        width, height = tf.case(
            [
                (
                    _starts_with(encoded, signature),
                    partial(_numbers, encoded, *position, count=2),
                )
                for signature, position in SIDES.items()
            ],
            default=lambda: [0, 0],
        )
        with _limited(width, height):
            image = tf.cond(
                _starts_with(encoded, b"BM"),
                lambda: _decode_bmp(encoded),
                lambda: _decode_any(encoded),
            )
        top, left, height, width = window(tf.shape(image))
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_other)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_any(encoded):
    # Transparency is dropped, as Pillow drops it; of WebP, TensorFlow does not
    # do it by itself.
    is_webp = tf.strings.regex_full_match(
        tf.strings.substr(encoded, 0, 12), r"(?s-m)RIFF.{4}WEBP"
    )
    image = tf.cond(
        is_webp,
        lambda: tf.io.decode_image(encoded, expand_animations=False)[..., :3],
        lambda: tf.io.decode_image(
            encoded, channels=3, expand_animations=False
        ),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_bmp(encoded):
    """Looks up the colours of a palette, which TensorFlow takes for greys."""
    begin, header = _numbers(encoded, 10, tf.int32, count=2)
    [bits] = _numbers(encoded, 28, tf.uint16, count=1)

    def decode_palette():
        palette = tf.strings.substr(encoded, 14 + header, begin - 14 - header)
        # Blue, green, red and a zero.
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [-1, 4])
        indices = tf.io.decode_bmp(encoded)[..., 0]
        return tf.gather(palette[:, 2::-1], tf.cast(indices, tf.int32))

    return tf.cond(bits == 8, decode_palette, lambda: _decode_any(encoded))


def _starts_with(encoded, signature):
    return tf.strings.substr(encoded, 0, len(signature)) == signature


def _numbers(encoded, offset, dtype, little_endian=True, *, count):
    """Returns numbers that stand in the header of a picture, as int32."""
    text = tf.strings.substr(encoded, offset, count * dtype.size)
    numbers = tf.io.decode_raw(text, dtype, little_endian=little_endian)
    return tf.unstack(tf.cast(numbers, tf.int32), count)


def _limited(height, width):
    """Lets what follows run only where a picture is not too large."""
    num_pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    limit = tf.constant(MAX_PIXELS, tf.int64)
    message = f"the picture has more than {MAX_PIXELS:,} pixels"
    # Upside down, a BMP has a negative height.
    return tf.control_dependencies(
        [tf.debugging.assert_less_equal(tf.abs(num_pixels), limit, message)]
    )


def _resize(image, image_size, interpolation, antialias=False):
    image = tf.image.resize(
        image, [image_size] * 2, interpolation, antialias=antialias
    )
    if interpolation == "bicubic":
        # Cubic curves swing beyond what they go through.
        image = tf.clip_by_value(image, 0.0, 255.0)
    return image
