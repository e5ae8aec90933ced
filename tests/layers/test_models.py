"""`create_model`, and images for its models."""

import json

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from resnet_layers import (
    NORMALIZATIONS,
    VARIANTS,
    ImagePreprocessing,
    Preprocessing,
    WeightsError,
    create_model,
    list_models,
    save_safetensors,
)
from train_loop.prediction.classifier import Classifier


@pytest.fixture(scope="module")
def photos():
    """Returns uint8 images [2, 50, 70, 3]."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, [2, 50, 70, 3], np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns a folder of weights for 3 classes, as on the hub."""
    folder = tmp_path_factory.mktemp("hub")
    model = VARIANTS["resnet_tiny"](num_classes=3)
    model.build((None, 8, 8, 3))
    save_safetensors(model, folder / "model.safetensors")
    config = {
        "architecture": "resnet_tiny",
        "pretrained_cfg": {"input_size": [3, 24, 24], "crop_pct": 0.5},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


def test_models_are_listed_by_pattern():
    assert list_models() == sorted(VARIANTS)
    assert list_models("resnet?4") == ["resnet34", "resnet44"]
    assert "resnetv2_50d" in list_models("*50d*")
    assert list_models("vgg*") == []


def test_model_has_the_classes_of_its_weights_unless_explicit(weights):
    folder, source = weights
    kernel = source.head.kernel.numpy()
    model = create_model("resnet_tiny", folder)
    np.testing.assert_array_equal(model.head.kernel, kernel)
    model = create_model("resnet_tiny", folder, num_classes=3)
    np.testing.assert_array_equal(model.head.kernel, kernel)
    assert create_model("resnet_tiny", folder, num_classes=5).num_classes == 5
    assert create_model("resnet_tiny", folder, num_classes=0).head is None
    assert create_model("resnet_tiny").num_classes == 1000


def test_images_of_other_channels_get_adapted_kernels(weights):
    folder, source = weights
    gray = create_model("resnet_tiny", folder, in_channels=1)
    np.testing.assert_allclose(
        gray.stem.convs[0].kernel,
        np.sum(source.stem.convs[0].kernel, axis=2, keepdims=True),
        rtol=1e-6,
    )
    assert len(gray.preprocessing.normalization.mean) == 1
    many = create_model("resnet_tiny", folder, in_channels=5)
    assert many.preprocessing is None
    with pytest.raises(ValueError, match="resnet_tiny: has no preprocessing"):
        many.preprocess(np.zeros([1, 8, 8, 3]))


def test_feature_model_returns_the_maps_of_the_model(weights):
    folder, source = weights
    images = tf.random.stateless_normal([2, 16, 16, 3], [0, 0])
    model = create_model("resnet_tiny", folder, features_only=True)
    expected = source.features(images)
    for name, feature_map in model(images).items():
        np.testing.assert_array_equal(feature_map, expected[name])


def test_options_reach_the_model():
    model = create_model(
        "resnet_tiny", num_classes=2, dtype="mixed_bfloat16", width=32
    )
    assert model.dtype_policy.name == "mixed_bfloat16"
    assert model.width == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "resnet5: unknown. Did you mean resnet50"),
        ({"num_classes": -1}, "num_classes=-1: must be an integer, at least 0"),
        ({"in_channels": 0}, "in_channels=0: must be an integer, at least 1"),
        ({"num_class": 3}, "num_class=3: unknown .* Did you mean num_classes"),
        ({"name": "resnet18", "weights": True}, "weights of resnet_tiny, not"),
        ({"weights": "no.h5"}, "no.h5: not found"),
        ({"weights": "imagenet"}, "has no weights in keras.applications"),
        ({"weights": True, "width": 8}, "does not match resnet_tiny"),
    ],
)
def test_mistake_is_one_line(weights, arguments, message):
    if arguments.get("weights") is True:
        arguments = {**arguments, "weights": weights[0]}
    with pytest.raises((KeyError, ValueError), match=message) as error:
        create_model(**{"name": "resnet_tiny", **arguments})
    assert len(str(error.value).splitlines()) == 1
    if "weights" in arguments:
        assert isinstance(error.value, WeightsError)


PREPROCESSINGS = [
    Preprocessing(NORMALIZATIONS["imagenet"], 32, 0.875, "bilinear", True),
    Preprocessing(NORMALIZATIONS["caffe"], 40, 1.0, "bicubic", False),
    Preprocessing(
        NORMALIZATIONS["imagenet"].for_channels(1), 90, 0.5, "bicubic", False
    ),
]


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_layer_prepares_images_as_the_evaluation_does(photos, preprocessing):
    """From the same pixels; smaller, larger and gray."""
    classifier = Classifier(None, preprocessing, ["cat", "dog"])
    read = tf.stack([classifier.read(photo) for photo in photos])
    expected = classifier.normalize(read)
    actual = ImagePreprocessing(preprocessing)(photos)
    assert actual.shape == expected.shape
    # A pixel on the border of two levels may be rounded the other way.
    stddev = max(preprocessing.normalization.stddev)
    step = 1 / min(preprocessing.normalization.stddev)
    error = np.abs(actual - expected)
    assert np.mean(error > 1e-5 / stddev) < 0.002
    assert error.max() < 1.001 * step


def test_layer_crops_the_center_and_resizes_like_pillow(photos):
    preprocessing = Preprocessing(NORMALIZATIONS["imagenet"], 24, 0.8)
    image = PIL.Image.fromarray(photos[0]).crop((15, 5, 55, 45))
    expected = image.resize((24, 24), PIL.Image.Resampling.BILINEAR)
    mean, stddev, _ = NORMALIZATIONS["imagenet"]
    actual = ImagePreprocessing(preprocessing)(photos)[0] * stddev + mean
    assert np.abs(actual - np.asarray(expected, float)).max() < 1.001


def test_model_keeps_its_preprocessing_when_saved(photos, weights, tmp_path):
    model = create_model("resnet_tiny", weights[0])
    assert model.preprocessing.image_size == 24
    assert model.preprocessing.crop_fraction == 0.5
    logits = model(model.preprocess(photos))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.preprocessing == model.preprocessing
    np.testing.assert_array_equal(loaded(loaded.preprocess(photos)), logits)
    # A single image is a batch of one.
    np.testing.assert_array_equal(
        model.preprocess(photos[0]), model.preprocess(photos[:1])
    )


def test_layer_is_saved_and_exported_in_front_of_a_model(photos, tmp_path):
    model = create_model("resnet_tiny", num_classes=2)
    inputs = tf.keras.Input([None, None, 3], dtype="uint8")
    served = tf.keras.Model(
        inputs, model(ImagePreprocessing(model.preprocessing)(inputs))
    )
    expected = model(model.preprocess(photos))
    served.save(tmp_path / "served.keras")
    loaded = tf.keras.models.load_model(tmp_path / "served.keras")
    np.testing.assert_array_equal(loaded(photos), expected)
    loaded.export(tmp_path / "served", verbose=False)
    exported = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(exported.serve(photos), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 8), (8, 8)])
def test_images_of_another_shape_are_an_error(shape):
    layer = ImagePreprocessing(Preprocessing())
    with pytest.raises(ValueError, match="Pass RGB images"):
        layer(np.zeros(shape, "uint8"))


def test_unsupported_interpolation_is_an_error():
    with pytest.raises(ValueError, match="interpolation='lanczos': must be"):
        ImagePreprocessing(Preprocessing(interpolation="lanczos"))
