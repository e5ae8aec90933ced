"""A classifier against NumPy, Pillow and keras.applications."""

import io
import zipfile

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from samples import broken_files, encoded, smooth_pixels

from resnet_layers import (
    NORMALIZATIONS,
    VARIANTS,
    Normalization,
    Preprocessing,
)
from train_loop.errors import UserError
from train_loop.prediction import classifier as module
from train_loop.prediction.classifier import (
    Classifier,
    _encoded,
    normalize,
)

NAMES = ("ape", "bee", "cat", "dog", "elk")
# The crop of 32 x 48 pixels has 24 x 24 pixels and needs no resizing.
PREPROCESSING = Preprocessing(NORMALIZATIONS["caffe"], 24, 0.75, "bicubic")


BATCH_SIZE = 4


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", BATCH_SIZE)


@pytest.fixture(scope="module")
def classifier():
    model = VARIANTS["resnet_tiny"](num_classes=len(NAMES))
    model.build((None, 24, 24, 3))
    return Classifier(model, PREPROCESSING, list(NAMES))


def pixels(number=0):
    return np.roll(smooth_pixels(32, 48), number, axis=(0, 1))


def expected_prediction(classifier, square):
    """Returns {name: probability} of a uint8 [24, 24, 3] array."""
    inputs = square[..., ::-1] - np.float32((103.939, 116.779, 123.68))
    logits = classifier.model(inputs[np.newaxis], training=False).numpy()[0]
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    return dict(zip(NAMES, probabilities, strict=True))


def crop(image):
    return np.asarray(image.crop((12, 4, 36, 28)).convert("RGB"))


def check_prediction(prediction, expected, **tolerance):
    assert {*dict(prediction)} == {*NAMES}
    probabilities = [probability for _, probability in prediction]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(type(probability) is float for probability in probabilities)
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    assert dict(prediction) == pytest.approx(expected, **tolerance)


def test_grayscale_conversion_equals_pillow():
    image = pixels()
    normalized = normalize(image, Normalization((100.0,), (50.0,)))
    gray = np.asarray(PIL.Image.fromarray(image).convert("L"), "f4")
    assert normalized.shape == (32, 48, 1)
    # Pillow rounds.
    np.testing.assert_allclose(
        normalized[..., 0] * 50 + 100, gray, atol=0.5 + 1e-3
    )


def test_one_image_has_one_prediction(classifier):
    [prediction] = classifier(pixels())
    assert classifier.predict_one(pixels()) == prediction
    assert classifier.predict_one(pixels(), top_k=2) == prediction[:2]
    with pytest.raises(UserError, match="images: cannot be decoded"):
        classifier.predict_one([pixels()] * 2)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "bmp", "gif", "webp"])
def test_predictions_are_the_softmax_of_the_crop_of_pillow(
    classifier, file_format, tmp_path
):
    content = encoded(pixels(), file_format)
    path = tmp_path / f"image.{file_format}"
    path.write_bytes(content)
    with PIL.Image.open(io.BytesIO(content)) as image:
        expected = expected_prediction(classifier, crop(image))
    for image in (path, str(path), content, [path], [content]):
        [prediction] = classifier(image)
        check_prediction(prediction, expected, abs=1e-5)


def test_arrays_are_accepted_as_images(classifier):
    square = crop(PIL.Image.fromarray(pixels()))
    expected = expected_prediction(classifier, square)
    for image in (
        pixels(),
        [pixels()],
        pixels()[np.newaxis],
        tf.constant(pixels()),
        PIL.Image.fromarray(pixels())._repr_png_(),
    ):
        [prediction] = classifier(image)
        check_prediction(prediction, expected, abs=1e-5)


