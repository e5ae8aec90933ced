"""Where the numbers of a run end up; TensorBoard is asked over HTTP."""

import contextlib
import json
import urllib.parse
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from small_trainers import make_resnet
from tensorboard import program

from train_loop import console
from train_loop.training import reports
from train_loop.training.reports import NO_PROFILE, Profile
from train_loop.workdir import read_json_lines

STEPS = (5, 10)


def write(path, *lines):
    path.write_text("".join(lines))


def test_json_lines_hold_the_reports(tmp_path):
    path = tmp_path / "metrics.jsonl"
    report = reports.JsonLinesReport(path, start=0)
    report(5, "train", {"loss": 0.5})
    # Readable at once: a run may be killed at any moment.
    assert read_json_lines(path) == [{"step": 5, "split": "train", "loss": 0.5}]


def test_json_lines_resume_with_the_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [
        {"step": s, "split": "train", "loss": s / 8} for s in (5, 10, 15)
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    write(path, *lines, '{"step": 20, "split": "tr')
    report = reports.JsonLinesReport(path, start=10)
    report(15, "train", {"loss": 7.0})
    expected = [*records[:2], {"step": 15, "split": "train", "loss": 7.0}]
    assert read_json_lines(path) == expected


def test_console_shows_a_line_per_report(capsys):
    report = reports.ConsoleReport(steps=1000)
    report(50, "eval", {"loss": 0.5, "accuracy": 0.25})
    line = "  50/1000  eval   loss 0.5000  accuracy 25.00%\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.98765, "98.77%"),
        ("loss", 0.123456, "0.1235"),
        ("images_per_second", 1234.5, "1,234"),
        ("images_per_second", 918.4, "918"),
        # ResNet-50 on a CPU, and the first report on ImageNet.
        ("images_per_second", 7.351, "7.35"),
        ("epoch", 0.01998, "0.0200"),
        ("epoch", 0.0, "0.00"),
        ("learning_rate", 0.00123456, "0.00123"),
    ],
)
def test_numbers_are_formatted_by_metric(name, value, text):
    assert console.format_metric(name, value) == text


def test_table_is_aligned():
    text = console.text_table(
        [["split", "loss"], ["train", "12.5"], ["ev", "3"]]
    )
    assert text.splitlines() == ["split  loss", "train  12.5", "ev        3"]


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Returns a function that queries TensorBoard: path -> response."""
    folder = tmp_path_factory.mktemp("logs")
    model = make_resnet(name="resnet_tiny")
    model.build((None, 8, 8, 3))
    report = reports.TensorBoardReport(
        folder / "run", {"train": 0, "eval": 0}, model
    )
    report.write_settings({"model": "resnet_tiny", "learning_rate": "0.1"})
    report.write_graph(model, (2, 8, 8, 3))
    report.write_images("training_images", tf.zeros([4, 8, 8, 3]))
    for step in STEPS:
        numbers = {"loss": 1 / step, "accuracy": step / 10}
        speed = {"epoch": step, "images_per_second": 7.0}
        report(step, "train", {**numbers, **speed})
        report(step, "eval", numbers)
    is_class = np.array([True, False, True])
    report.write_pr_curve("cat", is_class, np.array([0.9, 0.2, 0.4]), 10)
    report.write_end()
    report.close()
    server = program.TensorBoard()
    server.configure(logdir=str(folder), port=0, host="127.0.0.1")
    url = server.launch()

    def ask(path, data=None, **query):
        query = urllib.parse.urlencode(query)
        request = urllib.request.Request(
            f"{url}data/plugin/{path}?{query}",
            None if data is None else json.dumps(data).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    return ask


def tags(ask, plugin):
    return {
        run: set(found)
        for run, found in json.loads(ask(f"{plugin}/tags")).items()
    }


def test_curves_are_grouped_and_overlaid(ask):
    quality = {"quality/loss", "quality/accuracy"}
    assert tags(ask, "scalars") == {
        "run/train": {*quality, "speed/images_per_second"},
        "run/eval": quality,
    }
    answer = ask("scalars/scalars", run="run/eval", tag="quality/loss")
    points = [(step, value) for _, step, value in json.loads(answer)]
    assert points == [(step, pytest.approx(1 / step)) for step in STEPS]


def test_graph_has_the_name_of_the_model(ask):
    graph = ask("graphs/graph", run="run/train", conceptual="false").decode()
    assert 'name: "resnet_tiny/stem/conv1' in graph
    assert "_1/" not in graph


def test_images_text_histograms_and_curves_are_written(ask):
    assert tags(ask, "images") == {"run/train": {"training_images"}}
    assert tags(ask, "text")["run/train"] == {"flags"}
    assert "resnet_tiny/head/kernel" in tags(ask, "histograms")["run/eval"]
    assert tags(ask, "pr_curves") == {"run/eval": {"cat/pr_curves"}}
    answer = ask("pr_curves/pr_curves", tag="cat/pr_curves", run="run/eval")
    [curve] = json.loads(answer)["run/eval"]
    assert curve["step"] == 10
    # A probability of at least 0.5 counts as positive.
    middle = np.searchsorted(curve["thresholds"], 0.5)
    assert curve["precision"][middle] == 1
    assert curve["recall"][middle] == 0.5


def test_runs_are_compared_by_settings_and_metrics(ask):
    experiment = json.loads(ask("hparams/experiment", data={}))
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert names == {"model", "learning_rate"}
    wanted = {
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 10,
        "allowedStatuses": ["STATUS_SUCCESS"],
    }
    groups = json.loads(ask("hparams/session_groups", data=wanted))
    [group] = groups["sessionGroups"]
    assert group["hparams"]["learning_rate"] == "0.1"
    metrics = {
        value["name"]["tag"]: value["value"] for value in group["metricValues"]
    }
    expected = {"quality/accuracy": 1.0, "quality/loss": 0.1}
    assert metrics == pytest.approx(expected)


def test_profile_splits_steps_at_its_ends(monkeypatch):
    folders = []
    monkeypatch.setattr(
        tf.profiler.experimental,
        "Profile",
        lambda folder: contextlib.nullcontext(folders.append(folder)),
    )
    profile = Profile(3, 5, "logs")
    for start, stop, sizes, count in (
        (0, 10, [2, 3, 5], 1),
        (0, 4, [2, 2], 1),
        (4, 10, [1, 5], 1),
        (2, 5, [3], 1),
        (5, 10, [5], 0),
        (0, 2, [2], 0),
    ):
        folders.clear()
        sections = list(profile.sections(start, stop))
        assert [size for size, _ in sections] == sizes
        assert folders == ["logs"] * count
    assert [size for size, _ in NO_PROFILE.sections(3, 9)] == [6]


def test_grid_arranges_images():
    images = np.arange(4.0).reshape(4, 1, 1, 1) * np.ones((4, 2, 3, 1))
    grid = reports.image_grid(images)
    assert grid.shape == (4, 6, 1)
    expected = [[0] * 3 + [1] * 3] * 2 + [[2] * 3 + [3] * 3] * 2
    np.testing.assert_array_equal(grid[..., 0], expected)
