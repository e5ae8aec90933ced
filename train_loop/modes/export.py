"""Export: a trained model in the files that other programs run."""

import os
import sys

from train_loop.builders.data import open_whole_data
from train_loop.builders.model import find_checkpoint, load_classifier
from train_loop.console import printable, text_table
from train_loop.data.batches import readable_files
from train_loop.errors import UserError
from train_loop.exports.bundle import (
    Bundle,
    Card,
    ExportedWeights,
    check_replaceable,
    exported_metrics,
    model_card,
)
from train_loop.exports.formats import in_float32, parse_formats, portable
from train_loop.exports.verification import (
    ReferenceImages,
    metrics_table,
    model_metrics,
)
from train_loop.prediction.classifier import read_file
from train_loop.prediction.predict_files import find_images
from train_loop.resolve import MODE_DEFAULTS, resolve
from train_loop.settings import Settings
from train_loop.workdir import Workdir, check_writable, write_text

# How many images int8 is calibrated on, and files are compared on.
MAX_IMAGES = 128


def export(settings):
    """Writes a run's model for other programs, and verifies it with these.

    Each format gets a folder of its own, with the names of the classes and
    the preprocessing; model_card.md describes all.

    Args:
      settings: `Settings` that were given.

    Returns:
      The `FileMetrics` of the model itself, and of each file.

    Raises:
      UserError: a file cannot be written or run, or its predictions are not
        the model's; standard error has a line for each. The others are there.
    """
    settings = settings.over(MODE_DEFAULTS)
    if settings.workdir is None:
        raise UserError("--mode=export needs the --workdir of a run")
    names = parse_formats(settings.format or "saved_model")
    workdir = Workdir.of(settings.workdir)
    folder = Workdir.of(settings.export_dir or workdir.export).path
    check_writable("--export_dir", folder)
    check_replaceable(names, folder)
    classifier = in_float32(
        load_classifier(
            settings.workdir,
            step=settings.checkpoint,
            averaged=settings.use_weight_average,
        )
    )
    step = find_checkpoint(
        workdir, settings.checkpoint, settings.use_weight_average
    )
    # The images may have been moved.
    places = ("dataset", "data_dir", "manual_dir")
    moved = {name: getattr(settings, name) for name in places}
    made_with = resolve(Settings(workdir=settings.workdir, **moved))
    calibration, reference = _images(settings.images, made_with, classifier)
    bundle = Bundle(portable(classifier), calibration, settings.top_k)
    metrics, failures = [model_metrics(classifier, reference)], []
    try:
        for name in names:
            print(f"Writing {folder / name}.")
            written, failed = bundle.write(name, folder, reference)
            metrics += written
            failures += failed
    finally:
        # What was written is described, also if the disk is full.
        if metrics[1:]:
            weights = ExportedWeights(
                step, made_with.weight_average, settings.use_weight_average
            )
            files = metrics_table([metrics[0], *exported_metrics(folder)])
            card = _card(made_with, weights, files)
            path = folder / "model_card.md"
            write_text(path, model_card(bundle.classifier, card))
            print(text_table(metrics_table(metrics)))
            print(
                f"Compared on {len(reference.images)} pictures, each file run "
                f"without this program. Described in {path}; its licence is to "
                "be filled in."
            )
    for failure in failures:
        print(printable(failure), file=sys.stderr)
    if failures:
        count, others = len(failures), len(metrics) - 1
        raise UserError(
            f"--format={','.join(names)}: {count} of {count + others} files "
            f"failed; {others or 'no'} files are in {folder}"
        )
    return metrics


def _card(made_with, weights, files):
    """Returns the `Card` of all exports of a run.

    Args:
      made_with: resolved `Settings` of the run.
      weights: `ExportedWeights`.
      files: see `Card`.
    """
    recipe = {
        # Paths of this machine are private.
        name: os.path.basename(text) if os.path.isabs(text) else text
        for name, text in made_with.texts().items()
    }
    report = weights.find_report(Workdir.of(made_with.workdir))
    return Card(recipe["dataset"], recipe, str(weights), report, files)


def _images(images, made_with, classifier):
    """Returns images to calibrate with, and `ReferenceImages`.

    Args:
      images: the value of --images; None for the run's own.
      made_with: resolved `Settings` of the run.
      classifier: a `Classifier` in float32.

    Returns:
      A list of uint8 [image_size, image_size, 3], and `ReferenceImages`.
    """
    if images is not None:
        paths = find_images(images, ())[:MAX_IMAGES]
        for path in paths:
            # Its error names the file that cannot be decoded.
            classifier.read(path)
        files = [read_file(path) for path in paths]
        reference = ReferenceImages.predicted_by(classifier, files)
        return list(reference.images), reference
    try:
        data, _ = open_whole_data(made_with)
        trained_on, _ = readable_files(data.train, MAX_IMAGES)
        # Accuracy on the images it was trained on means nothing.
        files, labels = trained_on, None
        if data.evaluation is not None:
            files, labels = readable_files(data.evaluation, MAX_IMAGES)
    except UserError as error:
        raise UserError(
            f"{error}; or name pictures to try the files on: --images"
        ) from error
    reference = ReferenceImages.predicted_by(classifier, files, labels)
    return [classifier.prepare(file) for file in trained_on], reference
