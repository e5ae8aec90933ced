"""Crops and augmentations against Pillow and plain NumPy."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from train_loop import augment, preprocessing


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
def test_center_crop_is_pillows(file_format, crop_fraction):
    encoded = encode(picture(), file_format)
    image = preprocessing.center_crop(encoded, 24, crop_fraction)
    with PIL.Image.open(io.BytesIO(encoded)) as opened:
        side = round(60 * crop_fraction)
        left, top = (90 - side) // 2, (60 - side) // 2
        box = (left, top, left + side, top + side)
        expected = opened.crop(box).resize((24, 24), PIL.Image.BILINEAR)
    assert image.shape == (24, 24, 3)
    # Pillow rounds after each of two passes.
    np.testing.assert_allclose(image, np.asarray(expected), atol=1.01)


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


@pytest.mark.parametrize("function", augment.AUGMENTATIONS.values())
def test_augmentations_follow_their_seed(function):
    image = tf.cast(picture(32, 32), tf.float32)
    np.testing.assert_array_equal(
        function(image, [1, 2]), function(image, [1, 2])
    )
    results = {function(image, [1, s]).numpy().tobytes() for s in range(20)}
    assert len(results) > 1
    assert function(image, [1, 2]).shape == image.shape


def test_flip_mirrors_half_of_the_pictures():
    image = tf.cast(picture(8, 8), tf.float32)
    flips = 0
    for index in range(200):
        result = augment.flip(image, [0, index]).numpy()
        flipped = np.array_equal(result, image[:, ::-1])
        assert flipped or np.array_equal(result, image)
        flips += flipped
    assert 70 < flips < 130


def test_shift_moves_by_up_to_an_eighth():
    image = tf.cast(picture(16, 16), tf.float32).numpy()
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    moves = {
        padded[y : y + 16, x : x + 16].tobytes(): (y, x)
        for y in range(5)
        for x in range(5)
    }
    seen = {
        moves[augment.shift(tf.constant(image), [0, i]).numpy().tobytes()]
        for i in range(200)
    }
    assert len(seen) == 25


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
    np.testing.assert_allclose(
        preprocessing.denormalize(normal, name), image / 255, atol=1e-6
    )
