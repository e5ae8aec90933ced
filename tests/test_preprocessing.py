"""Crops and normalisation against Pillow and Keras."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_image

from train_loop import preprocessing


def picture(height=60, width=90, channels=3):
    """Returns a smooth uint8 picture that differs everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) for c in range(channels)]
    return np.uint8(np.stack(waves, -1) * 60 + 125)


def encode(pixels, file_format):
    file = io.BytesIO()
    image = PIL.Image.fromarray(pixels.squeeze())
    image.save(file, file_format, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["jpeg", "png", "bmp"])
@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", preprocessing.INTERPOLATIONS)
def test_center_crop_is_pillows(file_format, crop_fraction, interpolation):
    encoded = encode(picture(), file_format)
    image = preprocessing.center_crop(encoded, 24, crop_fraction, interpolation)
    with PIL.Image.open(io.BytesIO(encoded)) as opened:
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
}


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_all_kinds_come_out_as_pillows_rgb(name):
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
    crop = tf.function(preprocessing.center_crop)
    decoded = crop(tf.constant(file.getvalue()), 50, 1.0)
    np.testing.assert_allclose(decoded, np.asarray(expected), atol=1.51)


def test_first_frame_of_an_animation_counts():
    frames = [
        PIL.Image.fromarray(np.full((20, 20, 3), shade, "uint8"))
        for shade in (50, 200)
    ]
    file = io.BytesIO()
    frames[0].save(file, "gif", save_all=True, append_images=frames[1:])
    image = preprocessing.center_crop(file.getvalue(), 8, 1.0)
    np.testing.assert_allclose(image, 50, atol=1)


def test_large_pictures_are_antialiased_in_training():
    """Stripes a pixel wide become grey, not wider stripes."""
    stripes = np.zeros((400, 400, 3), "uint8")
    stripes[:, ::2] = 255
    image = preprocessing.random_resized_crop(
        encode(stripes, "png"), 32, [1, 2], scale=(0.9, 1.0), ratio=(1, 1.01)
    )
    np.testing.assert_allclose(image[2:-2, 2:-2], 127.5, atol=12)


def test_crops_stay_within_scale_and_ratio():
    y, x = np.mgrid[0:200, 0:300]
    encoded = encode(np.uint8(np.stack([x * 0.8, y, 0 * x], -1)), "png")
    for index in range(50):
        image = preprocessing.random_resized_crop(
            encoded, 32, [1, index], scale=(0.2, 0.3), ratio=(1.5, 2.0)
        )
        width = float(tf.reduce_mean(image[:, -1, 0] - image[:, 0, 0])) / 0.8
        height = float(tf.reduce_mean(image[-1, :, 1] - image[0, :, 1]))
        assert 1.4 < width / height < 2.1
        assert 0.18 < width * height / 60_000 < 0.32


def test_grey_pictures_become_rgb():
    encoded = encode(picture(channels=1), "png")
    image = preprocessing.center_crop(encoded, 60, 1.0).numpy()
    assert image.shape == (60, 60, 3)
    assert np.ptp(image, axis=-1).max() == 0
    assert np.ptp(image) > 100


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_random_crop_is_a_part_of_the_picture(file_format):
    y, x = np.mgrid[0:200, 0:200]
    encoded = encode(
        np.uint8(np.stack([x, y, np.zeros_like(x)], -1)), file_format
    )
    areas = []
    for index in range(100):
        image = preprocessing.random_resized_crop(encoded, 32, [1, index])
        left, right = image[:, 0, 0], image[:, -1, 0]
        top, bottom = image[0, :, 1], image[-1, :, 1]
        width = float(tf.reduce_mean(right - left))
        height = float(tf.reduce_mean(bottom - top))
        assert 0.7 < width / height < 1.42
        areas.append(width * height / 200**2)
    assert 0.05 < min(areas) < 0.2
    assert 0.65 < max(areas) <= 1.0


@pytest.mark.parametrize("crop", preprocessing.TRAINING_CROPS.values())
def test_training_crops_follow_their_seed(crop):
    encoded = encode(picture(), "jpeg")
    first, again, other = (crop(encoded, 32, [3, s]) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 10


@pytest.mark.parametrize(
    ("name", "mode"),
    [("imagenet", "torch"), ("caffe", "caffe"), ("symmetric", "tf")],
)
def test_normalizations_are_those_of_keras_applications(name, mode):
    image = tf.cast(picture(), tf.float32)
    normal = preprocessing.normalize(image, name)
    preprocess = tf.keras.applications.imagenet_utils.preprocess_input
    expected = preprocess(image.numpy(), mode=mode)
    np.testing.assert_allclose(normal, expected, atol=1e-4)
    assert normal.shape == image.shape
    several = preprocessing.normalize(
        tf.stack([preprocessing.to_bytes(image)] * 2), name
    )
    np.testing.assert_allclose(several[1], expected, atol=1e-4)
