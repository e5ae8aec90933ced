"""Decoding, cropping and resizing of image files.

The results are float32 [size, size, 3], RGB, from 0 to 255.
"""

import contextlib
import functools
import io
import warnings
from typing import Annotated

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from train_loop.data.exif import (
    as_call,
    is_plain_jpeg,
    is_plain_png,
    jpeg_orientation,
    png_orientation_and_transparency,
    rotate_upright,
    stored_window,
)
from train_loop.values import Bounds

# Pillow warns about images that it decodes correctly, and about those that it
# then rejects.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Interpolation -> TensorFlow's kernel.
INTERPOLATIONS = {"bilinear": "triangle", "bicubic": "keyscubic"}
# Photos of iPhones require an extra, because its libraries have 27 MB.
try:
    import pillow_heif
except ImportError:
    READS_HEIF = False
else:
    pillow_heif.register_heif_opener()
    READS_HEIF = True
HEIF_ADVICE = "HEIC requires the extra heif: pip install pillow-heif"
# The bytes after the size of the first box of a HEIF file.
HEIF_HEADS = tuple(
    b"ftyp" + brand
    for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
)
# The first bytes of files that TensorFlow decodes as Pillow does: JPEG, PNG.
NATIVE_HEADS = (b"\xff\xd8\xff", b"\x89PNG")
# TensorFlow's limit for JPEG and PNG files, here for all formats.
MAX_PIXELS = 2**29 - 1
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
# Pillow raises an error above twice this number.
PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2


def transcode(encoded, exif_orientation=False):
    """Converts an image file to JPEG or PNG, which the crops decode.

    TensorFlow does not read TIFF, reads palettes of BMP files as gray levels,
    and does not blend transparent pixels. Pillow does all of this as a Python
    function. A graph with it cannot leave this process, and a `map` with it is
    sequential under TensorFlow's op determinism.

    Args:
      encoded: scalar string, the bytes of a file in a format of Pillow. Only
        the first frame of an animation is used.
      exif_orientation: see `resnet_layers.Preprocessing`.

    Returns:
      A scalar string: a JPEG or PNG file unchanged, any other file as PNG.

    Raises:
      tf.errors.OpError: the image is too large, or Pillow cannot read it.
    """

    def by_pillow():
        pixels = tf.numpy_function(
            functools.partial(
                _decode_by_pillow, exif_orientation=bool(exif_orientation)
            ),
            [encoded],
            tf.uint8,
        )
        # Not compressed, because it is decoded at once.
        return tf.io.encode_png(
            tf.ensure_shape(pixels, [None, None, 3]), compression=0
        )

    is_native = [
        tf.strings.substr(encoded, 0, len(head)) == head
        for head in NATIVE_HEADS
    ]

    def unchanged():
        with tf.control_dependencies([_check_size(encoded)]):
            return tf.identity(encoded)

    return tf.cond(tf.reduce_any(is_native), unchanged, by_pillow)


def center_crop(encoded, preprocessing):
    """Decodes the center of an image: the evaluation crop.

    Args:
      encoded: scalar string, a JPEG or PNG file; see `transcode`.
      preprocessing: a `resnet_layers.Preprocessing`.

    Returns:
      float32 [image_size, image_size, 3] from 0 to 255.
    """

    def window(shape):
        shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
        side = tf.round(preprocessing.crop_fraction * shorter)
        side = tf.maximum(tf.cast(side, tf.int32), 1)
        return (shape[0] - side) // 2, (shape[1] - side) // 2, side, side

    return _crop(encoded, window, preprocessing)


