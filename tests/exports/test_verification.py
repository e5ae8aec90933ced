"""Verification: runtimes run the files, whose predictions are compared."""

import ast
import pathlib
import types

import numpy as np
import pytest

from train_loop.exports import runtimes
from train_loop.exports.bundle import from_json, to_json
from train_loop.exports.formats import File
from train_loop.exports.verification import (
    FileMetrics,
    ReferenceImages,
    compare_with_model,
    metrics_table,
    run_files,
)


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


def test_each_file_that_cannot_be_run_is_one_line(reference, tmp_path):
    (tmp_path / "broken.onnx").write_text("no model")
    means_of_colors(tmp_path / "model.onnx")
    names = ("broken.onnx", "model.onnx", "missing.onnx")
    files = [File(name, "onnx") for name in names]
    broken, measured, missing = run_files(tmp_path, files, reference)
    for line in (broken, missing):
        assert line.startswith("cannot be run by onnx (")
        assert len(line.splitlines()) == 1
    assert measured.name == "model.onnx"
    means = reference.images.mean((1, 2))
    largest = np.abs(np.tile(means, 2) - reference.probabilities).max()
    assert measured.difference == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.abort()", "ended by SIGABRT"),
        ("raise ValueError('no model')", "ValueError: no model"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
)
def test_reason_is_the_exception_or_the_end_of_the_process(
    code, expected, tmp_path, monkeypatch
):
    script = tmp_path / "runtime.py"
    script.write_text(code)
    monkeypatch.setattr(runtimes, "__file__", str(script))
    reference = ReferenceImages([], np.zeros((1, 16, 16, 3)), None, None)
    [line] = run_files(tmp_path, [File("x", "onnx")], reference)
    assert line == f"cannot be run by onnx ({expected})"


def test_runtimes_do_not_import_this_project():
    source = pathlib.Path(runtimes.__file__).read_text()
    nodes = ast.walk(ast.parse(source))
    imported = [
        getattr(node, "module", None) or node.names[0].name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert "numpy" in imported
    assert not [name for name in imported if name.startswith("train_loop")]


def test_times_are_ranges_of_alternating_calls(monkeypatch):
    clock, sizes = [0.0], []

    def call(batch):
        sizes.append(len(batch))
        # The first two calls are the warm-up.
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


def test_times_of_earlier_versions_are_shown():
    """They stored medians."""
    known = FileMetrics("onnx/model.onnx", 1.0, 0.0, 0.0, 1.0, None)
    for milliseconds, expected in (
        ([8.0, 1.5], ["8.00", "1.50"]),
        ([[8.0, 9.0], [1.5, 1.75]], ["8.00 to 9.00", "1.50 to 1.75"]),
        ([], ["-", "-"]),
    ):
        text = to_json([known._replace(milliseconds=milliseconds)])
        _, line = metrics_table(from_json(text))
        assert line[-2:] == expected


def test_drift_is_a_fraction_of_the_range_of_the_logits():
    logits = np.array([[0.0, 2.0, 5.0], [1.0, 0.0, 0.5]])
    other = logits + [[0.0, 0.01, 0.0], [0.0, 0.0, 0.0]]

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)

    reference = ReferenceImages([], [], None, softmax(logits))
    measured = compare_with_model("x", 10**6, softmax(other), reference)
    assert measured.megabytes == 1
    assert measured.drift == pytest.approx(0.01 / 5, rel=0.1)
    assert measured.agreement == 1.0
    assert measured.accuracy is None
    # A class that the file does not list is not a difference.
    probabilities = softmax(logits)
    probabilities[0, 0] = runtimes.NOT_LISTED
    measured = compare_with_model("x", 0, probabilities, reference)
    assert measured.difference == 0
