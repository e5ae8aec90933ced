"""The folder of a report: its name, its subject and its files."""

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

# Settings by which an evaluation can differ from that of the run itself.
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
# Further settings, which are added to the name of a report if it is taken.
FURTHER_SUBJECT_SETTINGS = (
    "with_",
    "model",
    "data_dir",
    "manual_dir",
    "skip_bad_images",
)
PATH_SETTINGS = ("weights", "dataset", "with_", "data_dir", "manual_dir")
# Maximum length of a file name in bytes.
LONGEST_NAME = 255


def write_report(folder, results, facts=None, subject=None):
    """Writes a report. It replaces an earlier one when it is complete.

    Args:
      folder: path of the report, which may not exist yet.
      results: `Results`.
      facts: {name: value for JSON} about the evaluation, to precede the
        metrics.
      subject: the subject from `report_folder`; empty by default.

    Returns:
      The content of `report.json`.

    Raises:
      UserError: the folder cannot be written, or is not a report.
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
    """Writes a comparison. It replaces an earlier one when it is complete.

    Args:
      folder: path for `comparison.json` and `comparison.html`, which may not
        exist yet.
      comparison: a `Comparison`.
      subject: the subject from `report_folder`; empty by default.

    Returns:
      The content of `comparison.json`.

    Raises:
      UserError: the folder cannot be written, or is not a comparison.
    """
    summary = {**comparison_summary(comparison), "subject": subject or {}}
    with _replaced(folder, "comparison.json") as unfinished:
        _write_json(unfinished / "comparison.json", summary)
        html = comparison_page(comparison)
        _write_html(unfinished / "comparison.html", html)
    return summary


def write_predictions(path, predictions):
    """Writes a CSV row for each image, with "|" between its top-5 classes."""
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


def report_folder(explicit, result="report.json", name="report"):
    """Returns the folder of a report inside a run, and its subject.

    The folder is new, or contains an earlier report on the same subject.

    Args:
      explicit: {name: text} of all explicit settings.
      result: name of the JSON file that every such folder contains.
      name: prefix of the folder's name, without `explicit["report"]`. Settings
        that differ from the run follow it.

    Returns:
      The `pathlib.Path` of the folder, and the subject: {name: text}, which
      `result` stores.

    Raises:
      UserError: the folder cannot be written, or contains something else.
    """
    root = Workdir.of(explicit.get("workdir", ".")).path
    names = _report_names(explicit, name)
    if "report" in explicit:
        names = [os.path.expanduser(explicit["report"])]
    for name in names:
        folder = root / name
        _check_folder(folder, result)
        subject = _subject(explicit, folder)
        differences = _differences(explicit, subject, folder / result)
        if not differences:
            return folder, subject
    raise UserError(
        f"--report={explicit['report']}: must be a new folder, or an earlier "
        "report with the same settings. The report there has "
        f"{', '.join(differences)}. Pass another name."
    )


def _report_names(explicit, name):
    """Yields possible names for a report, the shortest first."""
    keys = SUBJECT_SETTINGS
    if "workdir" not in explicit:
        keys = ("weights", *keys)

    def name_with(keys, length):
        parts = [
            f"{key.rstrip('_')}={_shorten(key, explicit[key], length)}"
            for key in keys
            if key in explicit
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
    """Returns the last components of a path, or the text of a setting."""
    if length > 1 and key in PATH_SETTINGS and os.path.exists(text):
        text = os.path.abspath(text)
    return "_".join(pathlib.Path(text).parts[-length:])


def _subject(explicit, folder):
    """Returns {name: text} of all settings that a report depends on.

    Paths are absolute and without links. The path of the run is relative to
    the report, so that both can move together.
    """
    keys, subject = (*SUBJECT_SETTINGS, *FURTHER_SUBJECT_SETTINGS), {}
    if "workdir" in explicit:
        workdir = os.path.realpath(Workdir.of(explicit["workdir"]).path)
        beside = os.path.realpath(folder.parent)
        subject["workdir"] = os.path.relpath(workdir, beside)
    else:
        keys = ("weights", *keys)
    for key in keys:
        if key in explicit:
            subject[key] = explicit[key]
            path = os.path.expanduser(explicit[key])
            if key in PATH_SETTINGS and os.path.exists(path):
                subject[key] = os.path.realpath(path)
    return subject


def _differences(explicit, subject, path):
    """Returns the flags of an earlier report that differ.

    Args:
      explicit: see `report_folder`.
      subject: the subject of the new report.
      path: the earlier report's JSON file, which may not exist.
    """
    if not path.exists():
        return []
    report = read_json(path, "examples")
    # Reports of early versions have no subject, but some settings as typed;
    # comparisons do not have these either.
    earlier = report.get("subject", subject)
    if "subject" not in report:
        for key in {"weights", "dataset", "with_"} & subject.keys():
            if report.get(key) != explicit[key]:
                earlier = {**earlier, key: report.get(key, "unknown")}
    return [
        f"--{key.rstrip('_')}={earlier.get(key, 'unset')}"
        for key in {**earlier, **subject}
        if earlier.get(key) != subject.get(key)
    ]


@contextlib.contextmanager
def _replaced(folder, result):
    """Yields a temporary folder, which replaces `folder` when it is complete.

    Args:
      folder: path of the report.
      result: name of the JSON file that every such folder contains.

    Raises:
      UserError: the folder cannot be written, or contains something else.
    """
    _check_folder(folder, result)
    try:
        with atomic_write(folder) as unfinished:
            unfinished.mkdir()
            yield unfinished
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from error


def _check_folder(folder, result):
    """Checks that a report can be written, before the evaluation starts.

    Raises:
      UserError: the folder cannot be written, or contains something else.
    """
    folder = pathlib.Path(folder)
    parents = (path for path in folder.absolute().parents if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=next(parents, folder)).cleanup()
        foreign = folder.exists() and not (folder / result).exists()
        if foreign and (not folder.is_dir() or os.listdir(folder)):
            raise UserError(
                f"{folder}: not an earlier report (it has no {result}). Pass "
                "a new folder."
            )
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from error


def _not_writable(folder, error):
    return (
        f"{folder}: cannot be written ({error.strerror}). Pass a writable "
        "folder."
    )


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_html(path, html):
    # File names may contain bytes that are not valid text.
    path.write_text(html, encoding="utf-8", errors="backslashreplace")
