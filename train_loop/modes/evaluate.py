"""Evaluation: a report on a trained model, on any data with its classes."""

import itertools
import os
import pathlib

from train_loop.builders.evaluation import Measurement
from train_loop.builders.model import find_checkpoint, given_class_names
from train_loop.console import printable, text_table
from train_loop.errors import UserError
from train_loop.evaluation.calibration import fit_temperature
from train_loop.evaluation.findings import Findings
from train_loop.evaluation.folders import check_folder
from train_loop.evaluation.measures import MEASURES
from train_loop.evaluation.report import write_report
from train_loop.settings import to_text
from train_loop.workdir import Workdir, read_json, read_json_lines

# What makes a measurement another one than that which a run makes of itself.
TELLING = (
    "checkpoint",
    "averaged",
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
# What does so too, and is part of a report's name only where that is taken.
ALSO_TELLING = ("with_", "model", "data_dir", "manual_dir", "skip_bad_images")
# In bytes, what file systems allow.
LONGEST_NAME = 255
PATHS = ("weights", "dataset", "with_", "data_dir", "manual_dir")


def evaluate(settings):
    """Writes a report on the last checkpoint of a run, or on weights.

    Any data set with the same classes will do, in any size and on any number
    of devices; the run stays as it is.

    Args:
      settings: `Settings` that were given.

    Returns:
      What the `report.json` of the report holds.

    Raises:
      UserError: it cannot be measured, or the report not be written.
    """
    measurement = Measurement(settings)
    report_folder(settings)
    classifier = measurement.open_classifier(
        measurement.source,
        model=settings.model,
        class_names=given_class_names(settings),
        step=settings.checkpoint,
    )
    examples = measurement.open_examples(classifier.class_names)
    if examples.note:
        print(printable(examples.note))
    temperature = None
    if settings.calibration_split is not None:
        others = measurement.open_examples(
            classifier.class_names, settings.calibration_split
        )
        if others.split.overlap(examples.split):
            raise UserError(
                f"--calibration_split={settings.calibration_split} shares "
                "images with what is measured; name a part that has none of it"
            )
        fitted_on = measurement.predict(classifier, others)
        temperature = fit_temperature(fitted_on.logits, fitted_on.labels)
    predictions = measurement.predict(classifier, examples)
    findings = Findings.of(predictions, temperature, _records(settings))
    # Another evaluation may have taken the name meanwhile.
    folder, subject = report_folder(settings)
    facts = _facts(settings, measurement)
    report = write_report(folder, findings, facts, subject)
    print(text_table(_rows(findings, report)))
    if report["mean_roc_auc"] is None:
        print(
            "All images are of one class: there is no ROC-AUC, which compares "
            "a class with others."
        )
    print(f"Look at {folder / 'report.html'}.")
    return report


def report_folder(settings, result="report.json", name="report"):
    """Returns where a report goes, into the run's folder, and what it is of.

    The folder is new, or holds an earlier report of the same subject.

    Args:
      settings: `Settings` that were given.
      result: the name of a file that every such folder holds.
      name: where none was given; what differs from the run is put behind it.

    Returns:
      The `pathlib.Path` of the folder, and {name: text} to keep in `result`,
      as "subject".

    Raises:
      UserError: the folder cannot be written, or holds something else.
    """
    root = Workdir.of(settings.workdir or ".").path
    names = _report_names(settings, name)
    if settings.report is not None:
        names = [os.path.expanduser(settings.report)]
    for name in names:
        folder = root / name
        check_folder(folder, result)
        subject = _subject(settings, folder)
        differences = _differences(settings, subject, folder / result)
        if not differences:
            return folder, subject
    raise UserError(
        f"--report={settings.report}: must be new, or an earlier report of the "
        f"same. It has another subject ({', '.join(differences)}). Use another "
        "name."
    )


def _report_names(settings, name):
    """Yields names for a report, the shortest first."""
    told = {key: to_text(value) for key, value in settings.given.items()}
    keys = TELLING
    if settings.workdir is None:
        keys = ("weights", *TELLING)

    def named(keys, length):
        parts = [
            f"{key.rstrip('_')}={_shorten(key, told[key], length)}"
            for key in keys
            if key in told
        ]
        return "-".join([name, *parts]).replace("/", "_")

    yield named(keys, 1)
    for length in (1, 2, 3):
        longer = named((*keys, *ALSO_TELLING), length)
        if len(os.fsencode(longer)) <= LONGEST_NAME:
            yield longer
    for number in itertools.count(2):
        yield f"{named(keys, 1)}-{number}"


def _shorten(key, text, length):
    """Returns the last parts of a path, or of another setting."""
    if length > 1 and key in PATHS and os.path.exists(text):
        text = os.path.abspath(text)
    return "_".join(pathlib.Path(text).parts[-length:])


def _subject(settings, folder):
    """Returns {name: text} of all settings that a report depends on.

    Paths are absolute, with links resolved. That of the run is seen from the
    report, so that a folder with both may be moved.
    """
    given, subject = settings.given, {}
    keys = ("weights", *TELLING, *ALSO_TELLING)
    if settings.workdir is not None:
        workdir = Workdir.of(settings.workdir).path
        beside = os.path.realpath(folder.parent)
        subject["workdir"] = os.path.relpath(os.path.realpath(workdir), beside)
        # It is the run that is measured.
        keys = keys[1:]
    for key in keys:
        if key in given:
            text = to_text(given[key])
            path = os.path.expanduser(text)
            if key in PATHS and os.path.exists(path):
                text = os.path.realpath(path)
            subject[key] = text
    return subject


def _differences(settings, subject, path):
    """Returns in words how the subject of an earlier report differs.

    Args:
      settings: `Settings` that were given.
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
            typed = to_text(settings.given[key])
            if report.get(key) != typed:
                earlier = {**earlier, key: report.get(key, "unknown")}
    return [
        f"--{key.rstrip('_')}={earlier.get(key, 'not given')}"
        for key in {**earlier, **subject}
        if earlier.get(key) != subject.get(key)
    ]


def _records(settings):
    if settings.workdir is None:
        return ()
    return read_json_lines(Workdir.of(settings.workdir).metrics)


def _facts(settings, measurement):
    """Returns what was measured, for the head of a report."""
    used = measurement.settings
    facts = {"model": used.model, "dataset": used.dataset}
    facts["split"] = settings.eval_split or used.eval_split or "eval"
    if settings.workdir is not None:
        workdir = Workdir.of(settings.workdir)
        facts["step"] = find_checkpoint(
            workdir, settings.checkpoint, used.averaged
        )
        if used.average != "none":
            facts["average"] = used.average if used.averaged else "none"
    else:
        facts["weights"] = settings.weights
    for name in ("image_size", "crop_fraction", "test_time_augmentation"):
        if name in settings.given:
            facts[name] = settings.given[name]
    return facts


def _rows(findings, report):
    rows = [["", "value", "95 % interval"]]
    for name, measure in MEASURES.items():
        value = measure.format(findings.estimates[name])
        ends = measure.format_interval(*findings.intervals[name])
        rows.append([measure.title, value, ends])
    rows.append(["Images", f"{report['examples']:,}", ""])
    if findings.temperature is not None:
        error = f"calibration error {findings.tempered_error:.2%} with it"
        rows.append(["Temperature", f"{findings.temperature:.3f}", error])
    return rows
