"""Orientation and transparency of images against Pillow."""

import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf
from samples import encoded, smooth_pixels

from resnet_layers import Preprocessing
from train_loop.data.decode import (
    READS_HEIF,
    center_crop,
    check_image,
    random_resized_crop,
    transcode,
)

UPRIGHT = Preprocessing(None, 40, 1.0, "bilinear", exif_orientation=True)
STORED = UPRIGHT._replace(exif_orientation=False)


def oriented(file_format, orientation, exif=None, **options):
    """Returns an image file of 40 x 60 pixels with different corners."""
    if exif is None:
        exif = PIL.Image.Exif()
        exif[0x010F] = "a camera"
        exif[0x0112] = orientation
        exif = exif.tobytes()
    return encoded(smooth_pixels()[:40, :60], file_format, exif=exif, **options)


def upright(file):
    with PIL.Image.open(io.BytesIO(file)) as image:
        return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))


@pytest.fixture(scope="module")
def crop_upright():
    """Returns the upright center crop as a graph without Python."""
    return tf.function(
        lambda file: center_crop(file, UPRIGHT),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "tiff"])
def test_center_crops_show_the_upright_image(file_format, crop_upright):
    options = {"lossless": True} if file_format == "webp" else {"quality": 95}
    for orientation in range(1, 9):
        file = oriented(file_format, orientation, **options)
        expected = upright(file)
        longer = max(expected.shape[:2])
        assert (expected.shape[0] == longer) == (orientation > 4)
        begin = (longer - 40) // 2
        rows, columns = slice(None), slice(begin, begin + 40)
        if orientation > 4:
            rows, columns = columns, rows
        image = crop_upright(transcode(file, True))
        np.testing.assert_allclose(image, expected[rows, columns], atol=4)
        if file_format == "tiff":
            # Pillow always rotates TIFF.
            continue
        stored = center_crop(transcode(file), STORED).numpy()
        expected = np.asarray(PIL.Image.open(io.BytesIO(file)))[:, 10:50]
        np.testing.assert_allclose(stored, expected, atol=4)


def exif_of(byte_order, *entries, magic=42):
    """Returns EXIF with (tag, type, count, value) entries."""
    order = {b"II": "<", b"MM": ">"}[byte_order]
    parts = [byte_order, struct.pack(f"{order}HIH", magic, 8, len(entries))]
    for tag, kind, count, value in entries:
        code = "HHIHxx" if kind == 3 else "HHII"
        parts.append(struct.pack(order + code, tag, kind, count, value))
    return b"Exif\0\0" + b"".join(parts)


EXIFS = {
    "little endian": exif_of(b"II", (0x112, 3, 1, 6)),
    "big endian": exif_of(b"MM", (0x112, 3, 1, 6)),
    "32 bits": exif_of(b"II", (0x112, 4, 1, 6)),
    "32 bits, big endian": exif_of(b"MM", (0x112, 4, 1, 6)),
    "twice": exif_of(b"MM", (0x112, 3, 1, 8), (0x112, 3, 1, 6)),
    "zero": exif_of(b"II", (0x112, 3, 1, 0)),
    "nine": exif_of(b"II", (0x112, 3, 1, 9)),
    "two values": exif_of(b"II", (0x112, 3, 2, 6)),
    "no orientation": exif_of(b"II", (0x110, 3, 1, 6)),
    "no entry": exif_of(b"MM"),
    "not TIFF": exif_of(b"II", (0x112, 3, 1, 6), magic=41),
    "truncated": exif_of(b"II", (0x112, 3, 1, 6))[:20],
    "only the name": b"Exif\0\0",
    "offset past the end": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "many entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "garbage": b"Exif\0\0" + bytes(range(256)),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Metadata Warning")
