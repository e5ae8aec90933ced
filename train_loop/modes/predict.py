"""Prediction: the classes of images in files."""

import contextlib
import sys

from train_loop.builders.model import (
    load_classifier,
    override_preprocessing,
    prepare_for_inference,
    read_class_names,
)
from train_loop.console import printable, transient_bar
from train_loop.errors import UserError, check_choice
from train_loop.prediction.predict_files import (
    FROM_STDIN,
    PREDICTION_FORMATS,
    find_images,
    predict_files,
    write_explanations,
)
from train_loop.resolve import MODE_DEFAULTS
from train_loop.workdir import Workdir, check_writable


def predict(settings):
    """Predicts the classes of the images that --images lists.

    Standard output holds the predictions and nothing else, for other programs.
    """
    settings = settings.over(MODE_DEFAULTS)
    source = settings.workdir or settings.weights
    output_format = settings.format or "table"
    check_choice("--format", output_format, PREDICTION_FORMATS)
    if source is None or settings.images is None:
        raise UserError(
            "--mode=predict needs some --images, and the --workdir of a run, "
            "or --weights"
        )
    folder = settings.explain_dir
    folder = folder or Workdir.of(settings.workdir or ".").explanations
    if settings.explain:
        check_writable("--explain_dir", folder)
    listed = sys.stdin.buffer if settings.images == FROM_STDIN else ()
    paths = find_images(settings.images, listed)
    with contextlib.redirect_stdout(sys.stderr):
        classifier = load_classifier(
            source,
            settings.model,
            read_class_names(settings),
            step=settings.checkpoint,
            averaged=settings.use_weight_average,
        )
    classifier = override_preprocessing(classifier, settings)
    prepare_for_inference(settings, classifier)
    predictions = predict_files(classifier, paths, settings.top_k)
    if settings.explain:
        predictions = write_explanations(classifier, predictions, folder)
    broken = []
    with transient_bar(len(paths), "image") as bar:
        watched = _watched(predictions, bar, broken)
        for line in PREDICTION_FORMATS[output_format](watched):
            print(line)
    for each in broken:
        print(printable(f"{each.image} {each.error}"), file=sys.stderr)
    if settings.explain:
        print(f"Explanations are drawn in {folder}.", file=sys.stderr)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read"
            + ("; the others are done" if len(broken) < len(paths) else "")
        )


def _watched(predictions, bar, broken):
    """Yields all predictions, and collects those that are errors."""
    for prediction in predictions:
        bar.update(1)
        if prediction.error:
            broken.append(prediction)
        yield prediction
