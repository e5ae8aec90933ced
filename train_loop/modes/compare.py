"""Comparison: two models on the same images."""

import pathlib

import numpy as np

from train_loop import console
from train_loop.builders.evaluation import Evaluator
from train_loop.data.datasets import check_unique
from train_loop.errors import UserError, first_few
from train_loop.evaluation.comparison import (
    Comparison,
    comparison_table,
    verdict,
)
from train_loop.evaluation.model_costs import images_per_second, model_costs
from train_loop.evaluation.report import write_comparison
from train_loop.evaluation.results import Results

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
