"""The folder of a report: its name, its subject, and the files in it."""

import contextlib
import csv
import itertools
import json
import os
import pathlib
import tempfile

from train_loop.console import csv_cells
from train_loop.errors import UserError
from train_loop.evaluation.charts import write_charts
from train_loop.evaluation.comparison import comparison_summary
from train_loop.evaluation.page import comparison_page, report_page
from train_loop.evaluation.results import results_summary
from train_loop.workdir import Workdir, atomic_write, read_json

# Settings by which an evaluation differs from the one that a run makes itself.
SUBJECT_SETTINGS = (
    "checkpoint",
    "use_weight_average",
    "dataset",
    "eval_split",
    "image_size",
    "crop_fraction",
    "interpolation",
    "test_time_augmentation",
    "normalization",
    "train_split",
    "validation_fraction",
)
# More of them, which are part of a report's name only where that is taken.
FURTHER_SUBJECT_SETTINGS = (
    "with_",
    "model",
    "data_dir",
    "manual_dir",
    "skip_bad_images",
)
PATH_SETTINGS = ("weights", "dataset", "with_", "data_dir", "manual_dir")
# In bytes, what file systems allow.
LONGEST_NAME = 255


def write_report(folder, results, facts=None, subject=None):
    """Writes a report, in place of an earlier one once it is complete.

    Args:
      folder: of the report; it may not exist yet.
      results: `Results`.
      facts: {name: value for JSON} to stand in front of the metrics, such as
        what was measured.
      subject: of `report_folder`; nothing by default.

    Returns:
      The content of `report.json`.

    Raises:
      UserError: the folder cannot be written, or holds no report.
    """
    facts = facts or {}
    summary = {**facts, **results_summary(results), "subject": subject or {}}
    with _replaced(folder, "report.json") as unfinished:
        _write_json(unfinished / "report.json", summary)
        write_predictions(unfinished / "predictions.csv", results.predictions)
        drawings = {
            name: (unfinished / f"{name}.svg").read_text(encoding="utf-8")
            for name in write_charts(unfinished, results)
        }
        html = report_page(results, facts, drawings)
        _write_html(unfinished / "report.html", html)
    return summary


def write_comparison(folder, comparison, subject=None):
    """Writes a comparison as JSON and as a page, in place of an earlier one.

    Args:
      folder: to write `comparison.json` and `comparison.html` to; it may not
        exist yet.
      comparison: a `Comparison`.
      subject: of `report_folder`; nothing by default.

    Returns:
      The content of `comparison.json`.

    Raises:
      UserError: the folder cannot be written, or holds no comparison.
    """
    summary = {**comparison_summary(comparison), "subject": subject or {}}
    with _replaced(folder, "comparison.json") as unfinished:
        _write_json(unfinished / "comparison.json", summary)
        html = comparison_page(comparison)
        _write_html(unfinished / "comparison.html", html)
    return summary


def write_predictions(path, predictions):
    """Writes a CSV line for each image, with "|" between its top 5 classes."""
    names = predictions.class_names
    columns = zip(
        predictions.images,
        predictions.labels,
        predictions.top_5,
        predictions.confidences,
        strict=True,
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "label", "prediction", "probability", "top_5"]
        )
        for image, label, top, probability in columns:
            row = [
                image,
                names[label],
                names[top[0]],
                f"{probability:.6f}",
                "|".join(names[number] for number in top),
            ]
            writer.writerow(csv_cells(row))


def report_folder(given, result="report.json", name="report"):
    """Returns the folder of a report in that of a run, and its subject.

    The folder is new, or holds an earlier report on the same subject.

    Args:
      given: {name: text} of all explicit settings.
      result: the name of a file that every such folder holds.
      name: used without `given["report"]`; what differs from the run is
        appended to it.

    Returns:
      The `pathlib.Path` of the folder, and {name: text} to keep in `result`,
      as "subject".

    Raises:
      UserError: the folder cannot be written, or holds something else.
    """
    root = Workdir.of(given.get("workdir", ".")).path
    names = _report_names(given, name)
    if "report" in given:
        names = [os.path.expanduser(given["report"])]
    for name in names:
        folder = root / name
        _check_folder(folder, result)
        subject = _subject(given, folder)
        differences = _differences(given, subject, folder / result)
        if not differences:
            return folder, subject
    raise UserError(
        f"--report={given['report']}: must be new, or an earlier report of the "
        f"same. It has another subject ({', '.join(differences)}). Use another "
        "name."
    )


