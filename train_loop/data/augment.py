"""Augmentations: how a training image is varied after it was decoded.

An augmentation takes a float32 [height, width, 3] image, RGB from 0 to 255, and
an int [2] seed, and returns an image of the same shape; the same seed gives the
same image.
"""

# Not Keras's layers of these names: they draw from a generator that every call
# moves on, even where a seed is handed in, and choose once for a whole batch.

import functools
from typing import Annotated

import numpy as np
import tensorflow as tf

from resnet_layers import NORMALIZATIONS
from train_loop.data.draws import box, draw
from train_loop.data.operations import OPERATIONS
from train_loop.values import Bounds

# The usual normalisation maps it to zero.
MEAN_COLOR = NORMALIZATIONS["imagenet"].mean


def flip(image, seed):
    """Mirrors left and right in half of the cases."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def shift(image, seed):
    """Moves the image by up to an eighth of its side, filling with zeros.

    The pad-and-crop of He et al., 2015, who moved 32 x 32 images by 4.
    """
    margin = image.shape[0] // 8
    padded = tf.pad(image, [[margin, margin], [margin, margin], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


def color_jitter(
    image, seed, strength: Annotated[float, Bounds(0.0, 10.0)] = 0.4
):
    """Varies brightness, contrast and saturation, in random order.

    Each by a factor that is uniform in [max(0, 1 - strength), 1 + strength].
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
    """Applies `num_layers` random operations of level `magnitude`, 0 to 30.

    Cubuk et al., 2019, https://arxiv.org/abs/1909.13719, with the operations
    and levels of torchvision.
    """
    space = _standard_space(image, num_levels=31)
    image = tf.round(image)
    for layer in range(num_layers):
        layer_seed = tf.random.fold_in(seed, layer)
        choice, sign = draw(layer_seed, [len(space), 2])
        image = _apply_level(space, choice, image, magnitude, sign)
    return image


def trivial_augment(image, seed):
    """Applies one random operation of a random level.

    Müller and Hutter, 2021, https://arxiv.org/abs/2103.10158: the wide space.
    """
    space = _space(
        31, shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, bits=2
    )
    choice, level, sign = draw(seed, [len(space), 31, 2])
    return _apply_level(space, choice, tf.round(image), level, sign)


# Pairs of (operation, its probability, its level from 0 to 9).
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


def auto_augment(image, seed):
    """Applies one of the 25 pairs of operations that were learned on ImageNet.

    Cubuk et al., 2018, https://arxiv.org/abs/1805.09501, with the levels of
    torchvision.
    """
    space = _standard_space(image, num_levels=10)
    space["invert"] = space["identity"]
    names = list(space)
    policy = np.array(IMAGENET_POLICY, dtype=object)
    policy[..., 0] = np.vectorize(names.index)(policy[..., 0])
    index, *signs = draw(seed, [len(policy), 2, 2])
    pair = tf.gather(np.float32(policy), index)
    choices, probabilities, levels = tf.unstack(pair, axis=-1)
    chances = tf.random.stateless_uniform([2], tf.random.fold_in(seed, 1))
    unchanged = float(names.index("identity"))
    choices = tf.where(chances < probabilities, choices, unchanged)
    choices, levels = tf.cast(choices, tf.int32), tf.cast(levels, tf.int32)
    image = tf.round(image)
    for turn, sign in enumerate(signs):
        image = _apply_level(space, choices[turn], image, levels[turn], sign)
    return image


def random_erasing(
    image, seed, probability: Annotated[float, Bounds(0.0, 1.0)] = 0.25
):
    """Covers a rectangle with the mean colour of ImageNet.

    Zhong et al., 2017, https://arxiv.org/abs/1708.04896: 2 to 33 % of the area,
    0.3 to 3.3 times as high as wide. Of ten rectangles the first that is lower
    and narrower than the image is taken; if none is, the image stays.
    """
    image_size = np.int32(image.shape[:2])

    def erase():
        area, proportion, *place = tf.unstack(
            tf.random.stateless_uniform([4, 10], tf.random.fold_in(seed, 1))
        )
        area = (0.02 + (0.33 - 0.02) * area) * np.float32(image_size.prod())
        proportion = 0.3 * (3.3 / 0.3) ** proportion
        sides = [tf.sqrt(area * proportion), tf.sqrt(area / proportion)]
        sizes = tf.cast(tf.round(tf.stack(sides, axis=1)), tf.int32)
        fits = tf.reduce_all(sizes < image_size, axis=1)
        first = tf.argmax(fits)
        size = tf.where(fits[first], sizes[first], 0)
        room = tf.cast(image_size - size + 1, tf.float32)
        low = tf.cast(tf.stack(place, axis=1)[first] * room, tf.int32)
        covered = box(image.shape, low, low + size)
        cover = np.broadcast_to(np.float32(MEAN_COLOR), image.shape)
        return (1.0 - covered) * image + covered * cover

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


def _standard_space(image, num_levels):
    """Returns the space of AutoAugment and RandAugment."""
    height, width, _ = image.shape
    # 150 pixels of the 331 that AutoAugment's images measured.
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
        # What starts at 0 goes both ways.
        other = -levels if weakest == 0.0 else levels
        space[name] = np.stack([levels, other], axis=1)
    return space


def _apply_level(space, choice, image, level, sign):
    """Applies the operation of a space that has the index `choice`."""
    magnitudes = np.stack(list(space.values()))
    magnitude = tf.gather_nd(magnitudes, [choice, level, sign])
    return _apply(space, choice, image, magnitude)


def _apply(names, choice, image, magnitude):
    """Applies one of the named operations; the others do not run."""
    branches = [
        functools.partial(OPERATIONS[name], image, magnitude) for name in names
    ]
    return tf.switch_case(choice, branches)
