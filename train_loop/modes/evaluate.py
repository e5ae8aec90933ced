"""Evaluation: a report on a trained model, on any data with its classes."""

import os
import pathlib

from train_loop.errors import UserError
from train_loop.evaluation.calibration import fit_temperature
from train_loop.evaluation.findings import Findings
from train_loop.evaluation.folders import check_folder
from train_loop.evaluation.measures import MEASURES
from train_loop.evaluation.report import write_report
from train_loop.measuring import Measurement
from train_loop.pretrained import given_class_names
from train_loop.run import find_checkpoint
from train_loop.settings import to_text
from train_loop.training.reports import table
from train_loop.workdir import Workdir, read_json_lines

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
)


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
    folder = report_folder(settings)
    check_folder(folder, "report.json")
    classifier = measurement.open_classifier(
        measurement.source,
        model=settings.model,
        class_names=given_class_names(settings),
        step=settings.checkpoint,
    )
    examples = measurement.open_examples(classifier.class_names)
    if examples.note:
        print(examples.note)
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
    report = write_report(folder, findings, _facts(settings, measurement))
    print(table(_rows(findings, report)))
    if report["mean_roc_auc"] is None:
        print(
            "All images are of one class: there is no ROC-AUC, which compares "
            "a class with others."
        )
    print(f"Look at {folder / 'report.html'}.")
    return report


def report_folder(settings, name="report"):
    """Returns where a report goes: into the run's folder, by a name.

    Args:
      settings: `Settings` that were given.
      name: where none was given; what differs from the run is put behind it.
    """
    if settings.report is not None:
        name = settings.report
    else:
        told = {
            key: to_text(settings.given[key])
            for key in TELLING
            if key in settings.given
        }
        if settings.workdir is None:
            told = {"weights": settings.weights, **told}
        parts = [
            f"{key}={pathlib.Path(text).name}" for key, text in told.items()
        ]
        name = "-".join([name, *parts]).replace("/", "_")
    return Workdir.of(settings.workdir or ".").path / os.path.expanduser(name)


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