def pillow_images():
    """Returns {mode: PIL image with the size of `pixels()`}."""
    image = PIL.Image.fromarray(pixels())
    modes = ("1", "L", "LA", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
    images = {mode: image.convert(mode) for mode in modes if mode != "LAB"}
    images["LAB"] = PIL.Image.merge("LAB", image.split())
    images["La"] = images["LA"].convert("La")
    images["PA"] = images["P"].convert("PA")
    images["RGBa"] = images["RGBA"].convert("RGBa")
    return images


@pytest.mark.parametrize("mode", pillow_images())
def test_pil_images_of_every_mode_are_converted(classifier, mode):
    image = pillow_images()[mode]
    rgb = (image.convert("LA") if mode == "La" else image).convert("RGB")
    expected = expected_prediction(classifier, crop(rgb))
    for images in (image, [image]):
        [prediction] = classifier(images)
        check_prediction(prediction, expected, abs=1e-5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bits_of_pil_images_are_scaled(classifier, mode):
    gray = pixels()[..., 0]
    order = ">u2" if mode.endswith("B") else "<u2"
    content = (gray.astype("u2") * 256 + 9).astype(order).tobytes()
    [prediction] = classifier(PIL.Image.frombytes(mode, (48, 32), content))
    expected = expected_prediction(classifier, crop(PIL.Image.fromarray(gray)))
    check_prediction(prediction, expected, abs=1e-5)


def test_pil_images_keep_their_exif_orientation():
    image = PIL.Image.fromarray(pixels())
    exif = image.getexif()
    exif[0x0112] = 6
    with PIL.Image.open(io.BytesIO(_encoded(image))) as encoded_image:
        assert encoded_image.getexif()[0x0112] == 6


def test_damaged_exif_of_pil_images_is_ignored(classifier):
    image = PIL.Image.fromarray(pixels())
    damaged = io.BytesIO()
    image.save(damaged, "png", exif=b"Exif\0\0not TIFF")
    with PIL.Image.open(damaged) as opened:
        assert classifier(opened) == classifier(image)


def test_file_objects_and_generators_are_accepted(classifier, tmp_path):
    content = encoded(pixels(), "png")
    path = tmp_path / "image.png"
    path.write_bytes(content)
    expected = classifier(content)
    with path.open("rb") as file:
        assert classifier(file) == expected
    with zipfile.ZipFile(tmp_path / "image.zip", "w") as archive:
        archive.write(path, "image.png")
        with archive.open("image.png") as file:
            assert classifier([file]) == expected
    assert classifier(io.BytesIO(content)) == expected
    assert classifier(bytearray(content)) == expected
    count = BATCH_SIZE + 1
    images = (io.BytesIO(content) for _ in range(count))
    assert classifier(images) == expected * count
    assert classifier(iter(())) == []
    assert next(images, None) is None


def test_images_of_another_size_are_resized_as_pillow_does(classifier):
    large = smooth_pixels(64, 96)
    # Three quarters of the shorter side.
    image = PIL.Image.fromarray(large).crop((24, 8, 72, 56))
    square = np.asarray(image.resize((24, 24), PIL.Image.BICUBIC))
    [prediction] = classifier(large)
    expected = expected_prediction(classifier, square)
    # Pillow rounds after each of two passes.
    check_prediction(prediction, expected, abs=0.01)


def test_many_images_are_predicted_in_order(classifier, tmp_path):
    count = BATCH_SIZE + 5
    images, expected = [], []
    for number in range(count):
        array = pixels(number)
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded(array, "png"))
        images.append((array, path, str(path), path.read_bytes())[number % 4])
        expected.append(crop(PIL.Image.fromarray(array)))
    predictions = classifier(images)
    assert len(predictions) == count
    for prediction, square in zip(predictions, expected, strict=True):
        check_prediction(
            prediction, expected_prediction(classifier, square), abs=1e-4
        )
    assert len({str(prediction) for prediction in predictions}) > count // 2
    assert classifier([]) == []


def test_the_most_probable_classes_come_first(classifier):
    [prediction] = classifier(pixels())
    assert classifier(pixels(), top_k=2) == [prediction[:2]]
    assert classifier(pixels(), top_k=99) == [prediction]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_constant_weights_predict_like_variables(dtype):
    model = VARIANTS["resnet_tiny"](num_classes=len(NAMES), dtype=dtype)
    model.build((None, 24, 24, 3))
    classifier = Classifier(model, PREPROCESSING, NAMES)
    images = np.stack([pixels(n)[:24, :24] for n in (0, 5, 9)])
    expected = classifier.probabilities(images).numpy()
    classifier.make_weights_constant()
    model.set_weights([0.0 * weight for weight in model.get_weights()])
    for count in (1, 3):
        found = classifier.probabilities(images[:count]).numpy()
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)
    graph = classifier._probabilities.get_concrete_function().graph
    assert "ReadVariableOp" not in {o.type for o in graph.get_operations()}


