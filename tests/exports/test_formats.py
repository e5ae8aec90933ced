"""The files of all export formats: their content and their predictions."""

import base64
import json

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import tensorflow as tf
from classifiers import BGR, NAMES, random_pixels, small_classifier
from references import reference_for
from samples import encoded, smooth_pixels

from resnet_layers import VARIANTS, PaddedConv2D, read_preprocessing
from train_loop.errors import UserError
from train_loop.exports.bundle import Bundle
from train_loop.exports.formats import (
    EXPORT_FORMATS,
    Format,
    InferenceGraph,
    ServingModule,
    export_saved_model,
    in_float32,
    parse_formats,
    portable,
)
from train_loop.exports.verification import serving_request

TOP_K = 3


def thin_bundle(variant, **options):
    """Returns a `Bundle` of a variant with few channels, and its reference.

    It combines BGR inputs, mixed precision and the options of the variant.
    """
    arguments = {"stem": "imagenet", **VARIANTS[variant].arguments, "width": 8}
    arguments |= {"stage_sizes": (1, 1), **options}
    trained = small_classifier(BGR, 32, "mixed_bfloat16", **arguments)
    # Makes predictions for random images differ, and none of them certain.
    logits = trained.logits(random_pixels(9, 32)).numpy()
    scale = 4 / np.ptp(logits - logits.mean(axis=0))
    head = trained.model.head
    head.kernel.assign(head.kernel * scale)
    head.bias.assign((head.bias - logits.mean(axis=0)) * scale)
    reference = reference_for(in_float32(trained))
    return Bundle(portable(trained), reference.images), reference