def random_resized_crop(
    encoded,
    seed,
    preprocessing,
    smallest: Annotated[float, Bounds(0.001, 1.0)] = 0.08,
    largest: Annotated[float, Bounds(0.001, 1.0)] = 1.0,
    narrowest: Annotated[float, Bounds(0.01, 100.0)] = 3 / 4,
    widest: Annotated[float, Bounds(0.01, 100.0)] = 4 / 3,
):
    """Decodes a random window of an image: the standard training crop.

    Source: Szegedy et al., 2014, https://arxiv.org/abs/1409.4842.

    Args:
      encoded: see `center_crop`.
      seed: int [2]; the same seed gives the same crop.
      preprocessing: a `resnet_layers.Preprocessing`.
      smallest: minimum fraction of the area.
      largest: maximum fraction of the area.
      narrowest: minimum aspect ratio, width / height.
      widest: maximum aspect ratio, width / height.

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

    return _crop(encoded, window, preprocessing)


def random_window(shape, seed, areas=(0.08, 1.0), ratios=(3 / 4, 4 / 3)):
    """Draws a window of an image as torchvision's `RandomResizedCrop` does.

    The area and the logarithm of the aspect ratio are uniform. If none of ten
    windows fits into the image, the window is the largest centered one within
    the range of aspect ratios.

    Args:
      shape: int [2 or 3], the height and width of an image first.
      seed: int [2]; the same seed gives the same window.
      areas: minimum and maximum fraction of the image's area.
      ratios: minimum and maximum aspect ratio, width / height.

    Returns:
      (top, left, height, width), int32 scalars.
    """
    image_size = tf.cast(shape[:2], tf.float32)
    area, ratio, *position = tf.unstack(
        tf.random.stateless_uniform([4, 10], seed)
    )
    area = (areas[0] + (areas[1] - areas[0]) * area) * tf.reduce_prod(
        image_size
    )
    ratio = ratios[0] * (ratios[1] / ratios[0]) ** ratio
    sides = [tf.sqrt(area / ratio), tf.sqrt(area * ratio)]
    sizes = tf.round(tf.stack(sides, axis=1))
    fits = tf.reduce_all((sizes > 0) & (sizes <= image_size), axis=1)
    first = tf.argmax(fits)
    free = image_size - sizes[first] + 1
    low = tf.floor(tf.stack(position, axis=1)[first] * free)
    # If no window fits, the image is wider or higher than the ratios allow.
    height, width = tf.unstack(image_size)
    center = tf.stack(
        [
            tf.minimum(height, tf.round(width / ratios[0])),
            tf.minimum(width, tf.round(height * ratios[1])),
        ]
    )
    center = tf.maximum(center, 1)
    size = tf.where(fits[first], sizes[first], center)
    low = tf.where(fits[first], low, (image_size - center) // 2)
    return tf.unstack(tf.cast(tf.concat([low, size], 0), tf.int32))


# Training crops, which replace the center crop.
CROPS = {"random_resized_crop": random_resized_crop}


def check_image(encoded):
    """Decodes a whole image to find errors.

    Args:
      encoded: scalar string, the bytes of a file.

    Returns:
      A scalar tensor, True.

    Raises:
      tf.errors.OpError: the image cannot be decoded.
    """
    encoded = transcode(encoded)
    image, _ = _decode_window(encoded, lambda shape: (0, 0, shape[0], shape[1]))
    return tf.size(image) > 0


def _crop(encoded, window, preprocessing):
    """Decodes and resizes a window, float32 [image_size, image_size, 3]."""
    image, orientation = _decode_window(
        encoded, window, preprocessing.exif_orientation
    )
    image = _resize(image, preprocessing)
    # After resizing, because a small square rotates much faster.
    if not preprocessing.exif_orientation:
        return image
    return rotate_upright(image, orientation)


def _decode_window(encoded, window, exif_orientation=False):
    """Decodes a window of an image.

    Args:
      encoded: scalar string, a JPEG or PNG file.
      window: maps the shape of the upright image to (top, left, height, width)
        in it.
      exif_orientation: see `resnet_layers.Preprocessing`.

    Returns:
      (uint8 [height, width, 3] as stored, orientation); see `rotate_upright`.
    """

    def decode_jpeg(window):
        # Decodes only the blocks of the window. The accurate transform is as
        # fast as the default, and Pillow uses it.
        return tf.io.decode_and_crop_jpeg(
            encoded,
            tf.stack(window(tf.io.extract_jpeg_shape(encoded))),
            channels=3,
            dct_method="INTEGER_ACCURATE",
        )

    def decode_png(window, on_white=False):
        image = tf.io.decode_png(encoded, channels=4 if on_white else 3)
        top, left, height, width = window(tf.shape(image))
        image = image[top : top + height, left : left + width]
        return _on_white(image) if on_white else image

    def decode_tagged_jpeg():
        orientation = jpeg_orientation(encoded)
        stored = functools.partial(stored_window, window, orientation)
        return decode_jpeg(stored), orientation

    def decode_tagged_png():
        orientation, is_transparent = png_orientation_and_transparency(encoded)
        stored = functools.partial(stored_window, window, orientation)
        image = tf.cond(
            is_transparent,
            lambda: decode_png(stored, on_white=True),
            lambda: decode_png(stored),
        )
        return image, orientation

    def decode(is_plain, plain, tagged):
        if not exif_orientation:
            return plain(window), 1
        return tf.cond(
            is_plain(encoded), lambda: (plain(window), 1), as_call(tagged)
        )

    image, orientation = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: decode(is_plain_jpeg, decode_jpeg, decode_tagged_jpeg),
        lambda: decode(is_plain_png, decode_png, decode_tagged_png),
    )
    return tf.ensure_shape(image, [None, None, 3]), orientation


def _on_white(image):
    """Blends uint8 [height, width, 4] with white, as Pillow does."""
    image = tf.cast(image, tf.int32)
    alpha = image[..., 3:]
    blended = image[..., :3] * alpha + 255 * (255 - alpha)
    return tf.cast((blended + 127) // 255, tf.uint8)


def _check_size(encoded):
    """Returns an operation that fails if an image has too many pixels.

    TensorFlow itself reports this for PNG only.
    """
    shape = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        # After the signature and the length and name of the first chunk.
        lambda: tf.io.decode_raw(
            tf.strings.substr(
                encoded, tf.minimum(16, tf.strings.length(encoded)), 8
            ),
            tf.int32,
            little_endian=False,
            fixed_length=8,
        ),
    )
    pixels = tf.reduce_prod(tf.cast(shape, tf.int64))
    return tf.debugging.Assert(pixels <= MAX_PIXELS, [TOO_LARGE])


def _decode_by_pillow(encoded, exif_orientation=False):
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            if exif_orientation:
                image = _as_displayed(image)
            if image.mode.startswith("I;16"):
                # TIFF. Pillow would clip values above 255.
                gray = np.asarray(image) >> 8
                return np.repeat(gray.astype("uint8")[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError("32-bit pixels with an unknown value range")
            return np.asarray(image.convert("RGB"))
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(TOO_LARGE) from error
    except PIL.UnidentifiedImageError as error:
        if encoded[4:12] in HEIF_HEADS:
            raise ValueError(HEIF_ADVICE) from error
        # Pillow's own message contains the address of an object.
        raise ValueError("not an image file") from error


def _as_displayed(image):
    """Rotates a Pillow image upright and blends transparency with white."""
    # Damaged EXIF data are ignored.
    with contextlib.suppress(Exception):
        image = PIL.ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image


def _resize(image, preprocessing):
    """Resizes with antialiasing, as Pillow and torchvision do."""
    size = preprocessing.image_size
    # One side at a time, as an image of a single column with many channels:
    # equal to `tf.image.resize` and three times as fast.
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
        # Bicubic interpolation overshoots at edges.
        image = tf.clip_by_value(image, 0.0, 255.0)
    return image
