"""The files in the folder of a report."""

import csv
import json
import re
import shutil

import numpy as np
import PIL.Image
import pytest
from drawn_predictions import draw_predictions
from test_charts import ODD_NAMES, RECORDS
from test_page import Outline

from train_loop.errors import UserError
from train_loop.evaluation import report as module
from train_loop.evaluation.charts import CHARTS
from train_loop.evaluation.metrics import METRICS
from train_loop.evaluation.report import write_report
from train_loop.evaluation.results import Results

IMAGES = 90


def load_image(index):
    # Every tenth image is not available.
    return None if index % 10 == 0 else np.full((20, 30, 3), index, "uint8")


@pytest.fixture(scope="module")
def results():
    """Returns results; the last two classes have no examples."""
    names = [f"{n}.jpg" for n in range(IMAGES - 1)]
    drawn = draw_predictions(
        IMAGES,
        8,
        labels=np.arange(IMAGES) % 6,
        class_names=[*ODD_NAMES, "unseen", "unheard"],
        images=[*names, "caf\udce9, <b>.jpg"],
        load_image=load_image,
    )
    return Results.of(drawn, 1.5, RECORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, results):
    folder = tmp_path_factory.mktemp("run") / "report"
    written = write_report(folder, results, {"split": "test", "step": 7})
    assert written == json.loads((folder / "report.json").read_text())
    return folder


@pytest.mark.slow
def test_metrics_are_written(folder, results):
    report = json.loads((folder / "report.json").read_text())
    assert list(report)[:2] == ["split", "step"]
    assert (report["examples"], report["classes"]) == (IMAGES, 8)
    assert report["classes_without_examples"] == 2
    for name in METRICS:
        assert report[name] == results.estimates[name]
        low, high = report["intervals"][name]
        assert low <= report[name] <= high
    assert set(report["intervals"]) == set(METRICS)
    calibrated = report["with_temperature"]
    assert calibrated["temperature"] == 1.5
    assert calibrated["expected_calibration_error"] == results.calibrated_error


def test_predictions_are_written(folder, results):
    predictions = results.predictions
    text = (folder / "predictions.csv").read_text(encoding="utf-8")
    assert text.startswith("image,label,prediction,probability,top_5\n")
    with (folder / "predictions.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == IMAGES
    assert rows[3]["image"] == "3.jpg"
    assert rows[-1]["image"] == "caf\\udce9, <b>.jpg"
    for index in (0, 1, 2):
        row, top = rows[index], predictions.top_5[index]
        assert row["label"] == ODD_NAMES[index]
        best = predictions.class_names[top[0]]
        assert row["prediction"] == best.replace("\udcff", "\\udcff")
        assert row["top_5"].split("|")[0] == row["prediction"]
        assert len(row["top_5"].split("|")) == 5
        expected = np.exp(-predictions.losses[index])
        if top[0] == predictions.labels[index]:
            assert float(row["probability"]) == pytest.approx(
                expected, abs=1e-6
            )


def test_all_charts_are_written(folder):
    files = {path.name for path in folder.iterdir()}
    charts = {f"{name}.{kind}" for name in CHARTS for kind in ("png", "svg")}
    assert files == charts | {"report.json", "report.html", "predictions.csv"}
    for name in CHARTS:
        with PIL.Image.open(folder / f"{name}.png") as image:
            image.verify()


def test_page_shows_metrics_then_charts_then_classes(folder, results):
    source = (folder / "report.html").read_text(encoding="utf-8")
    outline = Outline(source)
    assert outline.count("script") == 1
    # Charts without images.
    assert outline.count("svg") == 5
    titles = re.findall("<h2>(.*?)</h2>", source)
    assert titles == [*(chart.title for chart in CHARTS.values()), "Classes"]
    assert source.index("Mean ROC-AUC") < source.index("<h2>")
    rows = source.rpartition("<tbody>")[2].split("<tr>")[1:]
    assert len(rows) == 8
    assert "&lt;script&gt;" in rows[1]
    accuracy = results.counts.accuracies[0, 0]
    assert f">{100 * accuracy:.1f}</td>" in rows[0]
    # A class without examples has no metrics.
    assert rows[6].count(">–</td>") == 3
    assert "http://" not in re.sub('xmlns(:xlink)?="[^"]*"', "", source)


def test_earlier_report_remains_until_the_new_one_is_complete(
    folder, results, tmp_path, monkeypatch
):
    earlier = tmp_path / "report"
    shutil.copytree(folder, earlier)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "report_page", fail)
    monkeypatch.setattr(module, "write_charts", lambda *arguments: [])
    with pytest.raises(KeyboardInterrupt):
        write_report(earlier, results)
    after = {path.name: path.read_bytes() for path in earlier.iterdir()}
    assert after == before
    assert list(tmp_path.iterdir()) == [earlier]
    monkeypatch.setattr(module, "report_page", lambda *arguments: "")
    write_report(earlier, results)
    assert "step" not in json.loads((earlier / "report.json").read_text())
    assert not (earlier / "roc_curves.png").exists()


def test_folder_without_a_report_is_not_replaced(results, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.tex").write_text("years of work")
    with pytest.raises(
        UserError, match=r"no report\.json\)\. Pass a new folder"
    ):
        write_report(notes, results)
    assert (notes / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="not an earlier report"):
        write_report(notes / "thesis.tex", results)


def test_folder_that_is_not_writable_is_an_error(results, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/report: cannot be written \(Not"
    ):
        write_report(tmp_path / "file" / "report", results)


def test_undefined_metrics_are_null(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "write_charts", lambda *arguments: [])
    of_one_class = draw_predictions(9, 3, labels=np.zeros(9, int))
    report = write_report(tmp_path / "report", Results.of(of_one_class))
    assert report["mean_roc_auc"] is None
    assert report["intervals"]["mean_roc_auc"] == [None, None]
    assert "with_temperature" not in report
