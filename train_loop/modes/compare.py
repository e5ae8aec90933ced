"""Comparison: two models on the same images."""

import pathlib

import numpy as np

from train_loop import console
from train_loop.builders.evaluation import (
    Measurement,
    images_per_second,
    only_classes,
)
from train_loop.builders.model import given_class_names
from train_loop.data.datasets import check_unique
from train_loop.errors import UserError, first_few
from train_loop.evaluation.comparison import (
    Comparison,
    comparison_table,
    verdict,
    write_comparison,
)
from train_loop.evaluation.costs import costs
from train_loop.evaluation.findings import Findings
from train_loop.modes.evaluate import report_folder

SPEED = "Images per second"


def compare(settings):
    """Compares a run with another one, or with weights (--with).

    Both see the same images, each as it was trained to see them.

    Args:
      settings: `Settings` that were given.

    Returns:
      What `comparison.json` holds.

    Raises:
      UserError: one of them cannot be measured, or nothing be written.
    """
    if settings.with_ is None:
        raise UserError(
            "--mode=compare needs --with: another run, a file of weights, "
            "imagenet or timm/NAME"
        )
    measurement = Measurement(settings)
    names = [pathlib.Path(s).name for s in (measurement.source, settings.with_)]
    if names[0] == names[1]:
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    place = settings, "comparison.json", f"comparison-{names[1]}"
    report_folder(*place)
    classifiers = [
        measurement.open_classifier(
            measurement.source,
            model=settings.model,
            class_names=given_class_names(settings),
            step=settings.checkpoint,
        ),
        measurement.open_classifier(settings.with_),
    ]
    # Those that both know.
    first, second = (each.class_names for each in classifiers)
    known = set(second)
    shared = [name for name in first if name in known]
    if not shared:
        raise UserError(
            f"{measurement.source} and {settings.with_} have no class in "
            "common; classes are matched by name, and theirs are "
            + " against ".join(first_few(c.class_names) for c in classifiers)
        )
    if [*first] != [*second]:
        check_unique(shared)
    findings, facts = {}, {}
    for name, classifier in zip(names, classifiers, strict=True):
        print(f"Measuring {name}.")
        examples = measurement.open_examples(classifier.class_names)
        predictions = measurement.predict(classifier, examples)
        findings[name] = Findings.of(only_classes(predictions, shared))
        size = classifier.preprocessing.image_size
        total = costs(classifier.model, size)["total"]
        facts.setdefault("Parameters", []).append(total.parameters)
        facts.setdefault("Multiply-adds", []).append(total.multiply_adds)
    speeds = images_per_second(
        classifiers, measurement.strategy, measurement.settings.batch_size
    )
    facts[SPEED] = [float(f"{n:.3g}") for n in np.median(speeds, axis=0)]
    ratios = speeds[:, 0] / speeds[:, 1]
    ranges = {SPEED: (float(ratios.min()), float(ratios.max()))}
    comparison = Comparison.of(findings, facts, ranges)
    # Another comparison may have taken the name meanwhile.
    folder, subject = report_folder(*place)
    summary = write_comparison(folder, comparison, subject)
    print(console.text_table(comparison_table(comparison)))
    print(verdict(comparison))
    print(f"Look at {folder / 'comparison.html'}.")
    return summary
