"""Crops of images against Pillow's."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from samples import encoded, smooth_pixels
from sklearn.datasets import load_sample_image

from resnet_layers import Preprocessing
from train_loop.data.decode import (
    CROPS,
    INTERPOLATIONS,
    center_crop,
    random_resized_crop,
)


def evaluation(image_size, crop_fraction=1.0, interpolation="bilinear"):
    return Preprocessing(None, image_size, crop_fraction, interpolation)


@pytest.mark.parametrize("file_format", ["jpeg", "png", "bmp"])
@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_center_crop_is_pillows(file_format, crop_fraction, interpolation):
    file = encoded(smooth_pixels(), file_format, quality=95)
    image = center_crop(file, evaluation(24, crop_fraction, interpolation))
    with PIL.Image.open(io.BytesIO(file)) as opened:
        side = round(60 * crop_fraction)
        left, top = (90 - side) // 2, (60 - side) // 2
        box = (left, top, left + side, top + side)
        resampling = PIL.Image.Resampling[interpolation.upper()]
        expected = opened.crop(box).resize((24, 24), resampling)
    assert image.shape == (24, 24, 3)
    # Pillow rounds after each of two passes.
    np.testing.assert_allclose(image, np.asarray(expected), atol=1.01)


KINDS = {
    "grey.jpg": ("L", "jpeg"),
    "CMYK.jpg": ("CMYK", "jpeg"),
    "RGBA.png": ("RGBA", "png"),
    "palette.png": ("P", "png"),
    "grey with alpha.png": ("LA", "png"),
    "black and white.png": ("1", "png"),
    "16 bits.png": ("I;16", "png"),
    "palette.bmp": ("P", "bmp"),
    "grey.bmp": ("L", "bmp"),
    "RGBA.bmp": ("RGBA", "bmp"),
    "palette.gif": ("P", "gif"),
    "RGB.webp": ("RGB", "webp"),
    "RGBA.webp": ("RGBA", "webp"),
    "RGB.tiff": ("RGB", "tiff"),
    "palette.tiff": ("P", "tiff"),
    "CMYK.tiff": ("CMYK", "tiff"),
    "black and white.tiff": ("1", "tiff"),
    "16 bits.tiff": ("I;16", "tiff"),
}


@pytest.fixture(scope="module")
def crop_to_50():
    """Returns the crop as a graph that all kinds of images go through."""
    preprocessing = evaluation(50)
    return tf.function(
        lambda file: center_crop(file, preprocessing),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


@pytest.mark.parametrize("name", KINDS)
def test_images_of_all_kinds_come_out_as_pillows_rgb(name, crop_to_50):
    mode, file_format = KINDS[name]
    real = PIL.Image.fromarray(load_sample_image("flower.jpg")[:200:2, :300:2])
    if mode == "I;16":
        grey = np.asarray(real.convert("L"))
        image = PIL.Image.fromarray(grey.astype("uint16") * 257)
        expected = np.repeat(grey[..., None], 3, axis=-1)
    else:
        image = real.convert(mode)
        expected = None
    file = io.BytesIO()
    image.save(file, file_format, quality=95)
    if expected is None:
        with PIL.Image.open(file) as opened:
            expected = np.asarray(opened.convert("RGB"))
    expected = PIL.Image.fromarray(expected[:, 25:125]).resize(
        (50, 50), PIL.Image.BILINEAR
    )
    decoded = crop_to_50(tf.constant(file.getvalue()))
    np.testing.assert_allclose(decoded, np.asarray(expected), atol=1.51)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_pixels_of_no_known_range_are_refused(dtype, crop_to_50):
    """Pillow would make them black and white."""
    file = encoded(np.full((60, 60), 3000, dtype), "tiff")
    with pytest.raises(tf.errors.OpError, match="numbers of 32 bits"):
        crop_to_50(tf.constant(file))


@pytest.mark.parametrize("file_format", ["gif", "webp", "png", "tiff"])
def test_first_frame_of_an_animation_counts(file_format):
    frames = [
        PIL.Image.fromarray(np.full((20, 20, 3), shade, "uint8"))
        for shade in (50, 200)
    ]
    file = io.BytesIO()
    frames[0].save(file, file_format, save_all=True, append_images=frames[1:])
    image = center_crop(file.getvalue(), evaluation(8))
    np.testing.assert_allclose(image, 50, atol=1)


def test_large_images_are_antialiased_in_training():
    """Stripes a pixel wide become grey, not wider stripes."""
    stripes = np.zeros((400, 400, 3), "uint8")
    stripes[:, ::2] = 255
    image = random_resized_crop(
        encoded(stripes, "png"),
        [1, 2],
        evaluation(32),
        smallest=0.9,
        narrowest=1,
        widest=1.01,
    )
    np.testing.assert_allclose(image[2:-2, 2:-2], 127.5, atol=12)


def test_crops_stay_within_scale_and_ratio():
    y, x = np.mgrid[0:200, 0:300]
    file = encoded(np.uint8(np.stack([x * 0.8, y, 0 * x], -1)), "png")
    for index in range(50):
        image = random_resized_crop(
            file, [1, index], evaluation(32), 0.2, 0.3, 1.5, 2.0
        )
        width = float(tf.reduce_mean(image[:, -1, 0] - image[:, 0, 0])) / 0.8
        height = float(tf.reduce_mean(image[-1, :, 1] - image[0, :, 1]))
        assert 1.4 < width / height < 2.1
        assert 0.18 < width * height / 60_000 < 0.32


def test_grey_images_become_rgb():
    file = encoded(smooth_pixels(channels=1), "png")
    image = center_crop(file, evaluation(60)).numpy()
    assert image.shape == (60, 60, 3)
    assert np.ptp(image, axis=-1).max() == 0
    assert np.ptp(image) > 100


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_random_crop_is_a_part_of_the_image(file_format):
    y, x = np.mgrid[0:200, 0:200]
    pixels = np.uint8(np.stack([x, y, np.zeros_like(x)], -1))
    file = encoded(pixels, file_format, quality=95)
    areas = []
    for index in range(100):
        image = random_resized_crop(file, [1, index], evaluation(32))
        left, right = image[:, 0, 0], image[:, -1, 0]
        top, bottom = image[0, :, 1], image[-1, :, 1]
        width = float(tf.reduce_mean(right - left))
        height = float(tf.reduce_mean(bottom - top))
        assert 0.7 < width / height < 1.42
        areas.append(width * height / 200**2)
    assert 0.05 < min(areas) < 0.2
    assert 0.65 < max(areas) <= 1.0


@pytest.mark.parametrize("crop", CROPS.values())
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_training_crops_follow_their_seed(crop, interpolation):
    file = encoded(smooth_pixels(), "jpeg", quality=95)
    preprocessing = evaluation(32, interpolation=interpolation)
    first, again, other = (crop(file, [3, s], preprocessing) for s in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 10


def test_training_crops_interpolate_as_evaluation_does():
    file = encoded(smooth_pixels(), "png")
    images = [
        random_resized_crop(file, [3, 1], evaluation(32, interpolation=name))
        for name in INTERPOLATIONS
    ]
    assert np.abs(images[0] - images[1]).max() > 0.1
