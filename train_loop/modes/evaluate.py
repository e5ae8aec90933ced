"""Evaluation of one model, and comparison of two."""

import pathlib
from typing import Any

import numpy as np

from train_loop import console
from train_loop.benchmark.model_costs import images_per_second, model_costs
from train_loop.builders.evaluation import Evaluator
from train_loop.builders.model import find_checkpoint
from train_loop.console import printable, text_table
from train_loop.data.datasets import check_unique
from train_loop.errors import UserError, first_few
from train_loop.evaluation.comparison import (
    Comparison,
    comparison_table,
    verdict,
)
from train_loop.evaluation.metrics import fit_temperature
from train_loop.evaluation.report import write_comparison, write_report
from train_loop.evaluation.results import Results, evaluation_table
from train_loop.settings import Settings
from train_loop.workdir import Workdir, read_json_lines


def evaluate(settings: Settings) -> dict[str, Any]:
    """Evaluates a run or weights, and writes a report.

    Works with any dataset whose classes the model has, and on any number of
    devices. The run itself does not change. The report is a folder with
    `report.html`, `report.json` and CSV files.

    Args:
      settings: `Settings` with the `workdir` of a run, or with `weights` and
        a `dataset`. All other settings are optional.

    Returns:
      The content of `report.json`, a dict: among others `accuracy`, `loss`,
      `mean_roc_auc` and the 95 % `intervals` of the metrics.

    Raises:
      UserError: A setting is invalid, the dataset has classes that the model
        does not have, or the report cannot be written.

    Example:
        >>> from train_loop import Settings, evaluate
        >>> report = evaluate(Settings(workdir="runs/photos"))
        >>> report["accuracy"]
        0.94
    """
    evaluator = Evaluator(settings)
    evaluator.report_folder()
    classifier = evaluator.open_own_classifier()
    examples = evaluator.open_examples(classifier.class_names)
    if examples.note:
        print(printable(examples.note))
    temperature = _fit_temperature(evaluator, classifier, examples)
    predictions = evaluator.predict(classifier, examples)
    results = Results.of(predictions, temperature, _records(settings))
    # Again: another evaluation may have used the folder in the meantime.
    folder, subject = evaluator.report_folder()
    report = write_report(folder, results, _facts(evaluator), subject)
    print(text_table(evaluation_table(results)))
    if report["mean_roc_auc"] is None:
        print(
            "All images are of one class: ROC-AUC is undefined, because it "
            "compares a class with others."
        )
    print(f"The report is in {folder / 'report.html'}.")
    return report


def _fit_temperature(evaluator, classifier, examples):
    """Returns the temperature fitted on --calibration_split, or None."""
    split = evaluator.explicit.calibration_split
    if split is None:
        return None
    others = evaluator.open_examples(classifier.class_names, split)
    if others.split.overlap(examples.split):
        raise UserError(
            f"--calibration_split={split}: must not share images with the "
            "evaluation split. Pass another split."
        )
    predictions = evaluator.predict(classifier, others)
    return fit_temperature(predictions.logits, predictions.labels)


def _records(settings):
    if settings.workdir is None:
        return ()
    return read_json_lines(Workdir.of(settings.workdir).metrics)


def _facts(evaluator):
    """Returns the facts for the head of a report."""
    explicit, settings = evaluator.explicit, evaluator.settings
    facts = {"model": settings.model, "dataset": settings.dataset}
    facts["split"] = explicit.eval_split or settings.eval_split or "eval"
    if explicit.workdir is not None:
        workdir = Workdir.of(explicit.workdir)
        averaged = settings.use_weight_average
        facts["step"] = find_checkpoint(workdir, explicit.checkpoint, averaged)
        if settings.weight_average != "none":
            facts["average"] = settings.weight_average if averaged else "none"
    else:
        facts["weights"] = explicit.weights
    for name in ("image_size", "crop_fraction", "test_time_augmentation"):
        if name in explicit.given:
            facts[name] = explicit.given[name]
    return facts


SPEED = "Images per second"


def compare(settings: Settings) -> dict[str, Any]:
    """Compares two runs or weights on the same images.

    Each model gets the images in its own preprocessing. The comparison is a
    folder with `comparison.html` and `comparison.json`.

    Args:
      settings: `Settings` as for `evaluate`, and `with_`: another run, or
        weights.

    Returns:
      The content of `comparison.json`, a dict. `measures` has the metrics of
      both models, their differences, intervals and p-values.

    Raises:
      UserError: One of the two cannot be evaluated, they have no class in
        common, or the comparison cannot be written.

    Example:
        >>> from train_loop import Settings, compare
        >>> compare(Settings(workdir="runs/a", with_="runs/b"))
    """
    if settings.with_ is None:
        raise UserError(
            "--mode=compare: requires --with. Pass another run, a file of "
            "weights, imagenet or timm/NAME."
        )
    evaluator = Evaluator(settings)
    names = [pathlib.Path(s).name for s in (evaluator.source, settings.with_)]
    if names[0] == names[1]:
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    report_options = "comparison.json", f"comparison-{names[1]}"
    evaluator.report_folder(*report_options)
    classifiers = [
        evaluator.open_own_classifier(),
        evaluator.open_classifier(settings.with_),
    ]
    shared = _shared_classes(evaluator, classifiers)
    results, facts = {}, dict[str, Any]()
    for name, classifier in zip(names, classifiers, strict=True):
        print(f"Evaluating {name}.")
        examples = evaluator.open_examples(classifier.class_names)
        predictions = evaluator.predict(classifier, examples)
        results[name] = Results.of(predictions.with_classes(shared))
        size = classifier.preprocessing.image_size
        total = model_costs(classifier.model, size)["total"]
        facts.setdefault("Parameters", []).append(total.parameters)
        facts.setdefault("Multiply-adds", []).append(total.multiply_adds)
    speeds = images_per_second(
        classifiers, evaluator.strategy, evaluator.settings.batch_size
    )
    facts[SPEED] = [float(f"{n:.3g}") for n in np.median(speeds, axis=0)]
    ratios = speeds[:, 0] / speeds[:, 1]
    ranges = {SPEED: (float(ratios.min()), float(ratios.max()))}
    comparison = Comparison.of(results, facts, ranges)
    # Again: another comparison may have used the folder in the meantime.
    folder, subject = evaluator.report_folder(*report_options)
    summary = write_comparison(folder, comparison, subject)
    print(console.text_table(comparison_table(comparison)))
    print(verdict(comparison))
    print(f"The comparison is in {folder / 'comparison.html'}.")
    return summary


def _shared_classes(evaluator, classifiers):
    """Returns the class names of both, in the order of the first."""
    first, second = (classifier.class_names for classifier in classifiers)
    known = set(second)
    shared = [name for name in first if name in known]
    if not shared:
        raise UserError(
            f"--with={evaluator.explicit.with_}: has no class name in common "
            f"with {evaluator.source} ({first_few(second)}; "
            f"{first_few(first)}). Pass a model with the same classes."
        )
    if [*first] != [*second]:
        check_unique(shared)
    return shared
