"""Evaluation: a report on one model, or on two side by side."""

import pathlib

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
from train_loop.workdir import Workdir, read_json_lines


def evaluate(settings):
    """Writes a report on the last checkpoint of a run, or on weights.

    Any data set with the same classes will do, in any size and on any number
    of devices; the run stays as it is.

    Args:
      settings: explicit `Settings`.

    Returns:
      The content of the report's `report.json`.

    Raises:
      UserError: it cannot be evaluated, or the report not be written.
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
    # Another evaluation may have taken the name meanwhile.
    folder, subject = evaluator.report_folder()
    report = write_report(folder, results, _facts(evaluator), subject)
    print(text_table(evaluation_table(results)))
    if report["mean_roc_auc"] is None:
        print(
            "All images are of one class: there is no ROC-AUC, which compares "
            "a class with others."
        )
    print(f"Look at {folder / 'report.html'}.")
    return report


def _fit_temperature(evaluator, classifier, examples):
    """Returns the temperature of --calibration_split, None without one."""
    split = evaluator.given.calibration_split
    if split is None:
        return None
    others = evaluator.open_examples(classifier.class_names, split)
    if others.split.overlap(examples.split):
        raise UserError(
            f"--calibration_split={split} shares images with what is "
            "measured; name a part that has none of it"
        )
    predictions = evaluator.predict(classifier, others)
    return fit_temperature(predictions.logits, predictions.labels)


def _records(settings):
    if settings.workdir is None:
        return ()
    return read_json_lines(Workdir.of(settings.workdir).metrics)


def _facts(evaluator):
    """Returns what is evaluated, for the head of a report."""
    given, settings = evaluator.given, evaluator.settings
    facts = {"model": settings.model, "dataset": settings.dataset}
    facts["split"] = given.eval_split or settings.eval_split or "eval"
    if given.workdir is not None:
        workdir = Workdir.of(given.workdir)
        averaged = settings.use_weight_average
        facts["step"] = find_checkpoint(workdir, given.checkpoint, averaged)
        if settings.weight_average != "none":
            facts["average"] = settings.weight_average if averaged else "none"
    else:
        facts["weights"] = given.weights
    for name in ("image_size", "crop_fraction", "test_time_augmentation"):
        if name in given.given:
            facts[name] = given.given[name]
    return facts


SPEED = "Images per second"


def compare(settings):
    """Compares a run with another one, or with weights (--with).

    Both see the same images, each as it was trained to see them.

    Args:
      settings: explicit `Settings`.

    Returns:
      The content of `comparison.json`.

    Raises:
      UserError: one of them cannot be evaluated, or nothing be written.
    """
    if settings.with_ is None:
        raise UserError(
            "--mode=compare needs --with: another run, a file of weights, "
            "imagenet or timm/NAME"
        )
    evaluator = Evaluator(settings)
    names = [pathlib.Path(s).name for s in (evaluator.source, settings.with_)]
    if names[0] == names[1]:
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    place = "comparison.json", f"comparison-{names[1]}"
    evaluator.report_folder(*place)
    classifiers = [
        evaluator.open_own_classifier(),
        evaluator.open_classifier(settings.with_),
    ]
    shared = _shared_classes(evaluator, classifiers)
    results, facts = {}, {}
    for name, classifier in zip(names, classifiers, strict=True):
        print(f"Measuring {name}.")
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
    # Another comparison may have taken the name meanwhile.
    folder, subject = evaluator.report_folder(*place)
    summary = write_comparison(folder, comparison, subject)
    print(console.text_table(comparison_table(comparison)))
    print(verdict(comparison))
    print(f"Look at {folder / 'comparison.html'}.")
    return summary


def _shared_classes(evaluator, classifiers):
    """Returns the names of the classes that both know, as the first does."""
    first, second = (classifier.class_names for classifier in classifiers)
    known = set(second)
    shared = [name for name in first if name in known]
    if not shared:
        raise UserError(
            f"{evaluator.source} and {evaluator.given.with_} have no class in "
            "common; classes are matched by name, and theirs are "
            f"{first_few(first)} against {first_few(second)}"
        )
    if [*first] != [*second]:
        check_unique(shared)
    return shared