@pytest.mark.parametrize("name", EXIFS)
@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_exif_is_read_as_pillow_does(name, file_format, crop_upright):
    if name == "twice" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow used the last of two entries before version 13.")
    file = oriented(file_format, None, EXIFS[name], quality=95)
    try:
        expected = upright(file)
    except SyntaxError:
        # Pillow raises it for a damaged PNG.
        expected = np.asarray(PIL.Image.open(io.BytesIO(file)))
    expected = expected[10:50] if len(expected) > 40 else expected[:, 10:50]
    np.testing.assert_allclose(crop_upright(file), expected, atol=4)


@pytest.mark.parametrize("segments", [b"", b"\xff\xed\0\x04ab\xff\xfe\0\3c"])
@pytest.mark.parametrize("jfif", [True, False])
def test_exif_is_found_among_other_segments(segments, jfif, crop_upright):
    file = oriented("jpeg", 6, quality=95)
    assert file[2:6] == b"\xff\xe0\0\x10"
    file = file[: 20 if jfif else 2] + segments + file[20:]
    np.testing.assert_allclose(crop_upright(file), upright(file)[10:50], atol=4)


@pytest.mark.slow
def test_training_crops_show_the_upright_image():
    """The crop of a file equals that of an upright copy by Pillow."""
    preprocessing = UPRIGHT._replace(image_size=32)
    for orientation in (3, 6):
        file = oriented("png", orientation)
        expected = encoded(upright(file), "png")
        np.testing.assert_allclose(
            random_resized_crop(file, [1, 2], preprocessing),
            random_resized_crop(expected, [1, 2], preprocessing),
            atol=1e-3,
        )


TRANSPARENT = {
    "RGBA.png": ("RGBA", "png"),
    "gray.png": ("LA", "png"),
    "palette.png": ("P", "png"),
    "palette.gif": ("P", "gif"),
    "RGBA.webp": ("RGBA", "webp"),
    "RGBA.tiff": ("RGBA", "tiff"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_blend_with_white(name, crop_upright):
    mode, file_format = TRANSPARENT[name]
    pixels = np.dstack([smooth_pixels()[:40, :40], np.zeros((40, 40), "uint8")])
    pixels[..., 3] = np.arange(1600).reshape(40, 40) % 256
    image = PIL.Image.fromarray(pixels)
    options = {}
    if mode == "P":
        image = image.convert("RGB").quantize(255)
        options["transparency"] = int(np.asarray(image)[0, 0])
    file = io.BytesIO()
    image.convert(mode).save(file, file_format, lossless=True, **options)
    with PIL.Image.open(file) as opened:
        layer = opened.convert("RGBA")
    white = PIL.Image.new("RGBA", layer.size, "white")
    expected = PIL.Image.alpha_composite(white, layer).convert("RGB")
    decoded = crop_upright(transcode(file.getvalue(), True))
    np.testing.assert_array_equal(decoded, np.asarray(expected))
    assert np.asarray(expected)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("color", [(9, 8, 7), 9])
def test_transparent_color_of_png_is_white(color, crop_upright):
    mode = "RGB" if isinstance(color, tuple) else "L"
    file = io.BytesIO()
    PIL.Image.new(mode, (40, 40), color).save(file, "png", transparency=color)
    assert np.all(crop_upright(file.getvalue()) == 255)


@pytest.mark.skipif(not READS_HEIF, reason="Needs the extra heif.")
def test_photos_of_iphones_are_upright(crop_upright):
    file = oriented("heif", 6, quality=-1)
    image = crop_upright(transcode(file, True))
    np.testing.assert_allclose(image, upright(file)[10:50], atol=4)


@pytest.mark.parametrize("head", [b"\xff\xd8\xff\xe0", b"\x89PNG"])
def test_files_truncated_in_the_header_are_decoding_errors(head, crop_upright):
    for length in (4, 12, 30):
        file = head + bytes(length - 4)
        for decode in (crop_upright, tf.function(check_image)):
            with pytest.raises(tf.errors.InvalidArgumentError):
                decode(tf.constant(file))
