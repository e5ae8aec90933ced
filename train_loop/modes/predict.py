"""Prediction: what a trained model says of anybody's pictures."""

import contextlib
import sys

from train_loop.builders.model import (
    given_class_names,
    load_classifier,
    make_fast,
    with_given_preprocessing,
)
from train_loop.console import passing_bar, printable
from train_loop.errors import UserError, check_choice
from train_loop.prediction.answers import answers
from train_loop.prediction.explanations import write_explanations
from train_loop.prediction.formats import ANSWER_FORMATS
from train_loop.prediction.pictures import LIST, find_pictures
from train_loop.resolve import MODE_DEFAULTS
from train_loop.workdir import Workdir, check_writable


def predict(settings):
    """Names what is on the pictures that --images lists.

    Standard output holds the answers and nothing else, for other programs.
    """
    settings = settings.over(MODE_DEFAULTS)
    source = settings.workdir or settings.weights
    output_format = settings.format or "table"
    check_choice("--format", output_format, ANSWER_FORMATS)
    if source is None or settings.images is None:
        raise UserError(
            "--mode=predict needs some --images, and the --workdir of a run, "
            "or --weights"
        )
    beside = Workdir.of(settings.workdir or ".").explanations
    folder = settings.explain_dir or beside
    if settings.explain:
        check_writable("--explain_dir", folder)
    listed = sys.stdin.buffer if settings.images == LIST else ()
    paths = find_pictures(settings.images, listed)
    with contextlib.redirect_stdout(sys.stderr):
        classifier = load_classifier(
            source,
            settings.model,
            given_class_names(settings),
            step=settings.checkpoint,
            averaged=settings.averaged,
        )
    classifier = with_given_preprocessing(classifier, settings)
    make_fast(settings, classifier)
    told = answers(classifier, paths, settings.top_k)
    if settings.explain:
        told = write_explanations(classifier, told, folder)
    broken = []
    with passing_bar(len(paths), "image") as bar:
        for line in ANSWER_FORMATS[output_format](_watched(told, bar, broken)):
            print(line)
    for answer in broken:
        print(printable(f"{answer.image} {answer.error}"), file=sys.stderr)
    if settings.explain:
        print(f"Explanations are drawn in {folder}.", file=sys.stderr)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read"
            + ("; the others are done" if len(broken) < len(paths) else "")
        )


def _watched(told, bar, broken):
    """Yields all answers, and keeps those that are none."""
    for answer in told:
        bar.update(1)
        if answer.error:
            broken.append(answer)
        yield answer
