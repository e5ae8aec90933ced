"""Predictions for many files, and their output formats."""

import csv
import io
import json

import pytest
from classifiers import random_pixels, small_classifier
from samples import broken_files, encoded

from train_loop.prediction import predict_files as module
from train_loop.prediction.predict_files import (
    PREDICTION_FORMATS,
    FilePrediction,
    predict_files,
)

BATCH_SIZE = 4


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", BATCH_SIZE)


@pytest.fixture(scope="module")
def classifier():
    return small_classifier()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Returns the paths of more than three batches, some broken or missing."""
    folder = tmp_path_factory.mktemp("photos")
    contents = [
        encoded(image, ("png", "jpeg", "bmp", "gif", "webp")[number % 5])
        for number, image in enumerate(random_pixels(3 * BATCH_SIZE + 5, 20))
    ]
    broken = broken_files()
    contents[0], contents[5] = broken["truncated.jpg"], broken["text.gif"]
    contents[-1] = broken["short.png"]
    paths = []
    for number, content in enumerate(contents):
        # Without a suffix.
        path = folder / f"{number} \N{BEAR FACE}"
        path.write_bytes(content)
        paths.append(str(path))
    paths.insert(BATCH_SIZE, str(folder / "missing"))
    return paths


@pytest.mark.slow
def test_predictions_equal_the_classifier_in_order(classifier, paths):
    found = list(predict_files(classifier, paths))
    assert [each.image for each in found] == paths
    # The missing file is among them.
    broken = [0, BATCH_SIZE, 6, len(paths) - 1]
    for number, each in enumerate(found):
        if number in broken:
            assert each.error.startswith("cannot be ")
            assert "\n" not in each.error
            assert each.predictions == ()
            continue
        assert each.error is None
        [expected] = classifier(each.image)
        assert dict(each.predictions) == pytest.approx(dict(expected), abs=1e-6)
        probabilities = [probability for _, probability in each.predictions]
        assert probabilities == sorted(probabilities, reverse=True)
    missing = found[BATCH_SIZE]
    assert missing.error == "cannot be read (No such file or directory)"
    assert len({str(each.predictions) for each in found}) > BATCH_SIZE
    # All batch sizes share one graph.
    assert classifier._probabilities.experimental_get_tracing_count() == 1
    [best] = predict_files(classifier, paths[1:2], top_k=2)
    assert dict(best.predictions) == pytest.approx(
        dict(found[1].predictions[:2])
    )


def test_only_broken_files_are_reported(classifier, paths):
    found = list(predict_files(classifier, [paths[0], paths[0]]))
    assert [bool(each.error) for each in found] == [True, True]


FOUND = (
    FilePrediction("a, b.jpg", (("cat", 0.75), ("dog", 0.25))),
    FilePrediction("\udcff.jpg", error="cannot be decoded (text)"),
    FilePrediction("c.jpg", (("dog", 1.0), ("cat", 0.0))),
)


def lines(name, found=FOUND):
    return list(PREDICTION_FORMATS[name](iter(found)))


def test_json_is_a_list_of_records():
    assert json.loads("".join(lines("json"))) == [
        {
            "image": "a, b.jpg",
            "predictions": [
                {"label": "cat", "probability": 0.75},
                {"label": "dog", "probability": 0.25},
            ],
        },
        {"image": "\udcff.jpg", "error": "cannot be decoded (text)"},
        {
            "image": "c.jpg",
            "predictions": [
                {"label": "dog", "probability": 1.0},
                {"label": "cat", "probability": 0.0},
            ],
        },
    ]
    assert json.loads("".join(lines("json", ()))) == []
    assert (
        json.loads("".join(lines("json", FOUND[:1])))[0]["image"] == "a, b.jpg"
    )


def test_csv_has_a_line_for_each_prediction():
    records = list(csv.DictReader(io.StringIO("\n".join(lines("csv")))))
    assert [record["image"] for record in records] == [
        *["a, b.jpg"] * 2,
        r"\udcff.jpg",
        *["c.jpg"] * 2,
    ]
    assert [record["rank"] for record in records] == ["1", "2", "", "1", "2"]
    assert [record["label"] for record in records] == [
        *("cat", "dog"),
        "",
        *("dog", "cat"),
    ]
    assert float(records[1]["probability"]) == 0.25
    assert records[2]["error"] == "cannot be decoded (text)"


def test_names_cannot_inject_formulas_or_control_characters():
    label = "=cmd|' /C calc'!A0\x1b[2J"
    found = [
        FilePrediction("\x1b]0;x\x07.jpg", ((label, 1.0),)),
        FilePrediction("=1+1.jpg", error="cannot be decoded (\x1b)"),
    ]
    for name in PREDICTION_FORMATS:
        assert "\x1b" not in "".join(lines(name, found))
    one, other = csv.DictReader(lines("csv", found))
    assert one["label"] == r"'=cmd|' /C calc'!A0\x1b[2J"
    assert other["image"] == "'=1+1.jpg"
    # JSON is for programs and keeps the text.
    record, _ = json.loads("".join(lines("json", found)))
    assert record["predictions"][0]["label"] == label


def test_table_has_a_line_for_each_readable_image():
    header, first, second = lines("table")
    assert header.split() == ["image", "1", "2"]
    assert first.split() == ["a,", "b.jpg", "cat", "75.0%", "dog", "25.0%"]
    assert second.split()[1:3] == ["dog", "100.0%"]
    assert lines("table", FOUND[1:2]) == []
