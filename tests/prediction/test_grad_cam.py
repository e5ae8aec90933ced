"""Grad-CAM against class activation maps, its result for a linear head."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from classifiers import random_pixels, small_classifier
from samples import encoded

from train_loop.prediction.predict_files import (
    FilePrediction,
    grad_cam,
    write_explanations,
)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_heatmap_is_the_class_activation_map_of_a_linear_head(dtype):
    classifier = small_classifier(dtype=dtype)
    images, labels = random_pixels(3), [0, 4, 4]
    model = classifier.model
    features = tf.nest.flatten(model.features(classifier.normalize(images)))[-1]
    features = tf.cast(features, tf.float32).numpy()
    # Zhou et al., 2015: with mean pooling and one dense layer, both are equal.
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
    # No pixel supports the class.
    model.head.kernel.assign(-tf.abs(model.head.kernel))
    heat = grad_cam(classifier, images[:1], [2])
    np.testing.assert_array_equal(heat, np.zeros((1, 16, 16)))


@pytest.mark.slow
def test_each_image_gets_its_own_file(tmp_path, recwarn):
    classifier = small_classifier()
    # Characters without a font, and mathtext syntax.
    classifier.class_names = ("\uf8ff", "$x^$", "cat", "dog", "emu")
    predictions = []
    for name, label in (
        ("a/cat.jpg", "\uf8ff"),
        ("b/cat.png", "$x^$"),
        ("a/cat_2.jpg", "$x^$"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(random_pixels(1, 30)[0], "png"))
        predictions.append(FilePrediction(str(path), ((label, 0.75),)))
    predictions.append(FilePrediction("c/cat.jpg", error="broken"))
    folder = tmp_path / "new/explanations"
    explained = write_explanations(classifier, predictions, folder)
    assert list(explained) == predictions
    assert not recwarn.list
    assert sorted(path.name for path in folder.iterdir()) == [
        "cat.png",
        "cat_2.png",
        "cat_2_2.png",
    ]
    with PIL.Image.open(folder / "cat.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    # An image, a heatmap and a color bar.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
