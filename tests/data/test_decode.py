"""Crops of images against Pillow."""

import io
import math
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import scipy.stats
import tensorflow as tf
from samples import encoded, smooth_pixels
from seeds import run
from sklearn.datasets import load_sample_image

from resnet_layers import Preprocessing
from train_loop.data.decode import (
    CROPS,
    INTERPOLATIONS,
    MAX_PIXELS,
    READS_HEIF,
    center_crop,
    check_image,
    random_resized_crop,
    random_window,
    transcode,
)


def evaluation(image_size, crop_fraction=1.0, interpolation="bilinear"):
    return Preprocessing(None, image_size, crop_fraction, interpolation)


@pytest.mark.parametrize("file_format", ["jpeg", "png", "bmp"])
@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_center_crop_equals_pillow(file_format, crop_fraction, interpolation):
    file = encoded(smooth_pixels(), file_format, quality=95)
    image = center_crop(
        transcode(file), evaluation(24, crop_fraction, interpolation)
    )
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
    "gray.jpg": ("L", "jpeg"),
    "CMYK.jpg": ("CMYK", "jpeg"),
    "RGBA.png": ("RGBA", "png"),
    "palette.png": ("P", "png"),
    "gray with alpha.png": ("LA", "png"),
    "black and white.png": ("1", "png"),
    "16 bits.png": ("I;16", "png"),
    "palette.bmp": ("P", "bmp"),
    "gray.bmp": ("L", "bmp"),
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
    """Returns the center crop as one graph for all image modes."""
    preprocessing = evaluation(50)
    return tf.function(
        lambda file: center_crop(transcode(file), preprocessing),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_all_image_modes_decode_to_the_rgb_of_pillow(name, crop_to_50):
    mode, file_format = KINDS[name]
    real = PIL.Image.fromarray(load_sample_image("flower.jpg")[:200:2, :300:2])
    if mode == "I;16":
        gray = np.asarray(real.convert("L"))
        image = PIL.Image.fromarray(gray.astype("uint16") * 257)
        expected = np.repeat(gray[..., None], 3, axis=-1)
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
def test_pixels_with_an_unknown_range_are_rejected(dtype, crop_to_50):
    """Pillow would convert them to black and white."""
    file = encoded(np.full((60, 60), 3000, dtype), "tiff")
    with pytest.raises(tf.errors.OpError, match="32-bit pixels with an"):
        crop_to_50(tf.constant(file))


@pytest.mark.parametrize("file_format", ["gif", "webp", "png", "tiff"])
def test_first_frame_of_an_animation_is_used(file_format):
    frames = [
        PIL.Image.fromarray(np.full((20, 20, 3), shade, "uint8"))
        for shade in (50, 200)
    ]
    file = io.BytesIO()
    frames[0].save(file, file_format, save_all=True, append_images=frames[1:])
    image = center_crop(transcode(file.getvalue()), evaluation(8))
    np.testing.assert_allclose(image, 50, atol=1)


@pytest.mark.parametrize("size", [(420, 420), (300, 250), (100, 90), (2, 7)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_training_resizes_noise_as_pillow_does(size, interpolation):
    """Slightly or strongly downscaled, or upscaled, as in evaluation."""
    pixels = np.random.default_rng(0).integers(64, 192, (*size, 3), "uint8")
    image = random_resized_crop(
        encoded(pixels, "png"),
        [1, 2],
        evaluation(224, interpolation=interpolation),
        smallest=1,
        narrowest=size[1] / size[0],
        widest=size[1] / size[0],
    ).numpy()
    resampling = PIL.Image.Resampling[interpolation.upper()]
    expected = PIL.Image.fromarray(pixels).resize((224, 224), resampling)
    np.testing.assert_allclose(image, np.asarray(expected), atol=1.51)
    expected = tf.image.resize(
        pixels, [224, 224], interpolation, antialias=True
    )
    np.testing.assert_array_equal(image, expected)


def torchvisions_window(height, width, random, areas, ratios):
    """Returns `RandomResizedCrop.get_params` with a generator of NumPy."""
    for _ in range(10):
        area = height * width * random.uniform(*areas)
        ratio = math.exp(random.uniform(*np.log(ratios)))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = random.integers(0, height - h + 1)
            return top, random.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < min(ratios):
        h = round(w / min(ratios))
    elif width / height > max(ratios):
        w = round(h * max(ratios))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 64)])
