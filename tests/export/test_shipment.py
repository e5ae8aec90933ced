"""Files of all formats, run by others, and what is kept where one fails."""

import ast
import errno
import functools
import json
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf
from classifiers import BGR, NAMES, random_pixels, small_classifier
from samples import encoded

from resnet_layers import VARIANTS, PaddedConv2D, read_preprocessing
from train_loop.errors import UserError
from train_loop.export import comparison, runtimes
from train_loop.export.bundle import Shipment, check_replaceable
from train_loop.export.comparison import (
    File,
    Measured,
    from_json,
    table_rows,
    to_json,
)
from train_loop.export.formats import FORMATS, Format, parse_formats
from train_loop.export.rewriting import in_float32, portable


def pictures_for(classifier, count=9):
    """Returns `Pictures` that are not always of the same class."""
    files = [encoded(image, "png") for image in random_pixels(count, 20)]
    # TensorFlow itself would refuse it.
    files[1] = encoded(random_pixels(1, 20)[0], "bmp")
    pictures = comparison.Pictures.of(classifier, files)
    assert np.max(pictures.probabilities) < 0.99
    labels = np.argmax(pictures.probabilities, axis=1)
    return pictures._replace(labels=labels)


@functools.cache
def thin_shipment(variant):
    """Returns a `Shipment` of a variant with few channels, and `Pictures`.

    It has all that a file must take care of at once.
    """
    arguments = {"stem": "imagenet", **VARIANTS[variant].arguments, "width": 8}
    trained = small_classifier(BGR, 32, "mixed_bfloat16", **arguments)
    # So that predictions for random images differ, and none is certain.
    logits = trained.logits(random_pixels(9, 32)).numpy()
    scale = 4 / np.ptp(logits - logits.mean(axis=0))
    head = trained.model.head
    head.kernel.assign(head.kernel * scale)
    head.bias.assign((head.bias - logits.mean(axis=0)) * scale)
    pictures = pictures_for(in_float32(trained))
    return Shipment(portable(trained), pictures.images), pictures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((name, "resnet18") for name in FORMATS),
        # The pooling of its stem gets negative numbers.
        ("litert", "resnetv2_18"),
    ],
)
def test_every_file_answers_as_the_model_does_where_others_run_it(
    name, variant, tmp_path
):
    shipment, pictures = thin_shipment(variant)
    # TensorFlow takes such a name for a pattern.
    folder = tmp_path / "br[1]ack"
    measured, failures = shipment.write(name, folder, pictures)
    assert failures == []
    assert [each.name for each in measured] == [
        f"{name}/{file}" for file in FORMATS[name].files
    ]
    for each, file in zip(measured, FORMATS[name].files, strict=True):
        assert each.megabytes > 0
        assert each.difference < (1e-5 if file.is_exact else 0.1)
        assert each.agreement == each.accuracy
        assert each.agreement > 0.5
        assert len(each.milliseconds) == (2 if file.runtime else 0)
        if not file.is_exact:
            # It is another file, not the same one again.
            assert each.difference > 1e-5
    contents = json.loads((folder / name / "classifier.json").read_text())
    assert contents["class_names"] == list(NAMES)
    assert contents["preprocessing"]["normalization"]["bgr"] is False
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.slow
def test_onnx_and_litert_have_no_norm_of_their_own(tmp_path):
    import onnx
    from ai_edge_litert.interpreter import Interpreter

    classifier = small_classifier(shortcut="pooled_projection")
    shipment = Shipment(classifier, random_pixels(2))
    for name in ("onnx", "litert"):
        (tmp_path / name).mkdir()
        for file in FORMATS[name].files:
            FORMATS[name].write(shipment, tmp_path / name / file.path)
    graph = onnx.load(tmp_path / "onnx/model.onnx")
    nodes = [node.op_type for node in graph.graph.node]
    convolutions = sum(
        isinstance(layer, PaddedConv2D)
        for layer in classifier.model._flatten_layers()
    )
    assert nodes.count("Conv") == convolutions
    assert "BatchNormalization" not in nodes
    # That of the pixels.
    assert nodes.count("Mul") == 1
    [properties] = graph.metadata_props
    assert json.loads(properties.value) == list(NAMES)
    for file in (tmp_path / "litert").iterdir():
        interpreter = Interpreter(str(file))
        [given], [told] = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        assert given["dtype"] == np.uint8
        assert list(given["shape_signature"]) == [-1, 16, 16, 3]
        assert told["dtype"] == np.float32
        names = [op["op_name"] for op in interpreter._get_ops_details()]
        assert names.count("CONV_2D") == convolutions
        assert names.count("MUL") <= 1


