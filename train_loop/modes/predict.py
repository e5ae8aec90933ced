"""Prediction of the classes of image files."""

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
    """Predicts the classes of the images of --images.

    Prints only predictions to standard output, for use by other programs.

    Args:
      settings: explicit `Settings`.

    Raises:
      UserError: a setting is invalid, or some images are unreadable. The
        predictions of the others are printed first.
    """
    settings = settings.over(MODE_DEFAULTS)
    source = settings.workdir or settings.weights
    output_format = settings.format or "table"
    check_choice("--format", output_format, PREDICTION_FORMATS)
    if source is None or settings.images is None:
        raise UserError(
            "--mode=predict: requires --images, and --workdir or --weights. "
            "Pass both, such as --workdir=RUN --images=FOLDER."
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
        monitored = _monitored(predictions, bar, broken)
        for line in PREDICTION_FORMATS[output_format](monitored):
            print(line)
    for each in broken:
        print(printable(f"{each.image}: {each.error}"), file=sys.stderr)
    if settings.explain:
        print(f"Explanations are in {folder}.", file=sys.stderr)
    if broken:
        done = " The others are done." if len(broken) < len(paths) else ""
        raise UserError(
            f"--images={settings.images}: {len(broken)} of {len(paths)} images "
            f"cannot be read.{done} Fix or remove the files listed above."
        )


def _monitored(predictions, bar, broken):
    """Yields all predictions, moves the bar, and collects errors."""
    for prediction in predictions:
        bar.update(1)
        if prediction.error:
            broken.append(prediction)
        yield prediction
