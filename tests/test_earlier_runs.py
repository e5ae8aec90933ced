"""Runs, weights and exports of earlier versions stay readable.

`fixtures/format_1` was made by the last version without a `config.json`:
digits, ResNet-tiny, 240 steps of momentum with an average of the weights and a
frozen stage. `logits.json` holds what it gave for eight images.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import VARIANTS, load_weights
from train_loop import Run, Settings, UserError, load_classifier
from train_loop.data.datasets import open_digits
from train_loop.workdir import Workdir

FORMAT_1 = pathlib.Path(__file__).parent / "fixtures" / "format_1"
# Kernels differ between CPUs.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def recorded():
    return json.loads((FORMAT_1 / "logits.json").read_text())


@pytest.fixture(scope="module")
def digits():
    """Files of the eight images with recorded logits."""
    split = open_digits().splits["test"]
    numbers = tf.constant(split.indices[:8])
    return [image.numpy() for image in split.store.read(numbers)["image"]]


@pytest.fixture
def earlier(tmp_path):
    """Returns the folder of a copy of the run."""
    return pathlib.Path(shutil.copytree(FORMAT_1 / "run", tmp_path / "earlier"))


def prepared(classifier, digits):
    return tf.stack([classifier.prepare(image) for image in digits])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "weights"])
def test_logits_of_an_earlier_run_are_unchanged(name, recorded, digits):
    run = FORMAT_1 / "run"
    classifier = load_classifier(run, averaged=name == "average")
    logits = classifier.logits(prepared(classifier, digits))
    np.testing.assert_allclose(logits, recorded[name], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["export/keras/model.keras", "model.weights.h5"]
)
def test_logits_of_earlier_weights_are_unchanged(name, recorded, digits):
    model = VARIANTS["resnet_tiny"](num_classes=10)
    model.build((None, 16, 16, 3))
    load_weights(model, FORMAT_1 / name)
    classifier = load_classifier(FORMAT_1 / "run")
    images = classifier.normalize(prepared(classifier, digits))
    logits = model(images, training=False)
    np.testing.assert_allclose(logits, recorded["average"], atol=TOLERANCE)


@pytest.mark.skipif(
    "input_axes" not in tf.keras.initializers.VarianceScaling().get_config(),
    reason="Keras does not read files of later versions.",
)
def test_earlier_exports_give_the_same_probabilities(recorded, digits):
    export = FORMAT_1 / "export"
    images = prepared(load_classifier(FORMAT_1 / "run"), digits)
    keras_model = tf.keras.models.load_model(export / "keras/model.keras")
    saved = tf.saved_model.load(str(export / "saved_model/1"))
    pixels = saved.signatures["pixels"](images=images)["probabilities"]
    expected = tf.nn.softmax(recorded["average"])
    for found in (keras_model(images), pixels):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    files = saved.signatures["serving_default"](image_bytes=digits)
    np.testing.assert_allclose(
        files["probabilities"][:, 0],
        np.max(expected, axis=1),
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("source", ["run", "export/keras/model.keras"])
def test_earlier_classifiers_decode_files_as_they_are_stored(source):
    classifier = load_classifier(FORMAT_1 / source)
    assert not classifier.preprocessing.exif_orientation


@pytest.mark.slow
def test_earlier_run_is_evaluated_as_before(earlier, run):
    """A removed setting is a warning."""
    with (earlier / "flags.txt").open("a") as file:
        file.write("--crop_scale=0.08,1\n")
    ended = run("--mode=evaluate", f"--workdir={earlier}")
    assert ended.status == 0, ended.err
    warnings = re.findall("warning: .*--crop_scale.*", ended.out)
    assert warnings == [
        f"warning: {earlier / 'flags.txt'}: --crop_scale=0.08,1: removed "
        "setting, ignored."
    ]
    report = json.loads((earlier / "report/report.json").read_text())
    # The last line of its metrics.jsonl.
    assert report["accuracy"] == pytest.approx(0.7556, abs=2e-3)


@pytest.mark.slow
def test_earlier_run_predicts_exports_and_compares(
    earlier, run, tmp_path, digits
):
    image = tmp_path / "seven.png"
    image.write_bytes(digits[0])
    predicted = run(
        "--mode=predict", f"--workdir={earlier}", f"--images={image}"
    )
    assert predicted.status == 0, predicted.err
    compared = run(
        "--mode=compare", f"--workdir={earlier}", f"--with={earlier}"
    )
    assert compared.status == 0, compared.err
    exported = run(
        "--mode=export", f"--workdir={earlier}", "--format=safetensors"
    )
    assert exported.status == 0, exported.err


def test_earlier_run_cannot_be_trained_further(earlier, run):
    files = {p: p.read_bytes() for p in earlier.rglob("*") if p.is_file()}
    ended = run(f"--workdir={earlier}", "--steps=250")
    assert ended.status == 1
    [line] = ended.err.splitlines()
    assert "format 1 cannot be trained further" in line
    assert "the order of images" in line
    assert f"--weights={earlier}" in line
    for path, content in files.items():
        assert path.read_bytes() == content


@pytest.mark.slow
def test_finished_earlier_run_stays_unchanged(earlier, run):
    ended = run(f"--workdir={earlier}")
    assert ended.status == 0, ended.err
    assert "already finished" in ended.out
    assert not (earlier / "config.json").exists()


@pytest.mark.slow
def test_new_run_starts_from_an_earlier_one(earlier, workdir):
    new = Settings(
        dataset="digits",
        weights=earlier,
        workdir=workdir,
        batch_size=8,
        steps=1,
        warmup_epochs=0,
    )
    run = Run.create(new)
    assert run.settings.model == "resnet_tiny"
    run.train()
    config = json.loads((workdir / "config.json").read_text())
    assert config["format_version"] == 2
    assert config["architecture"] == "resnet_tiny"
    assert config["num_classes"] == len(config["label_names"])


def test_run_of_a_newer_format_cannot_be_trained_further(earlier):
    (earlier / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="only a newer version") as error:
        Workdir.of(earlier).check_format()
    assert "format 99" in str(error.value)


def test_removed_recipe_is_ignored_with_a_warning(earlier, run):
    flags = (earlier / "flags.txt").read_text()
    text = flags.replace("--recipe=digits", "--recipe=numerals")
    (earlier / "flags.txt").write_text(text)
    ended = run(f"--workdir={earlier}")
    assert ended.status == 0, ended.err
    assert "--recipe=numerals: removed recipe, ignored" in ended.out


def test_newer_setting_has_a_value_in_an_earlier_run(earlier):
    settings = Settings.read(Workdir.of(earlier).flags)
    assert (settings.channels, settings.exif_orientation) == (3, False)
    with pytest.raises(UserError, match="channels"):
        Run.open(earlier, channels=1)