def check(exported, files):
    metrics, failures = exported
    assert failures == []
    for each, (name, file) in zip(metrics, files, strict=True):
        assert each.name == f"{name}/{file}"
        assert each.megabytes > 0
        assert each.difference < (1e-5 if file.is_exact else 0.1)
        assert each.agreement == each.accuracy
        assert each.agreement > 0.5
        assert len(each.milliseconds) == (2 if file.runtime else 0)
        if not file.is_exact:
            # The file is not a copy of the float32 one.
            assert each.difference > 1e-5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a bundle, and the folder with its files in all formats.

    They are written as one format, so that a single process runs all of them.
    """
    bundle, reference = thin_bundle("resnet18", shortcut="pooled_projection")
    # TensorFlow treats a path with brackets as a pattern.
    folder = tmp_path_factory.mktemp("br[1]ack")
    formats = {
        file: entry.write
        for entry in EXPORT_FORMATS.values()
        for file in entry.files
    }
    writers = {file.path: write for file, write in formats.items()}
    files = [file for file in formats if file.runtime]
    entry = Format(lambda bundle, path: writers[path.name](bundle, path), files)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(EXPORT_FORMATS, "all", entry)
        metrics = bundle.write("all", folder, reference)
    check(metrics, [("all", file) for file in files])
    [file] = EXPORT_FORMATS["safetensors"].files
    metrics = bundle.write("safetensors", folder, reference)
    check(metrics, [("safetensors", file)])
    return bundle, folder


@pytest.mark.slow
def test_every_file_predicts_like_the_model_in_its_runtime(exported):
    """The fixture checks predictions; this test the files beside them."""
    _, folder = exported
    for name in ("all", "safetensors"):
        contents = json.loads((folder / name / "classifier.json").read_text())
        assert contents["class_names"] == list(NAMES)
        assert contents["preprocessing"]["normalization"]["bgr"] is False
    assert {path.name for path in folder.iterdir()} == {"all", "safetensors"}


@pytest.mark.slow
def test_max_pooling_of_negative_values_is_quantized(tmp_path):
    """The stem of a pre-activation model has no activation before it."""
    bundle, reference = thin_bundle("resnetv2_18")
    files = [("litert", file) for file in EXPORT_FORMATS["litert"].files]
    check(bundle.write("litert", tmp_path, reference), files)


@pytest.mark.slow
def test_onnx_and_litert_files_contain_no_batch_norm(exported):
    import onnx
    from ai_edge_litert.interpreter import Interpreter

    bundle, folder = exported
    graph = onnx.load(folder / "all/model.onnx")
    nodes = [node.op_type for node in graph.graph.node]
    convolutions = sum(
        isinstance(layer, PaddedConv2D)
        for layer in bundle.classifier.model._flatten_layers()
    )
    assert nodes.count("Conv") == convolutions
    assert "BatchNormalization" not in nodes
    # The normalization of the pixels.
    assert nodes.count("Mul") == 1
    [properties] = graph.metadata_props
    assert json.loads(properties.value) == list(NAMES)
    for file in EXPORT_FORMATS["litert"].files:
        interpreter = Interpreter(str(folder / "all" / file.path))
        [image], [output] = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        assert image["dtype"] == np.uint8
        assert list(image["shape_signature"]) == [-1, 32, 32, 3]
        assert output["dtype"] == np.float32
        names = [op["op_name"] for op in interpreter._get_ops_details()]
        assert names.count("CONV_2D") == convolutions
        assert names.count("MUL") <= 1


def test_safetensors_come_with_the_config_of_timm(tmp_path):
    classifier = small_classifier(BGR)
    path = tmp_path / "model.safetensors"
    EXPORT_FORMATS["safetensors"].write(Bundle(portable(classifier)), path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == len(NAMES)
    assert config["label_names"] == list(NAMES)
    found = read_preprocessing(tmp_path / "model.safetensors")
    normalization = portable(classifier).preprocessing.normalization
    assert found.normalization.mean == pytest.approx(normalization.mean)
    assert found.normalization.stddev == pytest.approx(normalization.stddev)
    assert found.image_size == 16
    assert found.crop_fraction == 0.8


def test_model_without_a_torch_equivalent_is_an_error(tmp_path):
    classifier = small_classifier(preactivation=True)
    with pytest.raises(UserError, match="no pre-activated ResNet with biases"):
        EXPORT_FORMATS["safetensors"].write(Bundle(classifier), tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tflite", "Did you mean|Use one of: saved_model, keras, litert"),
        ("onnx,torch", "--format=torch: unknown"),
        ("", "Use one of: saved_model"),
    ],
)
def test_unknown_formats_are_an_error(text, expected):
    with pytest.raises(UserError, match=expected):
        parse_formats(text)


def test_missing_package_is_reported_with_its_extra(monkeypatch):
    entry = EXPORT_FORMATS["onnx"]._replace(packages=("not_installed",))
    monkeypatch.setitem(EXPORT_FORMATS, "onnx", entry)
    with pytest.raises(UserError) as error:
        parse_formats("keras,onnx")
    assert str(error.value) == (
        "--format=onnx: requires not_installed. Install it: pip install "
        "'resnet-layers[export]'."
    )


def test_repeated_formats_are_written_once():
    assert parse_formats("keras, saved_model,keras") == ["keras", "saved_model"]


@pytest.fixture(scope="module")
def loaded(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    export_saved_model(Bundle(classifier, top_k=TOP_K), folder)
    return tf.saved_model.load(str(folder))


def files():
    """Returns {name: bytes} of files that TensorFlow decodes."""
    large, small = smooth_pixels(300, 200), smooth_pixels(7, 9)
    image = PIL.Image.fromarray(smooth_pixels())
    transparent = np.dstack([smooth_pixels(), smooth_pixels(channels=1)])
    return {
        "large.jpg": encoded(large, "jpeg"),
        "small.png": encoded(small, "png"),
        "gray.jpg": encoded(smooth_pixels(channels=1), "jpeg"),
        "palette.png": encoded(np.asarray(image.quantize(8)), "png"),
        "transparent.png": encoded(transparent, "png"),
        "progressive.jpg": encoded(large, "jpeg", progressive=True),
        "rotated.jpg": rotated(large, "jpeg"),
    }


def rotated(pixels, file_format):
    """Returns a rotated image whose EXIF orientation turns it upright."""
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    return encoded(np.rot90(pixels), file_format, exif=exif.tobytes())


@pytest.mark.slow
def test_serving_signature_predicts_like_the_classifier(classifier, loaded):
    predict = loaded.signatures["serving_default"]
    contents = list(files().values())
    for batch in (contents, contents[:1]):
        outputs = predict(image_bytes=tf.constant(batch))
        assert outputs["classes"].shape == (len(batch), TOP_K)
        for number, expected in enumerate(classifier(batch, TOP_K)):
            names = outputs["classes"][number].numpy().tolist()
            numbers = outputs["probabilities"][number].numpy().tolist()
            assert names == [name.encode() for name, _ in expected]
            assert numbers == pytest.approx([p for _, p in expected], abs=1e-6)
    assert len({str(ranking) for ranking in classifier(contents)}) > 3


def test_serving_signature_applies_the_exif_orientation(loaded):
    pixels = smooth_pixels(40, 60)
    predict = loaded.signatures["serving_default"]
    files = [encoded(pixels, "png"), rotated(pixels, "png")]
    upright, as_stored = predict(image_bytes=files)["probabilities"]
    np.testing.assert_allclose(upright, as_stored, atol=1e-5)


def test_signatures_match_the_documentation(loaded):
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


def test_rest_request_is_json_with_base64(classifier, loaded):
    """Decodes the body of a request as TensorFlow Serving does."""
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


def test_pixels_signature_returns_probabilities_in_class_order(
    classifier, loaded
):
    predict = loaded.signatures["pixels"]
    for count in (1, 5):
        images = random_pixels(count)
        np.testing.assert_allclose(
            predict(images=tf.constant(images))["probabilities"],
            classifier.probabilities(images),
            atol=1e-6,
        )
    assert predict.structured_outputs["probabilities"].shape[1] == len(NAMES)


@pytest.mark.parametrize("file_format", ["bmp", "webp"])
def test_files_that_tensorflow_cannot_decode_are_an_error(loaded, file_format):
    content = encoded(smooth_pixels(), file_format)
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["serving_default"](image_bytes=tf.constant([content]))


def test_top_k_is_limited_to_the_number_of_classes(classifier):
    module = ServingModule(classifier, InferenceGraph(classifier), top_k=99)
    outputs = module.files(tf.constant([encoded(smooth_pixels(), "png")]))
    assert outputs["classes"].shape == (1, len(NAMES))
