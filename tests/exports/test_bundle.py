"""Bundles: which files are kept, and which replace an earlier export."""

import errno
import types

import numpy as np
import pytest
import tensorflow as tf

from train_loop.errors import UserError
from train_loop.exports import verification
from train_loop.exports.bundle import Bundle, check_replaceable
from train_loop.exports.formats import EXPORT_FORMATS, File, Format


def write_format(monkeypatch, write, read, *files):
    """Adds a format whose files have no runtime."""
    entry = Format(write, files, read=read)
    monkeypatch.setitem(EXPORT_FORMATS, "own", entry)


def predicting(probabilities):
    """Returns a classifier that predicts the same for all images."""
    return types.SimpleNamespace(
        probabilities=lambda _: tf.constant(probabilities)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("added", "is_exact", "expected"),
    [
        (1e-2, True, "own/file: predictions differ from the model's: log"),
        (1e-2, False, None),
        (np.nan, False, "own/file: predicts NaN"),
    ],
)
def test_files_with_other_predictions_do_not_replace_an_export(
    classifier, reference, added, is_exact, expected, tmp_path, monkeypatch
):
    def write(content):
        return lambda bundle, path: path.write_text(content)

    def read(classifier, path):
        if path.read_text() == "earlier":
            return classifier
        return predicting(reference.probabilities + np.float32(added))

    file = File("file", is_exact=is_exact)
    write_format(monkeypatch, write("earlier"), read, file)
    bundle = Bundle(classifier)
    bundle.write("own", tmp_path, reference)
    write_format(monkeypatch, write("later"), read, file)
    metrics, failures = bundle.write("own", tmp_path, reference)
    if expected:
        [line] = failures
        assert line.startswith(expected)
        assert metrics == []
    else:
        assert metrics[0].drift > verification.TOLERANCE
        assert failures == []
    remaining = "earlier" if expected else "later"
    assert (tmp_path / "own/file").read_text() == remaining
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_one_failed_file_does_not_affect_the_others(
    classifier, reference, tmp_path, monkeypatch
):
    def write(bundle, path):
        if path.name == "unwritable":
            raise RuntimeError("no such\noperation")
        path.write_text(path.name)

    def read(classifier, path):
        factor = np.float32("nan") if path.name == "nan" else 1
        return predicting(reference.probabilities * factor)

    names = ("unwritable", "nan", "right")
    write_format(monkeypatch, write, read, *map(File, names))
    metrics, failures = Bundle(classifier).write("own", tmp_path, reference)
    assert [each.name for each in metrics] == ["own/right"]
    assert failures == [
        "own/unwritable: cannot be written (RuntimeError: no such operation)",
        "own/nan: predicts NaN",
    ]
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        "classifier.json",
        "measured.json",
        "right",
    ]


def test_full_disk_is_not_an_error_of_one_format(
    classifier, tmp_path, monkeypatch
):
    def write(bundle, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_format(monkeypatch, write, None, File("file"))
    with pytest.raises(OSError, match="No space left"):
        Bundle(classifier).write("own", tmp_path, None)


def test_folder_without_an_export_is_not_replaced(tmp_path, classifier):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras/mine.py").write_text("work of years")
    with pytest.raises(UserError, match="keras: not an earlier export"):
        check_replaceable(["saved_model", "keras"], tmp_path)
    check_replaceable(["saved_model"], tmp_path)
    (tmp_path / "keras/classifier.json").write_text("{}")
    check_replaceable(["keras"], tmp_path)