def message(classifier, images):
    with pytest.raises(UserError) as error:
        classifier(images)
    [line] = str(error.value).splitlines()
    return line


@pytest.mark.parametrize("name", broken_files())
def test_broken_images_are_an_error(classifier, name, tmp_path):
    path = tmp_path / name
    content = broken_files()[name]
    path.write_bytes(content)
    for images in (path, str(path), [pixels(), path]):
        assert message(classifier, images).startswith(f"{path}: cannot be ")
    line = message(classifier, content)
    assert line.startswith("images: cannot be decoded. Pass image files (paths")


def test_missing_files_are_an_error(classifier, tmp_path):
    line = message(classifier, tmp_path / "missing.jpg")
    assert line == (
        f"{tmp_path / 'missing.jpg'}: cannot be read (No such file or "
        "directory). Pass a readable image file."
    )
    assert message(classifier, tmp_path) == (
        f"{tmp_path}: cannot be read (Is a directory). Pass a readable image "
        "file."
    )


@pytest.mark.parametrize(
    "array",
    [
        pixels().astype("float32"),
        pixels() / 255.0,
        pixels().astype("int64"),
        pixels().astype("uint16"),
        pixels()[:0],
        np.zeros((8, 8, 5), "uint8"),
        [pixels()[..., 0, 0]],
        [None],
        None,
        3,
        ["a", 3],
        io.StringIO("text"),
        io.BytesIO(),
        PIL.Image.new("F", (48, 32)),
        PIL.Image.new("I", (48, 32)),
        PIL.Image.new("RGB", (0, 32)),
    ],
)
def test_unsupported_values_are_an_error(classifier, array):
    assert "cannot be" in message(classifier, array)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("imagenet", "torch"), ("caffe", "caffe"), ("symmetric", "tf")],
)
def test_normalizations_equal_keras_applications(name, mode):
    image = smooth_pixels()
    normal = normalize(tf.cast(image, tf.float32), NORMALIZATIONS[name])
    preprocess = tf.keras.applications.imagenet_utils.preprocess_input
    expected = preprocess(image.astype("float32"), mode=mode)
    np.testing.assert_allclose(normal, expected, atol=1e-4)
    assert normal.shape == image.shape
    assert normal.dtype == tf.float32
    several = normalize(np.stack([image] * 2), NORMALIZATIONS[name])
    np.testing.assert_allclose(several[1], expected, atol=1e-4)


def test_logits_and_embeddings_have_the_same_inputs(classifier):
    images = np.stack([pixels()[:24, :24], pixels(5)[:24, :24]])
    inputs = normalize(images, NORMALIZATIONS["caffe"])
    model = classifier.model
    np.testing.assert_allclose(
        classifier.logits(images), model(inputs, training=False), atol=1e-5
    )
    np.testing.assert_allclose(
        classifier.embed(images), model.embed(inputs), atol=1e-5
    )
    np.testing.assert_allclose(
        model.head(classifier.embed(images)),
        classifier.logits(images),
        atol=1e-4,
    )
