"""Where the numbers of a run end up."""

import json

import pytest

from train_loop import console
from train_loop.training import reports
from train_loop.workdir import read_json_lines


def write(path, *lines):
    path.write_text("".join(lines))


def test_json_lines_hold_what_was_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    report = reports.JsonLinesReport(path, start=0)
    report(5, "train", {"loss": 0.5})
    # Readable at once: a run may be killed at any moment.
    assert read_json_lines(path) == [{"step": 5, "split": "train", "loss": 0.5}]
    report.close()


def test_json_lines_go_on_where_the_run_does(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [
        {"step": s, "split": "train", "loss": s / 8} for s in (5, 10, 15)
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    write(path, *lines, '{"step": 20, "split": "tr')
    report = reports.JsonLinesReport(path, start=10)
    report(15, "train", {"loss": 7.0})
    report.close()
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
def test_numbers_are_written_as_people_read_them(name, value, text):
    assert console.format_metric(name, value) == text


def test_table_is_aligned():
    text = console.text_table(
        [["split", "loss"], ["train", "12.5"], ["ev", "3"]]
    )
    assert text.splitlines() == ["split  loss", "train  12.5", "ev        3"]