def _report_names(given, name):
    """Yields names for a report, the shortest first."""
    keys = SUBJECT_SETTINGS
    if "workdir" not in given:
        keys = ("weights", *keys)

    def name_with(keys, length):
        parts = [
            f"{key.rstrip('_')}={_shorten(key, given[key], length)}"
            for key in keys
            if key in given
        ]
        return "-".join([name, *parts]).replace("/", "_")

    yield name_with(keys, 1)
    for length in (1, 2, 3):
        longer = name_with((*keys, *FURTHER_SUBJECT_SETTINGS), length)
        if len(os.fsencode(longer)) <= LONGEST_NAME:
            yield longer
    for number in itertools.count(2):
        yield f"{name_with(keys, 1)}-{number}"


def _shorten(key, text, length):
    """Returns the last parts of a path, or of another setting."""
    if length > 1 and key in PATH_SETTINGS and os.path.exists(text):
        text = os.path.abspath(text)
    return "_".join(pathlib.Path(text).parts[-length:])


def _subject(given, folder):
    """Returns {name: text} of all settings that a report depends on.

    Paths are absolute, with links resolved. That of the run is relative to the
    report, so that a folder with both may be moved.
    """
    keys, subject = (*SUBJECT_SETTINGS, *FURTHER_SUBJECT_SETTINGS), {}
    if "workdir" in given:
        workdir = os.path.realpath(Workdir.of(given["workdir"]).path)
        beside = os.path.realpath(folder.parent)
        subject["workdir"] = os.path.relpath(workdir, beside)
    else:
        keys = ("weights", *keys)
    for key in keys:
        if key in given:
            subject[key] = given[key]
            path = os.path.expanduser(given[key])
            if key in PATH_SETTINGS and os.path.exists(path):
                subject[key] = os.path.realpath(path)
    return subject


def _differences(given, subject, path):
    """Returns the flags by which the subject of an earlier report differs.

    Args:
      given: see `report_folder`.
      subject: of the new report.
      path: of the earlier report's JSON, which may not exist.
    """
    if not path.exists():
        return []
    report = read_json(path, "examples")
    # Before there were subjects, a report kept the names that were typed, and
    # a comparison none.
    earlier = report.get("subject", subject)
    if "subject" not in report:
        for key in {"weights", "dataset", "with_"} & subject.keys():
            if report.get(key) != given[key]:
                earlier = {**earlier, key: report.get(key, "unknown")}
    return [
        f"--{key.rstrip('_')}={earlier.get(key, 'not given')}"
        for key in {**earlier, **subject}
        if earlier.get(key) != subject.get(key)
    ]


@contextlib.contextmanager
def _replaced(folder, result):
    """Yields a folder to write to, which replaces another once complete.

    Args:
      folder: path of the other one.
      result: the name of a file that every such folder holds.

    Raises:
      UserError: as `_check_folder` does.
    """
    _check_folder(folder, result)
    try:
        with atomic_write(folder) as unfinished:
            unfinished.mkdir()
            yield unfinished
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from error


def _check_folder(folder, result):
    """Checks before any long work whether a report can be written.

    Raises:
      UserError: it cannot be written, or holds something else.
    """
    folder = pathlib.Path(folder)
    parents = (path for path in folder.absolute().parents if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=next(parents, folder)).cleanup()
        foreign = folder.exists() and not (folder / result).exists()
        if foreign and (not folder.is_dir() or os.listdir(folder)):
            raise UserError(
                f"{folder} holds something else than an earlier report (there "
                f"is no {result}), and would be replaced; name a new folder"
            )
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from error


def _not_writable(folder, error):
    return (
        f"{folder} cannot be written ({error.strerror}); name a folder that "
        "can be"
    )


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_html(path, html):
    # Names of files may hold bytes that are no text.
    path.write_text(html, encoding="utf-8", errors="backslashreplace")
