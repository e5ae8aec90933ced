"""The SavedModel, as TensorFlow Serving calls it."""

import base64
import json

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import tensorflow as tf
from classifiers import NAMES, random_pixels, small_classifier
from samples import encoded, smooth_pixels

from train_loop.export.bundle import Shipment
from train_loop.export.comparison import serving_request
from train_loop.export.saved_model import write_saved_model

TOP_K = 3


@pytest.fixture(scope="module")
def classifier():
    return small_classifier()


@pytest.fixture(scope="module")
def loaded(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write_saved_model(Shipment(classifier, top_k=TOP_K), folder)
    return tf.saved_model.load(str(folder))


def files():
    """Returns {name: bytes} of what TensorFlow decodes."""
    large, small = smooth_pixels(300, 200), smooth_pixels(7, 9)
    image = PIL.Image.fromarray(smooth_pixels())
    transparent = np.dstack([smooth_pixels(), smooth_pixels(channels=1)])
    return {
        "large.jpg": encoded(large, "jpeg"),
        "small.png": encoded(small, "png"),
        "grey.jpg": encoded(smooth_pixels(channels=1), "jpeg"),
        "palette.png": encoded(np.asarray(image.quantize(8)), "png"),
        "transparent.png": encoded(transparent, "png"),
        "progressive.jpg": encoded(large, "jpeg", progressive=True),
        "turned.jpg": turned(large, "jpeg"),
    }


def turned(pixels, file_format):
    """Returns a file as a camera that is held upright stores it."""
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    return encoded(np.rot90(pixels), file_format, exif=exif.tobytes())


def test_files_of_all_sizes_are_answered_as_the_classifier_does(
    classifier, loaded
):
    answer = loaded.signatures["serving_default"]
    contents = list(files().values())
    for batch in (contents, contents[:1]):
        outputs = answer(image_bytes=tf.constant(batch))
        assert outputs["classes"].shape == (len(batch), TOP_K)
        for number, expected in enumerate(classifier(batch, TOP_K)):
            names = outputs["classes"][number].numpy().tolist()
            numbers = outputs["probabilities"][number].numpy().tolist()
            assert names == [name.encode() for name, _ in expected]
            assert numbers == pytest.approx([p for _, p in expected], abs=1e-6)
    assert len({str(answer) for answer in classifier(contents)}) > 3


def test_photos_are_answered_upright(loaded):
    pixels = smooth_pixels(40, 60)
    answer = loaded.signatures["serving_default"]
    files = [encoded(pixels, "png"), turned(pixels, "png")]
    upright, as_stored = answer(image_bytes=files)["probabilities"]
    np.testing.assert_allclose(upright, as_stored, atol=1e-5)


def test_signatures_are_those_that_are_documented(loaded):
    inputs, outputs = (
        {
            name: {spec.name: spec for spec in tf.nest.flatten(structure)}
            for name, structure in (
                (name, getattr(function, attribute))
                for name, function in loaded.signatures.items()
            )
        }
        for attribute in (
            "structured_input_signature",
            "structured_outputs",
        )
    )
    assert inputs == {
        "serving_default": {
            "image_bytes": tf.TensorSpec([None], tf.string, "image_bytes")
        },
        "pixels": {
            "images": tf.TensorSpec([None, 16, 16, 3], tf.uint8, "images")
        },
    }
    assert {name: set(specs) for name, specs in outputs.items()} == {
        "serving_default": {"classes", "probabilities"},
        "pixels": {"probabilities"},
    }


def test_a_rest_request_is_json_with_base64(classifier, loaded):
    """Does with a request's body what TensorFlow Serving does."""
    contents = list(files().values())[:2]
    body = json.dumps(serving_request(contents))
    instances = json.loads(body)["instances"]
    named = {}
    for instance in instances:
        for name, value in instance.items():
            content = base64.b64decode(value["b64"])
            named.setdefault(name, []).append(content)
    outputs = loaded.signatures["serving_default"](
        **{name: tf.constant(values) for name, values in named.items()}
    )
    best = outputs["classes"][:, 0].numpy().tolist()
    assert best == [
        name.encode() for [(name, _)] in classifier(contents, top_k=1)
    ]


def test_pixels_are_answered_in_the_order_of_the_classes(classifier, loaded):
    answer = loaded.signatures["pixels"]
    for count in (1, 5):
        images = random_pixels(count)
        np.testing.assert_allclose(
            answer(images=tf.constant(images))["probabilities"],
            classifier.probabilities(images),
            atol=1e-6,
        )
    assert answer.structured_outputs["probabilities"].shape[1] == len(NAMES)


@pytest.mark.parametrize("file_format", ["bmp", "webp"])
def test_files_that_tensorflow_does_not_decode_are_refused(loaded, file_format):
    content = encoded(smooth_pixels(), file_format)
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["serving_default"](image_bytes=tf.constant([content]))


def test_more_classes_than_there_are_cannot_be_named(classifier, tmp_path):
    write_saved_model(Shipment(classifier, top_k=99), tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    content = encoded(smooth_pixels(), "png")
    outputs = loaded.signatures["serving_default"](
        image_bytes=tf.constant([content])
    )
    assert outputs["classes"].shape == (1, len(NAMES))
