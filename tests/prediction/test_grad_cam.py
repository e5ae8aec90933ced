"""Grad-CAM, against what it must be where the classifier is linear."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from classifiers import random_pixels, small_classifier
from samples import encoded

from train_loop.prediction.grad_cam import grad_cam, write_explanations
from train_loop.prediction.predict_files import FilePrediction, predict_files


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_heat_is_the_class_weights_over_the_last_features(dtype):
    classifier = small_classifier(dtype=dtype)
    images, labels = random_pixels(3), [0, 4, 4]
    model = classifier.model
    features = tf.nest.flatten(model.features(classifier.normalize(images)))[-1]
    features = tf.cast(features, tf.float32).numpy()
    # Zhou et al., 2015: with a mean and one dense layer, both are the same.
    weights = model.head.kernel.numpy()[:, labels]
    expected = np.einsum("nhwc,cn->nhw", features, weights)[..., np.newaxis]
    expected = tf.image.resize(np.maximum(expected, 0), (16, 16), "bicubic")
    expected = np.maximum(expected[..., 0], 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    heat = grad_cam(classifier, images, labels)
    assert heat.shape == (3, 16, 16)
    np.testing.assert_allclose(heat, expected, atol=0.02)
    assert heat.max(axis=(1, 2)) == pytest.approx(1)
    assert np.abs(heat[1] - heat[2]).max() > 0.1


def test_what_nothing_speaks_for_is_cold_everywhere():
    classifier = small_classifier()
    classifier.model.head.kernel.assign(-tf.abs(classifier.model.head.kernel))
    heat = grad_cam(classifier, random_pixels(1), [2])
    np.testing.assert_array_equal(heat, np.zeros((1, 16, 16)))


def test_classes_may_have_any_name(tmp_path, recwarn):
    """Also one that no font has the letters of."""
    classifier = small_classifier()
    names = [f"{name}\uf8ff" for name in classifier.class_names]
    classifier.class_names = tuple(names)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(random_pixels(1)[0], "png"))
    told = list(predict_files(classifier, [str(path)]))
    assert list(write_explanations(classifier, told, tmp_path / "new")) == told
    assert not recwarn.list


def test_each_picture_gets_a_file_of_its_own(tmp_path):
    classifier = small_classifier()
    paths = []
    for name in ("a/cat.jpg", "b/cat.png", "a/cat_2.jpg", "a/dog$.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(random_pixels(1, 30)[0], "png"))
        paths.append(str(path))
    told = [
        *predict_files(classifier, paths),
        FilePrediction("c/cat.jpg", error="broken"),
    ]
    folder = tmp_path / "new/explanations"
    assert list(write_explanations(classifier, told, folder)) == told
    found = sorted(path.name for path in folder.iterdir())
    assert found == [
        "cat.png",
        "cat_2.png",
        "cat_2_2.png",
        "dog$.png",
    ]
    with PIL.Image.open(folder / "cat.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    # A picture, colours over it, and a legend.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
