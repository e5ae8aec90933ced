"""The files of all formats: what is in them, and what they predict."""

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

    It has all that a file must handle at once.
    """
    arguments = {"stem": "imagenet", **VARIANTS[variant].arguments, "width": 8}
    arguments |= {"stage_sizes": (1, 1), **options}
    trained = small_classifier(BGR, 32, "mixed_bfloat16", **arguments)
    # So that predictions for random images differ, and none is certain.
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
            # It is another file, not the same one again.
            assert each.difference > 1e-5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a bundle, and the folder with its files of all formats.

    All are written as one format, so that one process runs them.
    """
    bundle, reference = thin_bundle("resnet18", shortcut="pooled_projection")
    # TensorFlow takes such a name for a pattern.
    folder = tmp_path_factory.mktemp("br[1]ack")
    formats = {
        file: row.write for row in EXPORT_FORMATS.values() for file in row.files
    }
    writers = {file.path: write for file, write in formats.items()}
    files = [file for file in formats if file.runtime]
    row = Format(lambda bundle, path: writers[path.name](bundle, path), files)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(EXPORT_FORMATS, "all", row)
        metrics = bundle.write("all", folder, reference)
    check(metrics, [("all", file) for file in files])
    [file] = EXPORT_FORMATS["safetensors"].files
    metrics = bundle.write("safetensors", folder, reference)
    check(metrics, [("safetensors", file)])
    return bundle, folder


@pytest.mark.slow
def test_every_file_answers_as_the_model_does_where_others_run_it(exported):
    """What the fixture checks; and what stands beside the files."""
    _, folder = exported
    for name in ("all", "safetensors"):
        contents = json.loads((folder / name / "classifier.json").read_text())
        assert contents["class_names"] == list(NAMES)
        assert contents["preprocessing"]["normalization"]["bgr"] is False
    assert {path.name for path in folder.iterdir()} == {"all", "safetensors"}


@pytest.mark.slow
def test_pooling_of_negative_numbers_is_quantized(tmp_path):
    """That of a stem without an activation, as pre-activated nets have."""
    bundle, reference = thin_bundle("resnetv2_18")
    files = [("litert", file) for file in EXPORT_FORMATS["litert"].files]
    check(bundle.write("litert", tmp_path, reference), files)


@pytest.mark.slow
def test_onnx_and_litert_have_no_norm_of_their_own(exported):
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
    # That of the pixels.
    assert nodes.count("Mul") == 1
    [properties] = graph.metadata_props
    assert json.loads(properties.value) == list(NAMES)
    for file in EXPORT_FORMATS["litert"].files:
        interpreter = Interpreter(str(folder / "all" / file.path))
        [given], [found] = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        assert given["dtype"] == np.uint8
        assert list(given["shape_signature"]) == [-1, 32, 32, 3]
        assert found["dtype"] == np.float32
        names = [op["op_name"] for op in interpreter._get_ops_details()]
        assert names.count("CONV_2D") == convolutions
        assert names.count("MUL") <= 1


def test_safetensors_have_what_timm_wants_beside_them(tmp_path):
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


def test_nets_that_torch_has_not_are_one_clear_line(tmp_path):
    classifier = small_classifier(preactivation=True)
    with pytest.raises(UserError, match="no pre-activation net"):
        EXPORT_FORMATS["safetensors"].write(Bundle(classifier), tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tflite", "Did you mean|Use one of: saved_model, keras, litert"),
        ("onnx,torch", "--format=torch: unknown"),
        ("", "Use one of: saved_model"),
    ],
)
def test_unknown_formats_are_one_clear_line(text, expected):
    with pytest.raises(UserError, match=expected):
        parse_formats(text)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    row = EXPORT_FORMATS["onnx"]._replace(packages=("not_installed",))
    monkeypatch.setitem(EXPORT_FORMATS, "onnx", row)
    with pytest.raises(UserError) as error:
        parse_formats("keras,onnx")
    assert str(error.value) == (
        "--format=onnx needs not_installed, of the extra export: "
        "pip install 'resnet-layers[export]'"
    )


def test_formats_are_written_once_each():
    assert parse_formats("keras, saved_model,keras") == ["keras", "saved_model"]


@pytest.fixture(scope="module")
def loaded(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    export_saved_model(Bundle(classifier, top_k=TOP_K), folder)
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


@pytest.mark.slow
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


def test_more_classes_than_there_are_cannot_be_named(classifier):
    module = ServingModule(classifier, InferenceGraph(classifier), top_k=99)
    outputs = module.files(tf.constant([encoded(smooth_pixels(), "png")]))
    assert outputs["classes"].shape == (1, len(NAMES))
