"""Augmentations of a decoded training image.

An augmentation maps a float32 [height, width, 3] image, RGB from 0 to 255, and
an int [2] seed to an image of the same shape. The same seed gives the same
image.

The policies choose from operations on (image, magnitude). These compute what
Pillow computes for uint8 images, so the image is float32 with integer values.
Magnitudes have the units of torchvision.
"""

# Not the Keras layers with these names: each call advances their generator,
# even with an explicit seed, and they draw once for a whole batch.
#
# The operations run on every image, so they avoid slow TensorFlow operations:
# `where` and broadcasting over the channels take over five times as long as
# arithmetic.

import functools
from typing import Annotated

import numpy as np
import tensorflow as tf

from resnet_layers import NORMALIZATIONS
from train_loop.values import Bounds

# The ImageNet normalization maps it to zero.
MEAN_COLOR = NORMALIZATIONS["imagenet"].mean
# Pairs of (operation, probability, level from 0 to 9).
IMAGENET_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


def flip(image, seed):
    """Flips the image horizontally with a probability of 0.5."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def shift(image, seed):
    """Translates the image by up to an eighth of its height.

    Fills with zeros. For 32 x 32 images, this is the pad-and-crop of He et al.,
    2015: up to 4 pixels.
    """
    margin = image.shape[0] // 8
    padded = tf.pad(image, [[margin, margin], [margin, margin], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


def color_jitter(
    image, seed, strength: Annotated[float, Bounds(0.0, 10.0)] = 0.4
):
    """Changes brightness, contrast and saturation, in random order.

    Each factor is uniform in [max(0, 1 - strength), 1 + strength].
    """
    names = ("brightness", "contrast", "color")
    order, magnitudes = tf.unstack(tf.random.stateless_uniform([2, 3], seed))
    weakest = max(-1.0, -strength)
    magnitudes = weakest + (strength - weakest) * magnitudes
    image = tf.round(image)
    for choice in tf.unstack(tf.argsort(order)):
        image = _apply(names, choice, image, magnitudes[choice])
    return image


def rand_augment(
    image,
    seed,
    num_layers: Annotated[int, Bounds(1, 16)] = 2,
    magnitude: Annotated[int, Bounds(0, 30)] = 9,
):
    """Applies `num_layers` random operations at level `magnitude` (0 to 30).

    Source: RandAugment, Cubuk et al., 2019, https://arxiv.org/abs/1909.13719,
    with the operations and levels of torchvision.
    """
    space = _standard_space(image, num_levels=31)
    image = tf.round(image)
    for layer in range(num_layers):
        layer_seed = tf.random.fold_in(seed, layer)
        choice, sign = random_integers(layer_seed, [len(space), 2])
        image = _apply_level(space, choice, image, magnitude, sign)
    return image


def trivial_augment(image, seed):
    """Applies one random operation at a random level.

    Source: TrivialAugment (wide), Müller and Hutter, 2021,
    https://arxiv.org/abs/2103.10158.
    """
    space = _space(
        31, shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, bits=2
    )
    choice, level, sign = random_integers(seed, [len(space), 31, 2])
    return _apply_level(space, choice, tf.round(image), level, sign)


def auto_augment(image, seed):
    """Applies one of the 25 pairs of operations of the ImageNet policy.

    Source: AutoAugment, Cubuk et al., 2018, https://arxiv.org/abs/1805.09501,
    with the levels of torchvision.
    """
    space = _standard_space(image, num_levels=10)
    space["invert"] = space["identity"]
    names = list(space)
    policy = np.array(IMAGENET_POLICY, dtype=object)
    policy[..., 0] = np.vectorize(names.index)(policy[..., 0])
    index, *signs = random_integers(seed, [len(policy), 2, 2])
    pair = tf.gather(np.float32(policy), index)
    choices, probabilities, levels = tf.unstack(pair, axis=-1)
    chances = tf.random.stateless_uniform([2], tf.random.fold_in(seed, 1))
    identity_index = float(names.index("identity"))
    choices = tf.where(chances < probabilities, choices, identity_index)
    choices, levels = tf.cast(choices, tf.int32), tf.cast(levels, tf.int32)
    image = tf.round(image)
    for turn, sign in enumerate(signs):
        image = _apply_level(space, choices[turn], image, levels[turn], sign)
    return image


def random_erasing(
    image, seed, probability: Annotated[float, Bounds(0.0, 1.0)] = 0.25
):
    """Covers a random rectangle with the mean color of ImageNet.

    The rectangle has 2% to 33% of the area and a height of 0.3 to 3.3 times
    its width. The first of ten rectangles that fits into the image is used. If
    none fits, the image stays unchanged.

    Source: Zhong et al., 2017, https://arxiv.org/abs/1708.04896.
    """
    image_size = np.int32(image.shape[:2])

    def erase():
        area, ratio, *position = tf.unstack(
            tf.random.stateless_uniform([4, 10], tf.random.fold_in(seed, 1))
        )
        area = (0.02 + (0.33 - 0.02) * area) * np.float32(image_size.prod())
        ratio = 0.3 * (3.3 / 0.3) ** ratio
        sides = [tf.sqrt(area * ratio), tf.sqrt(area / ratio)]
        sizes = tf.cast(tf.round(tf.stack(sides, axis=1)), tf.int32)
        fits = tf.reduce_all(sizes < image_size, axis=1)
        first = tf.argmax(fits)
        size = tf.where(fits[first], sizes[first], 0)
        free = tf.cast(image_size - size + 1, tf.float32)
        low = tf.cast(tf.stack(position, axis=1)[first] * free, tf.int32)
        mask = rectangle_mask(image.shape, low, low + size)
        color = np.broadcast_to(np.float32(MEAN_COLOR), image.shape)
        return (1.0 - mask) * image + mask * color

    chance = tf.random.stateless_uniform([], seed)
    return tf.cond(chance < probability, erase, lambda: image)


AUGMENTATIONS = {
    "flip": flip,
    "shift": shift,
    "color_jitter": color_jitter,
    "rand_augment": rand_augment,
    "trivial_augment": trivial_augment,
    "auto_augment": auto_augment,
    "random_erasing": random_erasing,
}


def invert(image, magnitude=None):
    """Inverts all pixels."""
    return 255.0 - image


def solarize(image, magnitude):
    """Inverts the pixels with a value of at least `magnitude`."""
    is_bright = tf.cast(image >= magnitude, tf.float32)
    return tf.abs(255.0 * is_bright - image)


def posterize(image, magnitude):
    """Keeps the `magnitude` most significant of eight bits."""
    step = 2.0 ** (8.0 - tf.round(tf.cast(magnitude, tf.float32)))
    return tf.floor(image / step) * step


def brightness(image, magnitude):
    """Blends with black: -1 is black, 0 the image, 1 twice as bright."""
    return _blend(0.0, image, magnitude)


def contrast(image, magnitude):
    """Blends with the mean of the grayscale image."""
    mean = tf.floor(tf.reduce_mean(_gray(image)) + 0.5)
    return _blend(mean, image, magnitude)


def color(image, magnitude):
    """Blends with the grayscale image, which changes the saturation."""
    return _blend(_gray(image), image, magnitude)


def sharpness(image, magnitude):
    """Blends with a smoothed image."""
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = image[1:-1, 1:-1]
    detail = inner - tf.round((box + 4.0 * inner) / 13.0)
    # The border pixels lack neighbors and stay unchanged.
    detail = tf.pad(detail, [[1, 1], [1, 1], [0, 0]])
    return _blend(image - detail, image, magnitude)


def autocontrast(image, magnitude=None):
    """Stretches each channel to the range from 0 to 255."""
    # One axis at a time: both at once take ten times as long.
    low = tf.reduce_min(tf.reduce_min(image, axis=0), axis=0)
    high = tf.reduce_max(tf.reduce_max(image, axis=0), axis=0)
    is_flat, width = low == high, image.shape[1]
    start = tf.tile(tf.where(is_flat, 0.0, low), [width])
    span = tf.tile(tf.where(is_flat, 255.0, high - low), [width])
    rows = tf.floor((_rows(image) - start) * 255.0 / span)
    return tf.reshape(rows, image.shape)


def equalize(image, magnitude=None):
    """Equalizes the histogram of each channel."""
    offsets = np.tile(np.int32([0, 256, 512]), image.shape[1])
    levels = tf.cast(_rows(image), tf.int32) + offsets
    counts = tf.math.bincount(levels, minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    darker = tf.cumsum(counts, axis=1, exclusive=True)
    not_brightest = tf.where(counts > 0, darker, 0)
    step = tf.reduce_max(not_brightest, axis=1, keepdims=True) // 255
    table = tf.minimum((step // 2 + darker) // tf.maximum(step, 1), 255)
    # With too few pixels or a single level, the channel stays unchanged.
    table = tf.where(step == 0, tf.range(256), table)
    table = tf.reshape(tf.cast(table, tf.float32), [-1])
    # `gather` takes 1.5 times as long.
    rows = tf.gather_nd(table, levels[..., tf.newaxis])
    return tf.reshape(rows, image.shape)


def shear_x(image, magnitude):
    """Shifts each row left by `magnitude` times its y coordinate."""
    return _warp(image, [[1.0, magnitude, 0.0], [0.0, 1.0, 0.0]])


def shear_y(image, magnitude):
    """Shifts each column up by `magnitude` times its x coordinate."""
    return _warp(image, [[1.0, 0.0, 0.0], [magnitude, 1.0, 0.0]])


def translate_x(image, magnitude):
    """Translates right by `magnitude` pixels, rounded toward zero."""
    return _translate(image, [0.0, magnitude, 0.0])


def translate_y(image, magnitude):
    """Translates down by `magnitude` pixels, rounded toward zero."""
    return _translate(image, [magnitude, 0.0, 0.0])


def rotate(image, magnitude):
    """Rotates by `magnitude` degrees counterclockwise around the center."""
    angle = tf.cast(magnitude, tf.float64) * (np.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = image.shape[0] / 2.0, image.shape[1] / 2.0
    to_x = [cos, -sin, x - cos * x + sin * y]
    to_y = [sin, cos, y - sin * x - cos * y]
    return _warp(image, [to_x, to_y])


PILLOW_OPERATIONS = {
    "identity": lambda image, magnitude: image,
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


def random_integers(seed, counts):
    """Draws an integer from 0 to count - 1 for each of `counts`."""
    uniform = tf.random.stateless_uniform([len(counts)], seed)
    return tf.unstack(tf.cast(uniform * np.float32(counts), tf.int32))


def rectangle_mask(shape, low, high):
    """Returns float32 of `shape`: 1 from (y, x) `low` up to `high`, else 0."""

    def mask(axis):
        positions = tf.range(shape[axis])
        is_inside = (low[axis] <= positions) & (positions < high[axis])
        return tf.cast(is_inside, tf.float32)

    rows = mask(0)[:, tf.newaxis] * tf.repeat(mask(1), shape[2])
    return tf.reshape(rows, shape)


def _standard_space(image, num_levels):
    """Returns the search space of AutoAugment and RandAugment."""
    height, width, _ = image.shape
    # AutoAugment translates its 331 x 331 images by up to 150 pixels.
    reach = (width * 150 / 331, height * 150 / 331)
    return _space(
        num_levels, shear=0.3, translate=reach, rotate=30, enhance=0.9, bits=4
    )


def _space(num_levels, shear, translate, rotate, enhance, bits):
    """Returns {operation: magnitudes [num_levels, 2], by level and sign}."""
    ranges = {
        "identity": (0.0, 0.0),
        "shear_x": (0.0, shear),
        "shear_y": (0.0, shear),
        "translate_x": (0.0, translate[0]),
        "translate_y": (0.0, translate[1]),
        "rotate": (0.0, rotate),
        "brightness": (0.0, enhance),
        "color": (0.0, enhance),
        "contrast": (0.0, enhance),
        "sharpness": (0.0, enhance),
        "posterize": (8.0, bits),
        "solarize": (255.0, 0.0),
        "autocontrast": (0.0, 0.0),
        "equalize": (0.0, 0.0),
    }
    space = {}
    for name, (weakest, strongest) in ranges.items():
        levels = np.linspace(weakest, strongest, num_levels, dtype=np.float32)
        # A range that starts at 0 has both signs.
        opposite = -levels if weakest == 0.0 else levels
        space[name] = np.stack([levels, opposite], axis=1)
    return space


def _apply_level(space, choice, image, level, sign):
    """Applies the operation with the index `choice` in a search space."""
    magnitudes = np.stack(list(space.values()))
    magnitude = tf.gather_nd(magnitudes, [choice, level, sign])
    return _apply(space, choice, image, magnitude)


def _apply(names, choice, image, magnitude):
    """Applies the operation `names[choice]` without running the others."""
    branches = [
        functools.partial(PILLOW_OPERATIONS[name], image, magnitude)
        for name in names
    ]
    return tf.switch_case(choice, branches)


def _blend(degenerate, image, magnitude):
    """Interpolates from `degenerate` (-1) to the image (0) and beyond."""
    blended = degenerate + (1.0 + magnitude) * (image - degenerate)
    return tf.floor(tf.clip_by_value(blended, 0.0, 255.0))


def _gray(image):
    """Returns three equal channels: the luma of ITU-R 601, rounded."""
    # The weights of Pillow, times 65536. Their sums are exact in float32.
    weights = np.float32([[19595] * 3, [38470] * 3, [7471] * 3])
    return tf.floor((tf.tensordot(image, weights, 1) + 32768.0) / 65536.0)


def _rows(image):
    """Reshapes the image to [height, width * 3]."""
    return tf.reshape(image, [image.shape[0], -1])


def _translate(image, offset):
    """Translates by `offset` (y, x, channel) and fills with zeros."""
    offset = tf.cast(offset, tf.int32)
    before, after = tf.maximum(offset, 0), tf.maximum(-offset, 0)
    padded = tf.pad(image, tf.stack([before, after], axis=1))
    return tf.slice(padded, after, image.shape)


def _warp(image, matrix):
    """Applies an affine transform (nearest pixel, zeros outside).

    Args:
      image: float32 [height, width, 3].
      matrix: numbers [2, 3] that map (x, y, 1) in the result to (x, y) in the
        image. (0.5, 0.5) is the center of the first pixel.
    """
    height, width, _ = image.shape

    def source(row, size):
        a, b, c = (tf.cast(number, tf.float64) for number in row)
        # Pillow steps between pixel centers in fixed point, in units of
        # 1/65536. The same steps select the same pixels.
        steps = tf.floor(65536.0 * tf.stack([a, b, c + (a + b) / 2.0]) + 0.5)
        a, b, c = tf.unstack(tf.cast(steps, tf.int32))
        fixed = a * tf.range(width) + c + b * tf.range(height)[:, tf.newaxis]
        return tf.clip_by_value(tf.bitwise.right_shift(fixed, 16), -1, size)

    x, y = source(matrix[0], width), source(matrix[1], height)
    # Coordinates outside the image point to a black border. The projective
    # transform of TensorFlow takes more than twice as long.
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    indices = (width + 2) * (y + 1) + x + 1
    pixels = tf.reshape(padded, [-1, 3])
    return tf.gather_nd(pixels, indices[..., tf.newaxis])