def test_safetensors_have_what_timm_wants_beside_them(tmp_path):
    classifier = small_classifier(BGR)
    path = tmp_path / "model.safetensors"
    FORMATS["safetensors"].write(Shipment(portable(classifier)), path)
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
        FORMATS["safetensors"].write(Shipment(classifier), tmp_path / "x")


@pytest.fixture
def classifier():
    return small_classifier()


def write_format(monkeypatch, write, read, *files):
    """Puts a format of files without a runtime among the others."""
    row = Format(write, files, read=read)
    monkeypatch.setitem(FORMATS, "own", row)


def other_head(classifier):
    """Returns the classifier with a slightly different answer."""
    other = small_classifier()
    bias = other.model.head.bias
    bias.assign(bias + tf.one_hot(0, len(NAMES)) * 1e-2)
    return other


def nans(classifier):
    other = small_classifier()
    other.model.head.bias.assign([np.nan] * len(NAMES))
    return other


@pytest.mark.parametrize(
    ("change", "is_exact", "expected"),
    [
        (other_head, True, "own/file: predicts otherwise than the model: log"),
        (other_head, False, None),
        (nans, False, "own/file: predicts NaN"),
    ],
)
def test_files_that_answer_otherwise_replace_nothing(
    classifier, change, is_exact, expected, tmp_path, monkeypatch
):
    pictures = pictures_for(classifier)

    def write(content):
        def write_file(shipment, path):
            path.write_text(content)

        return write_file

    def read(classifier, path):
        earlier = path.read_text() == "earlier"
        return classifier if earlier else change(classifier)

    file = File("file", is_exact=is_exact)
    write_format(monkeypatch, write("earlier"), read, file)
    shipment = Shipment(classifier)
    shipment.write("own", tmp_path, pictures)
    write_format(monkeypatch, write("later"), read, file)
    measured, failures = shipment.write("own", tmp_path, pictures)
    if expected:
        [line] = failures
        assert line.startswith(expected)
        assert measured == []
    else:
        assert measured[0].drift > comparison.TOLERANCE
        assert failures == []
    left = "earlier" if expected else "later"
    assert (tmp_path / "own/file").read_text() == left
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_each_file_of_a_format_stands_alone(classifier, tmp_path, monkeypatch):
    def write(shipment, path):
        if path.name == "unwritable":
            raise RuntimeError("no such\noperation")
        path.write_text(path.name)

    def read(classifier, path):
        return nans(classifier) if path.name == "nan" else classifier

    names = ("unwritable", "nan", "right")
    write_format(monkeypatch, write, read, *map(File, names))
    pictures = pictures_for(classifier)
    measured, failures = Shipment(classifier).write("own", tmp_path, pictures)
    assert [each.name for each in measured] == ["own/right"]
    assert failures == [
        "own/unwritable: cannot be written (RuntimeError: no such operation)",
        "own/nan: predicts NaN",
    ]
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        "classifier.json",
        "measured.json",
        "right",
    ]


