"""A classifier against plain NumPy, Pillow and keras.applications."""

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
# Of 32 x 48 pixels it takes 24 x 24, which need no resizing.
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


def expected_answer(classifier, square):
    """Returns {name: probability} of a uint8 [24, 24, 3] array."""
    inputs = square[..., ::-1] - np.float32((103.939, 116.779, 123.68))
    logits = classifier.model(inputs[np.newaxis], training=False).numpy()[0]
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    return dict(zip(NAMES, probabilities, strict=True))


def crop(image):
    return np.asarray(image.crop((12, 4, 36, 28)).convert("RGB"))


def check_answer(answer, expected, **tolerance):
    assert {*dict(answer)} == {*NAMES}
    probabilities = [probability for _, probability in answer]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(type(probability) is float for probability in probabilities)
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    assert dict(answer) == pytest.approx(expected, **tolerance)


def test_models_of_grey_images_get_what_pillow_makes_of_colors():
    image = pixels()
    normalized = normalize(image, Normalization((100.0,), (50.0,)))
    grey = np.asarray(PIL.Image.fromarray(image).convert("L"), "f4")
    assert normalized.shape == (32, 48, 1)
    # Pillow rounds.
    np.testing.assert_allclose(
        normalized[..., 0] * 50 + 100, grey, atol=0.5 + 1e-3
    )


@pytest.mark.parametrize("file_format", ["png", "jpeg", "bmp", "gif", "webp"])
def test_answers_are_a_softmax_of_pillows_crop(
    classifier, file_format, tmp_path
):
    content = encoded(pixels(), file_format)
    path = tmp_path / f"image.{file_format}"
    path.write_bytes(content)
    with PIL.Image.open(io.BytesIO(content)) as image:
        expected = expected_answer(classifier, crop(image))
    for given in (path, str(path), content, [path], [content]):
        [answer] = classifier(given)
        check_answer(answer, expected, abs=1e-5)


def test_arrays_are_images_as_they_are(classifier):
    square = crop(PIL.Image.fromarray(pixels()))
    expected = expected_answer(classifier, square)
    for given in (
        pixels(),
        [pixels()],
        pixels()[np.newaxis],
        tf.constant(pixels()),
        PIL.Image.fromarray(pixels())._repr_png_(),
    ):
        [answer] = classifier(given)
        check_answer(answer, expected, abs=1e-5)


def pillow_images():
    """Returns {mode: PIL image}, and of the same size as `pixels()`."""
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
    expected = expected_answer(classifier, crop(rgb))
    for given in (image, [image]):
        [answer] = classifier(given)
        check_answer(answer, expected, abs=1e-5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bits_of_pil_images_are_scaled(classifier, mode):
    grey = pixels()[..., 0]
    order = ">u2" if mode.endswith("B") else "<u2"
    content = (grey.astype("u2") * 256 + 9).astype(order).tobytes()
    [answer] = classifier(PIL.Image.frombytes(mode, (48, 32), content))
    square = crop(PIL.Image.fromarray(grey))
    check_answer(answer, expected_answer(classifier, square), abs=1e-5)


def test_orientation_of_pil_images_is_that_of_their_files():
    image = PIL.Image.fromarray(pixels())
    exif = image.getexif()
    exif[0x0112] = 6
    with PIL.Image.open(io.BytesIO(_encoded(image))) as encoded_image:
        assert encoded_image.getexif()[0x0112] == 6


def test_exif_that_cannot_be_read_turns_no_pil_image(classifier):
    image = PIL.Image.fromarray(pixels())
    damaged = io.BytesIO()
    image.save(damaged, "png", exif=b"Exif\0\0no TIFF")
    with PIL.Image.open(damaged) as given:
        assert classifier(given) == classifier(image)


def test_file_objects_and_generators_are_images(classifier, tmp_path):
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
    [answer] = classifier(large)
    # Pillow rounds after each of two passes.
    check_answer(answer, expected_answer(classifier, square), abs=0.01)


def test_many_images_of_all_kinds_are_predicted_in_their_order(
    classifier, tmp_path
):
    count = BATCH_SIZE + 5
    images, expected = [], []
    for number in range(count):
        array = pixels(number)
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded(array, "png"))
        images.append((array, path, str(path), path.read_bytes())[number % 4])
        expected.append(crop(PIL.Image.fromarray(array)))
    answers = classifier(images)
    assert len(answers) == count
    for answer, square in zip(answers, expected, strict=True):
        check_answer(answer, expected_answer(classifier, square), abs=1e-4)
    assert len({str(answer) for answer in answers}) > count // 2
    assert classifier([]) == []


def test_the_most_probable_classes_come_first(classifier):
    [whole] = classifier(pixels())
    assert classifier(pixels(), top_k=2) == [whole[:2]]
    assert classifier(pixels(), top_k=99) == [whole]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_constant_weights_answer_as_variables_do(dtype):
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


def message(classifier, given):
    with pytest.raises(UserError) as error:
        classifier(given)
    [line] = str(error.value).splitlines()
    return line


@pytest.mark.parametrize("name", broken_files())
def test_broken_images_are_one_clear_line(classifier, name, tmp_path):
    path = tmp_path / name
    content = broken_files()[name]
    path.write_bytes(content)
    for given in (path, str(path), [pixels(), path]):
        assert message(classifier, given).startswith(f"{path} cannot be ")
    line = message(classifier, content)
    assert line.startswith("the image cannot be decoded; must be an image file")


def test_paths_that_are_no_file_are_one_clear_line(classifier, tmp_path):
    line = message(classifier, tmp_path / "missing.jpg")
    assert line == (
        f"{tmp_path / 'missing.jpg'} cannot be read (No such file or directory)"
    )
    assert message(classifier, tmp_path) == (
        f"{tmp_path} cannot be read (Is a directory)"
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
def test_arrays_of_other_things_are_one_clear_line(classifier, array):
    assert "cannot be" in message(classifier, array)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("imagenet", "torch"), ("caffe", "caffe"), ("symmetric", "tf")],
)
def test_normalizations_are_those_of_keras_applications(name, mode):
    image = smooth_pixels()
    normal = normalize(tf.cast(image, tf.float32), NORMALIZATIONS[name])
    preprocess = tf.keras.applications.imagenet_utils.preprocess_input
    expected = preprocess(image.astype("float32"), mode=mode)
    np.testing.assert_allclose(normal, expected, atol=1e-4)
    assert normal.shape == image.shape
    assert normal.dtype == tf.float32
    several = normalize(np.stack([image] * 2), NORMALIZATIONS[name])
    np.testing.assert_allclose(several[1], expected, atol=1e-4)


def test_training_and_embedding_see_the_same_inputs(classifier):
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
