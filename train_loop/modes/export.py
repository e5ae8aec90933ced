"""Export of a trained model to files for other programs."""

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
    FileMetrics,
    ReferenceImages,
    metrics_table,
    model_metrics,
)
from train_loop.prediction.classifier import read_file
from train_loop.prediction.predict_files import find_images
from train_loop.resolve import MODE_DEFAULTS, resolve
from train_loop.settings import Settings
from train_loop.workdir import Workdir, check_writable, write_text

# Number of images for the calibration of int8, and for verification.
MAX_IMAGES = 128


def export(settings: Settings) -> list[FileMetrics]:
    """Exports a run's model, and verifies each exported file.

    Each format gets its own folder with the model, the class names and the
    preprocessing; `model_card.md` describes all. Each file is run by its own
    runtime, and its predictions are compared with those of the model.

    Args:
      settings: `Settings` with the `workdir` of a run. Optional: `format`,
        `export_dir`, `images` and `checkpoint`, among others.

    Returns:
      A list of `FileMetrics`: first those of the model itself, then those of
      each exported file.

    Raises:
      UserError: A file could not be written or run, or its predictions differ
        from the model's. Standard error has a line for each; the other files
        are complete.

    Example:
        >>> from train_loop import Settings, export
        >>> export(Settings(workdir="runs/photos", format="saved_model,onnx"))
    """
    settings = settings.over(MODE_DEFAULTS)
    if settings.workdir is None:
        raise UserError(
            "--mode=export: requires --workdir. Pass the folder of a run."
        )
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
    # The dataset may be in another place than in training.
    places = ("dataset", "data_dir", "manual_dir")
    moved = {name: getattr(settings, name) for name in places}
    run_settings = resolve(Settings(workdir=settings.workdir, **moved))
    calibration, reference = _images(settings.images, run_settings, classifier)
    bundle = Bundle(portable(classifier), calibration, settings.top_k)
    metrics, failures = [model_metrics(classifier, reference)], []
    try:
        for name in names:
            print(f"Writing {folder / name}.")
            written, failed = bundle.write(name, folder, reference)
            metrics += written
            failures += failed
    finally:
        # Describes the written files, even if an error ended the export.
        if metrics[1:]:
            weights = ExportedWeights(
                step, run_settings.weight_average, settings.use_weight_average
            )
            files = metrics_table([metrics[0], *exported_metrics(folder)])
            card = _card(run_settings, weights, files)
            path = folder / "model_card.md"
            write_text(path, model_card(bundle.classifier, card))
            print(text_table(metrics_table(metrics)))
            print(
                f"Compared on {len(reference.images)} images; each file ran "
                f"without this program. {path} describes the files; fill in "
                "its license."
            )
    for failure in failures:
        print(printable(failure), file=sys.stderr)
    if failures:
        failed, succeeded = len(failures), len(metrics) - 1
        raise UserError(
            f"--format={','.join(names)}: {failed} of {failed + succeeded} "
            f"files failed; {succeeded or 'no'} files are in {folder}. Fix the "
            "errors above, or pass only the other formats."
        )
    return metrics


def _card(run_settings, weights, files):
    """Returns the `Card` of all exports of a run.

    Args:
      run_settings: resolved `Settings` of the run.
      weights: `ExportedWeights`.
      files: see `Card`.
    """
    recipe = {
        # Paths of this machine are private.
        name: os.path.basename(text) if os.path.isabs(text) else text
        for name, text in run_settings.texts().items()
    }
    report = weights.find_report(Workdir.of(run_settings.workdir))
    return Card(recipe["dataset"], recipe, str(weights), report, files)


def _images(images, run_settings, classifier):
    """Returns calibration images and `ReferenceImages`.

    Args:
      images: value of --images; None for the run's dataset.
      run_settings: resolved `Settings` of the run.
      classifier: a `Classifier` in float32.

    Returns:
      A list of uint8 [image_size, image_size, 3], and `ReferenceImages`.
    """
    if images is not None:
        paths = find_images(images, ())[:MAX_IMAGES]
        for path in paths:
            # Raises an error with the name of a file that is not an image.
            classifier.read(path)
        files = [read_file(path) for path in paths]
        reference = ReferenceImages.predicted_by(classifier, files)
        return list(reference.images), reference
    try:
        data, _ = open_whole_data(run_settings)
        training_files, _ = readable_files(data.train, MAX_IMAGES)
        # Without labels: accuracy on training images would mislead.
        files, labels = training_files, None
        if data.evaluation is not None:
            files, labels = readable_files(data.evaluation, MAX_IMAGES)
    except UserError as error:
        raise UserError(
            f"{str(error).removesuffix('.')}. Or pass other images to verify "
            "the files with --images."
        ) from error
    reference = ReferenceImages.predicted_by(classifier, files, labels)
    return [classifier.prepare(file) for file in training_files], reference