def test_a_full_disk_is_no_fault_of_a_format(classifier, tmp_path, monkeypatch):
    def write(shipment, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_format(monkeypatch, write, None, File("file"))
    with pytest.raises(OSError, match="No space left"):
        Shipment(classifier).write("own", tmp_path, None)


def test_what_is_no_export_is_not_replaced(tmp_path, classifier):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras/mine.py").write_text("work of years")
    with pytest.raises(UserError, match="is no earlier export"):
        check_replaceable(["saved_model", "keras"], tmp_path)
    check_replaceable(["saved_model"], tmp_path)
    (tmp_path / "keras/classifier.json").write_text("{}")
    check_replaceable(["keras"], tmp_path)


def means_of_colors(path):
    """Writes an ONNX file that predicts three numbers, twice."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node(
            "ReduceMean", ["cast"], ["x"], axes=[1, 2], keepdims=0
        ),
        helper.make_node("Concat", ["x", "x"], ["y"], axis=1),
    ]
    shape = (None, 16, 16, 3)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, shape)
    outputs = helper.make_tensor_value_info("y", TensorProto.FLOAT, (None, 6))
    graph = helper.make_graph(nodes, "graph", [images], [outputs])
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def test_files_that_cannot_be_run_are_one_line_each(classifier, tmp_path):
    (tmp_path / "broken.onnx").write_text("no model")
    means_of_colors(tmp_path / "model.onnx")
    pictures = pictures_for(classifier, 2)
    names = ("broken.onnx", "model.onnx", "missing.onnx")
    files = [File(name, "onnx") for name in names]
    broken, measured, missing = comparison.measure(tmp_path, files, pictures)
    for line in (broken, missing):
        assert line.startswith("cannot be run by onnx (")
        assert len(line.splitlines()) == 1
    assert measured.name == "model.onnx"
    means = pictures.images.mean((1, 2))
    largest = np.abs(np.tile(means, 2) - pictures.probabilities).max()
    assert measured.difference == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.abort()", "ended by SIGABRT"),
        ("raise ValueError('no model')", "ValueError: no model"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
)
def test_runtime_that_ends_is_told_from_one_that_raises(
    code, expected, tmp_path, monkeypatch
):
    script = tmp_path / "runtime.py"
    script.write_text(code)
    monkeypatch.setattr(comparison.runtimes, "__file__", str(script))
    pictures = comparison.Pictures([], np.zeros((1, 16, 16, 3)), None, None)
    [line] = comparison.measure(tmp_path, [File("x", "onnx")], pictures)
    assert line == f"cannot be run by onnx ({expected})"


def test_runtimes_know_nothing_of_this_project():
    source = pathlib.Path(comparison.runtimes.__file__).read_text()
    nodes = ast.walk(ast.parse(source))
    named = [
        getattr(node, "module", None) or node.names[0].name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert "numpy" in named
    assert not [name for name in named if name.startswith("train_loop")]


def test_times_are_ranges_of_calls_that_take_turns(monkeypatch):
    clock, sizes = [0.0], []

    def call(batch):
        sizes.append(len(batch))
        # The first two only warm up.
        clock[0] += len(batch) * (5.0 if len(sizes) <= 2 else len(sizes) / 1e3)

    perf_counter = types.SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(runtimes, "time", perf_counter)
    found = runtimes.milliseconds(call, np.zeros([3, 2, 2, 3], "uint8"))
    assert sizes == [1, 32] * (len(sizes) // 2)
    assert len(sizes) > 6
    for number, (low, high) in enumerate(found):
        calls = range(3 + number, len(sizes) + 1, 2)
        expected = np.percentile(calls, [10, 90])
        assert [low, high] == pytest.approx(expected)


def test_times_of_exports_of_before_are_shown():
    """An earlier version kept medians."""
    known = Measured("onnx/model.onnx", 1.0, 0.0, 0.0, 1.0, None)
    for milliseconds, expected in (
        ([8.0, 1.5], ["8.00", "1.50"]),
        ([[8.0, 9.0], [1.5, 1.75]], ["8.00 to 9.00", "1.50 to 1.75"]),
        ([], ["-", "-"]),
    ):
        text = to_json([known._replace(milliseconds=milliseconds)])
        _, row = table_rows(from_json(text))
        assert row[-2:] == expected


def test_drift_is_a_part_of_the_logits_spread():
    logits = np.array([[0.0, 2.0, 5.0], [1.0, 0.0, 0.5]])
    other = logits + [[0.0, 0.01, 0.0], [0.0, 0.0, 0.0]]

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)

    pictures = comparison.Pictures([], [], None, softmax(logits))
    measured = comparison.compare("x", 10**6, softmax(other), pictures)
    assert measured.megabytes == 1
    assert measured.drift == pytest.approx(0.01 / 5, rel=0.1)
    assert measured.agreement == 1.0
    assert measured.accuracy is None
    # A class that is not named is no difference.
    answers = softmax(logits)
    answers[0, 0] = comparison.runtimes.UNSAID
    measured = comparison.compare("x", 0, answers, pictures)
    assert measured.difference == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tflite", "did you mean|It takes: saved_model, keras, litert"),
        ("onnx,torch", "--format=torch is unknown"),
        ("", "It takes: saved_model"),
    ],
)
def test_unknown_formats_are_one_clear_line(text, expected):
    with pytest.raises(UserError, match=expected):
        parse_formats(text)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    row = FORMATS["onnx"]._replace(packages=("not_installed",))
    monkeypatch.setitem(FORMATS, "onnx", row)
    with pytest.raises(UserError) as error:
        parse_formats("keras,onnx")
    assert str(error.value) == (
        "--format=onnx needs not_installed, of the extra export: "
        "pip install 'resnet-layers[export]'"
    )


def test_formats_are_written_once_each():
    assert parse_formats("keras, saved_model,keras") == ["keras", "saved_model"]
