"""Single operations on an image against Pillow's."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import tensorflow as tf
from seeds import PHOTOS

from train_loop.data.operations import OPERATIONS

RNG = np.random.default_rng(0)
# An odd size, every level of grey, a single one, and fewer pixels than levels.
IMAGES = [
    *PHOTOS,
    PHOTOS[0][:63, :63],
    RNG.integers(0, 256, (21, 34, 3), np.uint8),
    RNG.integers(90, 110, (32, 32, 3), np.uint8),
    np.full((8, 9, 3), (0, 77, 255), np.uint8),
    RNG.integers(0, 256, (4, 5, 3), np.uint8),
]


def affine(image, *matrix):
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix)


def enhance(kind):
    return lambda image, magnitude: kind(image).enhance(1.0 + magnitude)


PILLOW = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, m: affine(image, 1, m, 0, 0, 1, 0),
    "shear_y": lambda image, m: affine(image, 1, 0, 0, m, 1, 0),
    "translate_x": lambda image, m: affine(image, 1, 0, -int(m), 0, 1, 0),
    "translate_y": lambda image, m: affine(image, 1, 0, 0, 0, 1, -int(m)),
    "rotate": lambda image, m: image.rotate(m),
    "brightness": enhance(PIL.ImageEnhance.Brightness),
    "color": enhance(PIL.ImageEnhance.Color),
    "contrast": enhance(PIL.ImageEnhance.Contrast),
    "sharpness": enhance(PIL.ImageEnhance.Sharpness),
    "posterize": lambda image, m: PIL.ImageOps.posterize(image, int(m)),
    "solarize": PIL.ImageOps.solarize,
    "autocontrast": lambda image, _: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, _: PIL.ImageOps.equalize(image),
    "invert": lambda image, _: PIL.ImageOps.invert(image),
}
SHEARS = [-0.99, -0.3, -0.2, -0.09, 0.0, 0.03, 0.1, 0.25, 0.5, 0.99]
FACTORS = [-1.0, -0.99, -0.27, 0.0, 0.09, 0.5, 0.9, 3.0]
TRANSLATIONS = [-200.0, -32.0, -3.7, -0.9, 0.0, 0.9, 5.0, 12.3, 64.0]
MAGNITUDES = {
    "shear_x": SHEARS,
    "shear_y": SHEARS,
    "translate_x": TRANSLATIONS,
    "translate_y": TRANSLATIONS,
    "rotate": [-135.0, -90.0, -45.0, -9.0, 0.0, 4.5, 30.0, 90.0, 121.5, 180.0],
    "brightness": FACTORS,
    "color": FACTORS,
    "contrast": FACTORS,
    "sharpness": FACTORS,
    "posterize": [8.0, 7.0, 5.0, 4.0, 2.0, 1.0],
    "solarize": [0.0, 1.0, 84.9, 128.0, 178.5, 255.0, 256.0],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows(name):
    for pixels in IMAGES:
        image = tf.constant(pixels, tf.float32)
        for magnitude in np.float32(MAGNITUDES.get(name, [0.0])):
            result = OPERATIONS[name](image, magnitude).numpy()
            expected = PILLOW[name](
                PIL.Image.fromarray(pixels), float(magnitude)
            )
            expected = np.asarray(expected, np.float32)
            if name == "autocontrast":
                # Pillow multiplies by a rounded quotient. Where the exact
                # result is whole, it may fall just short and be cut to less.
                low, high = pixels.min((0, 1)), pixels.max((0, 1))
                stretched = (pixels - low) * np.int32(255)
                is_whole = stretched % np.maximum(high - low, 1) == 0
                one_less = is_whole & (expected == result - 1)
                assert one_less.mean() < 0.2
                expected[one_less] += 1
            np.testing.assert_array_equal(result, expected, str(magnitude))
