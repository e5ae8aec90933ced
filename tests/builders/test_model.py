"""Classifiers loaded from weights."""

import json

import numpy as np
import pytest
from classifiers import BGR, random_pixels, small_classifier
from samples import write_folder

from resnet_layers import (
    NORMALIZATIONS,
    VARIANTS,
    find_weights,
    save_safetensors,
)
from train_loop import Settings, UserError, load_classifier, resolve
from train_loop.builders.evaluation import Evaluator
from train_loop.builders.model import (
    DESCRIPTION,
    build_classifier,
    is_weights,
    load_initial_weights,
    read_class_names,
)
from train_loop.exports.bundle import Bundle
from train_loop.exports.formats import EXPORT_FORMATS, portable
from train_loop.modes import predict
from train_loop.prediction.classifier import Classifier

CONFIG = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "label_names": ["n01443537", *(f"n{n:08}" for n in range(1, 1000))],
    "pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "input_size": [3, 32, 32],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
    },
}


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
    """Makes two variants small, to create them fast."""
    small = {"block": "basic", "stage_sizes": (1,), "width": 8, "stem": "small"}
    for name in ("resnet18", "resnet50_keras"):
        row = {**VARIANTS[name].arguments, **small}
        for argument in ("norm", "stride_site"):
            row.pop(argument, None)
        monkeypatch.setattr(VARIANTS[name], "arguments", row)


@pytest.fixture
def weights(tmp_path):
    """Returns a file of PyTorch weights and its model."""
    model = VARIANTS["resnet18"]()
    model.build((None, 32, 32, 3))
    path = tmp_path / "model.safetensors"
    save_safetensors(model, path)
    return path, model


def test_weights_of_the_hub_have_model_classes_and_preprocessing(
    weights, monkeypatch
):
    path, model = weights
    path.with_name("config.json").write_text(json.dumps(CONFIG))
    found = find_weights(str(path))
    monkeypatch.setattr(resolve, "find_weights", lambda *names: found)
    classifier = load_classifier("timm/resnet18.a1_in1k")
    assert classifier.model.name == "resnet18"
    assert classifier.preprocessing == (
        NORMALIZATIONS["symmetric"],
        *(32, 0.95, "bicubic", True),
    )
    # Made-up names, except for one.
    assert classifier.class_names[:2] == ("goldfish (n01443537)", "n00000001")
    images = random_pixels(2, 32)
    expected = model(classifier.normalize(images), training=False)
    np.testing.assert_allclose(classifier.logits(images), expected, atol=1e-5)


def test_imagenet_weights_default_to_a_model_of_keras(weights, monkeypatch):
    path, _ = weights
    asked = []

    def find(name, variant):
        asked.append((name, variant))
        return find_weights(str(path))._replace(
            variant=variant or "resnet50_keras"
        )

    monkeypatch.setattr(resolve, "find_weights", find)
    classifier = load_classifier("imagenet")
    assert {*asked} == {("imagenet", None), ("imagenet", "resnet50_keras")}
    assert classifier.model.name == "resnet50_keras"
    assert len(classifier.class_names) == 1000
    asked.clear()
    load_classifier("imagenet", "resnet18")
    assert {*asked} == {("imagenet", "resnet18")}


@pytest.mark.parametrize("name", ["keras", "safetensors"])
def test_exported_classifier_is_loaded_completely(name, tmp_path):
    trained = small_classifier(
        BGR, stage_sizes=(1,), name="resnet18", image_size=24
    )
    classifier = portable(trained)
    bundle = Bundle(classifier)
    path = tmp_path / EXPORT_FORMATS[name].files[0].path
    EXPORT_FORMATS[name].write(bundle, path)
    (tmp_path / DESCRIPTION).write_text(json.dumps(bundle.contents))
    found = load_classifier(path)
    assert found.class_names == trained.class_names
    assert found.preprocessing == classifier.preprocessing
    images = random_pixels(3, 24)
    np.testing.assert_allclose(
        found.probabilities(images), trained.probabilities(images), atol=1e-5
    )