def test_windows_have_the_distribution_of_torchvision(shape):
    """Kolmogorov-Smirnov tests of area, aspect ratio and position."""
    count, random = 4000, np.random.default_rng(0)
    ours = run(
        lambda seed: tf.stack(random_window(shape, seed)), num_seeds=count
    )
    areas, ratios = (0.08, 1.0), (3 / 4, 4 / 3)
    theirs = np.array(
        [
            torchvisions_window(*shape, random, areas, ratios)
            for _ in range(count)
        ]
    )

    def features(windows):
        top, left, height, width = np.float64(windows.T)
        return {
            "area": height * width,
            "ratio": width / height,
            "top": top,
            "left": left,
            "bottom": top + height,
            "right": left + width,
        }

    expected = features(theirs)
    for name, values in features(ours.numpy()).items():
        result = scipy.stats.ks_2samp(values, expected[name])
        assert result.pvalue > 1e-3, name
    assert ours.numpy().min() >= 0
    assert (ours[:, :2] + ours[:, 2:] <= shape).numpy().all()


@pytest.mark.parametrize(
    ("shape", "areas", "ratios"),
    [
        # No window fits: the largest centered window within the ratios.
        ((10, 1000), (0.9, 1.0), (3 / 4, 4 / 3)),
        ((1000, 10), (0.9, 1.0), (3 / 4, 4 / 3)),
        ((7, 101), (1.0, 1.0), (0.5, 0.5)),
        # Windows without a pixel do not fit.
        ((1, 1), (0.08, 0.1), (3 / 4, 4 / 3)),
    ],
)
def test_window_is_centered_if_none_fits(shape, areas, ratios):
    window = [int(each) for each in random_window(shape, [1, 2], areas, ratios)]
    random = np.random.default_rng(0)
    assert window == [*torchvisions_window(*shape, random, areas, ratios)]


def test_windows_have_at_least_one_pixel():
    windows = run(
        lambda seed: tf.stack(
            random_window((3, 200), seed, (0.001, 0.01), (0.01, 0.02))
        ),
        num_seeds=50,
    )
    assert windows[:, 2:].numpy().min() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "areas", "ratios", "expected"),
    [
        ("jpeg", (0.08, 1.0), (3 / 4, 4 / 3), (0.2, 0.65)),
        ("png", (0.2, 0.3), (1.5, 2.0), (0.24, 0.26)),
    ],
)
def test_random_crops_are_windows_of_the_image(
    file_format, areas, ratios, expected
):
    y, x = np.mgrid[0:200, 0:300]
    pixels = np.uint8(np.stack([x * 0.8, y, 0 * x], -1))
    file = encoded(pixels, file_format, quality=95)
    crop = tf.function(
        lambda seed: random_resized_crop(
            file, seed, evaluation(32), *areas, *ratios
        )
    )
    found = []
    for index in range(100):
        image = crop(tf.constant([1, index])).numpy()
        width = float(np.mean(image[:, -1, 0] - image[:, 0, 0])) / 0.8
        height = float(np.mean(image[-1, :, 1] - image[0, :, 1]))
        assert 0.93 * ratios[0] < width / height < 1.07 * ratios[1]
        found.append(width * height / 60_000)
    assert 0.6 * areas[0] < min(found) < expected[0]
    assert expected[1] < max(found) < 1.07 * areas[1]


@pytest.mark.parametrize("crop", CROPS.values())
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_training_crops_follow_their_seed(crop, interpolation):
    file = encoded(smooth_pixels(), "jpeg", quality=95)
    preprocessing = evaluation(32, interpolation=interpolation)
    first, again, other = (crop(file, [3, s], preprocessing) for s in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 10


def with_size(file_format, width, height):
    """Returns a file whose header has another image size."""
    pixels = np.zeros((8, 8), "uint8")
    file = bytearray(encoded(pixels, file_format))
    begin, layout = {
        "jpeg": (file.find(b"\xff\xc0") + 5, ">HH"),
        "png": (16, ">II"),
        "gif": (6, "<HH"),
        "bmp": (18, "<ii"),
    }[file_format]
    size = (height, width) if file_format == "jpeg" else (width, height)
    struct.pack_into(layout, file, begin, *size)
    if file_format == "png":
        struct.pack_into(">I", file, 29, zlib.crc32(file[12:29]))
    return bytes(file)


@pytest.mark.parametrize("file_format", ["jpeg", "png", "gif", "bmp"])
def test_files_of_all_formats_have_the_same_limit(file_format):
    message = f"more than {MAX_PIXELS:,} pixels"
    file = with_size(file_format, 32768, 16385)
    with pytest.raises(tf.errors.OpError, match=message):
        tf.function(check_image)(tf.constant(file))


@pytest.mark.skipif(READS_HEIF, reason="The extra is installed.")
def test_heic_content_requires_the_extra():
    file = b"\0\0\0\x18ftypheic" + bytes(40)
    with pytest.raises(tf.errors.OpError, match="HEIC requires the extra heif"):
        tf.function(check_image)(tf.constant(file))
