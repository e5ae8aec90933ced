"""Single operations on an image: what Pillow does, in TensorFlow.

Each maps (image, magnitude) to an image, float32 [height, width, 3] of whole
numbers from 0 to 255. They compute what Pillow does to uint8 images and mean
by a magnitude what torchvision means; some need none.
"""

# They run on every image, so they avoid what TensorFlow is slow at: `where` and
# broadcasting over the channels take over five times as long as arithmetic.

import numpy as np
import tensorflow as tf


def identity(image, magnitude=None):
    """Returns the image."""
    return image


def invert(image, magnitude=None):
    """Returns the negative."""
    return 255.0 - image


def solarize(image, magnitude):
    """Inverts what is at least as bright as `magnitude`."""
    is_bright = tf.cast(image >= magnitude, tf.float32)
    return tf.abs(255.0 * is_bright - image)


def posterize(image, magnitude):
    """Keeps the upper `magnitude` of eight bits."""
    step = 2.0 ** (8.0 - tf.round(tf.cast(magnitude, tf.float32)))
    return tf.floor(image / step) * step


def brightness(image, magnitude):
    """Blends with black: -1 is all black, 0 the image, 1 twice as bright."""
    return _blend(0.0, image, magnitude)


def contrast(image, magnitude):
    """Blends with the mean of the grey image."""
    mean = tf.floor(tf.reduce_mean(_grey(image)) + 0.5)
    return _blend(mean, image, magnitude)


def color(image, magnitude):
    """Blends with the grey image: varies the saturation."""
    return _blend(_grey(image), image, magnitude)


def sharpness(image, magnitude):
    """Blends with a smoothed image."""
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = image[1:-1, 1:-1]
    detail = inner - tf.round((box + 4.0 * inner) / 13.0)
    # The outermost pixels lack neighbours; they stay as they are.
    detail = tf.pad(detail, [[1, 1], [1, 1], [0, 0]])
    return _blend(image - detail, image, magnitude)


def autocontrast(image, magnitude=None):
    """Stretches every channel to the range from 0 to 255."""
    # One axis after the other: both at once take ten times as long.
    low = tf.reduce_min(tf.reduce_min(image, axis=0), axis=0)
    high = tf.reduce_max(tf.reduce_max(image, axis=0), axis=0)
    is_flat, width = low == high, image.shape[1]
    start = tf.tile(tf.where(is_flat, 0.0, low), [width])
    span = tf.tile(tf.where(is_flat, 255.0, high - low), [width])
    rows = tf.floor((_rows(image) - start) * 255.0 / span)
    return tf.reshape(rows, image.shape)


def equalize(image, magnitude=None):
    """Spreads the pixels of every channel evenly over the range."""
    offsets = np.tile(np.int32([0, 256, 512]), image.shape[1])
    levels = tf.cast(_rows(image), tf.int32) + offsets
    counts = tf.math.bincount(levels, minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    darker = tf.cumsum(counts, axis=1, exclusive=True)
    not_brightest = tf.where(counts > 0, darker, 0)
    step = tf.reduce_max(not_brightest, axis=1, keepdims=True) // 255
    table = tf.minimum((step // 2 + darker) // tf.maximum(step, 1), 255)
    # Too few pixels, or a single level.
    table = tf.where(step == 0, tf.range(256), table)
    table = tf.reshape(tf.cast(table, tf.float32), [-1])
    # `gather` takes half as long again.
    rows = tf.gather_nd(table, levels[..., tf.newaxis])
    return tf.reshape(rows, image.shape)


def shear_x(image, magnitude):
    """Moves every row left, by `magnitude` times its distance from y = 0."""
    return _warp(image, [[1.0, magnitude, 0.0], [0.0, 1.0, 0.0]])


def shear_y(image, magnitude):
    """Moves every column up, by `magnitude` times its distance from x = 0."""
    return _warp(image, [[1.0, 0.0, 0.0], [magnitude, 1.0, 0.0]])


def translate_x(image, magnitude):
    """Moves right by `magnitude` pixels, less their fraction."""
    return _translate(image, [0.0, magnitude, 0.0])


def translate_y(image, magnitude):
    """Moves down by `magnitude` pixels, less their fraction."""
    return _translate(image, [magnitude, 0.0, 0.0])


def rotate(image, magnitude):
    """Turns by `magnitude` degrees, counter-clockwise, around the centre."""
    angle = tf.cast(magnitude, tf.float64) * (np.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = image.shape[0] / 2.0, image.shape[1] / 2.0
    to_x = [cos, -sin, x - cos * x + sin * y]
    to_y = [sin, cos, y - sin * x - cos * y]
    return _warp(image, [to_x, to_y])


OPERATIONS = {
    "identity": identity,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}


def _blend(degenerate, image, magnitude):
    """Goes from `degenerate`, at -1, to the image, at 0, and beyond."""
    blended = degenerate + (1.0 + magnitude) * (image - degenerate)
    return tf.floor(tf.clip_by_value(blended, 0.0, 255.0))


def _grey(image):
    """Returns three equal channels: the luma of ITU-R 601, rounded."""
    # Pillow's weights, in 1/65536. Float32 holds every sum of them exactly.
    weights = np.float32([[19595] * 3, [38470] * 3, [7471] * 3])
    return tf.floor((tf.tensordot(image, weights, 1) + 32768.0) / 65536.0)


def _rows(image):
    """Returns the image as [height, width * 3]."""
    return tf.reshape(image, [image.shape[0], -1])


def _translate(image, offset):
    """Moves down, right and along the channels by `offset`, filling with 0."""
    offset = tf.cast(offset, tf.int32)
    before, after = tf.maximum(offset, 0), tf.maximum(-offset, 0)
    padded = tf.pad(image, tf.stack([before, after], axis=1))
    return tf.slice(padded, after, image.shape)


def _warp(image, matrix):
    """Takes every pixel from where `matrix` points to, or 0 from outside.

    Args:
      image: float32 [height, width, 3].
      matrix: numbers [2, 3] that map (x, y, 1) in the result to (x, y) in the
        image, where (0.5, 0.5) is the middle of the first pixel.
    """
    height, width, _ = image.shape

    def source(row, size):
        a, b, c = (tf.cast(number, tf.float64) for number in row)
        # Pillow goes from one pixel's middle to the next in whole numbers of
        # 1/65536. So do we, to fall on the same side of every border.
        steps = tf.floor(65536.0 * tf.stack([a, b, c + (a + b) / 2.0]) + 0.5)
        a, b, c = tf.unstack(tf.cast(steps, tf.int32))
        place = a * tf.range(width) + c + b * tf.range(height)[:, tf.newaxis]
        return tf.clip_by_value(tf.bitwise.right_shift(place, 16), -1, size)

    x, y = source(matrix[0], width), source(matrix[1], height)
    # What lies outside is found in a black border. TensorFlow's projective
    # transform takes more than twice as long.
    bordered = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    places = (width + 2) * (y + 1) + x + 1
    pixels = tf.reshape(bordered, [-1, 3])
    return tf.gather_nd(pixels, places[..., tf.newaxis])