def test_weights_without_description_accept_names_and_model(weights):
    path, model = weights
    classifier = load_classifier(path, model="resnet18")
    assert isinstance(classifier, Classifier)
    assert classifier.class_names[999].startswith("toilet tissue")
    for arguments, expected in (
        ((path,), "does not contain the name of its model. Pass --model."),
        ((path, "resnet19"), "Did you mean resnet"),
        (
            (path, "resnet18", ["cat", "dog"]),
            "1000 classes, and 2 names. Pass as many with --class_names=FILE",
        ),
        ((path.with_name("none.h5"),), "not an existing run"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            load_classifier(*arguments)
        assert "\n" not in str(error.value)


@pytest.fixture
def three_classes(tmp_path):
    """Returns a file of weights for three classes, and its model."""
    model = VARIANTS["resnet18"](num_classes=3)
    model.build((None, 32, 32, 3))
    path = tmp_path / "three.safetensors"
    save_safetensors(model, path)
    return path, model


def test_head_has_the_classes_of_the_file(three_classes, tmp_path, capsys):
    path, model = three_classes
    with pytest.raises(UserError, match="3 classes without names. Pass them"):
        load_classifier(path, model="resnet18")
    # The same number of classes is assumed to be in the dataset's order.
    names = ["no", "yes", "perhaps"]
    classifier = load_classifier(path, model="resnet18", data_names=names)
    assert classifier.class_names == ("no", "yes", "perhaps")
    assert (
        "those of the dataset, in its order: no, yes" in capsys.readouterr()[0]
    )
    np.testing.assert_array_equal(
        classifier.model.head.bias, model.head.bias.numpy()
    )
    with pytest.raises(UserError, match="3 classes without names"):
        load_classifier(path, model="resnet18", data_names=["no", "yes"])
    config = {"architecture": "resnet18", "label_names": ["a", "b", "c"]}
    path.with_name("config.json").write_text(json.dumps(config))
    assert load_classifier(path).class_names == ("a", "b", "c")
    config["label_names"], config["id2label"] = None, {"1": "a", "2": "b"}
    path.with_name("config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="3 classes without names"):
        load_classifier(path)
    given = load_classifier(path, class_names=names)
    assert given.class_names == ("no", "yes", "perhaps")


def test_weights_without_names_are_evaluated_on_as_many_classes(
    three_classes, tmp_path
):
    path, _ = three_classes
    write_folder(tmp_path / "images", {"x": 1, "y": 1, "z": 1})
    measurement = Evaluator(
        Settings(weights=path, dataset=tmp_path / "images", image_size=32)
    )
    classifier = measurement.open_classifier(path, model="resnet18")
    assert classifier.class_names == ("x", "y", "z")
    assert classifier.preprocessing.image_size == 32


def test_predictions_use_an_explicit_image_size(
    three_classes, tmp_path, monkeypatch, capsys
):
    path, _ = three_classes
    write_folder(tmp_path / "images", {"x": 1})
    sizes = []
    monkeypatch.setattr(
        predict,
        "predict_files",
        lambda classifier, *_: sizes.append(classifier.preprocessing) or (),
    )
    (tmp_path / "names.txt").write_text("no\nyes\nperhaps\n")
    given = Settings(
        weights=path,
        model="resnet18",
        class_names=tmp_path / "names.txt",
        images=str(tmp_path / "images/train/x"),
        image_size=32,
        crop_fraction=1.0,
    )
    predict.predict(given)
    assert sizes[0][1:3] == (32, 1.0)


def test_class_names_are_read_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffcat\nice\u2028cream\r\nd\u00f6g\n", "utf-8")
    names = read_class_names(Settings(class_names=path))
    assert names == ["cat", "ice\u2028cream", "d\u00f6g"]
    assert read_class_names(Settings()) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "not readable \\(No such file"),
        (b"cat\n\xff\n", "not readable \\(it is not UTF-8"),
        (b"cat\n\ndog\n", "line 2, '', is empty"),
        (b"cat\ndog\ncat\n", "line 3, 'cat', is not unique"),
    ],
)
def test_invalid_files_of_class_names_are_an_error_in_one_line(
    text, expected, tmp_path
):
    path = tmp_path / "names.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=expected) as error:
        read_class_names(Settings(class_names=str(path)))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be combined with --workdir"):
        read_class_names(Settings(class_names=str(path), workdir="run"))


def test_weights_are_distinguished_from_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("timm/mine", "keras/hub", "run", "new_run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "new_run/flags.txt").write_text("")
    (tmp_path / "new_run/config.json").write_text("{}")
    (tmp_path / "timm/mine/config.json").write_text("{}")
    (tmp_path / "timm/my.safetensors").write_text("")
    (tmp_path / "keras/hub/flags.txt").write_text("")
    for name in ("imagenet", "timm/x", "timm/mine", "timm/my.safetensors"):
        assert is_weights(name)
    for name in ("run", "new_run", "keras/hub", "elsewhere/x"):
        assert not is_weights(name)


def test_gray_images_start_from_weights_for_color_images(three_classes, capsys):
    path, model = three_classes
    settings = resolve.resolve(
        Settings(weights=path, model="resnet18", channels=1, image_size=32)
    )
    classifier = build_classifier(settings, ["a", "b", "c"])
    load_initial_weights(path, settings, classifier, ["a", "b", "c"])
    np.testing.assert_allclose(
        classifier.model.stem.convs[0].kernel,
        np.sum(model.stem.convs[0].kernel, axis=2, keepdims=True),
        atol=1e-6,
    )
    assert "adapted from 3" in capsys.readouterr()[0]
