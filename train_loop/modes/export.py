"""Export: a trained model in the files that other programs run."""

import os
import re
import sys
from typing import NamedTuple

from train_loop.builders.data import open_whole_data
from train_loop.builders.model import find_checkpoint, load_classifier
from train_loop.console import printable, text_table
from train_loop.data.samples import stored_files
from train_loop.errors import UserError
from train_loop.export import comparison
from train_loop.export.bundle import Shipment, check_replaceable, shipped
from train_loop.export.formats import parse_formats
from train_loop.export.model_card import Card, model_card
from train_loop.export.rewriting import in_float32, portable
from train_loop.prediction.classifier import read_file
from train_loop.prediction.pictures import find_pictures
from train_loop.resolve import MODE_DEFAULTS, settle
from train_loop.settings import Settings
from train_loop.workdir import (
    Workdir,
    check_writable,
    read_json,
    write_text,
)

# Names of reports on the images that a run evaluates on, as they are.
REPORTS = re.compile(r"report(-checkpoint=\w+)?(-averaged=\w+)?")
# How many pictures int8 is calibrated on, and files are compared on.
NUM_PICTURES = 128


def export(settings):
    """Writes a run's model for other programs, and has these prove it.

    Each format gets a folder of its own, with the names of the classes and
    what pictures must go through; model_card.md describes all.

    Args:
      settings: `Settings` that were given.

    Returns:
      A `comparison.Measured` of the model itself, and of each file.

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
            averaged=settings.averaged,
        )
    )
    step = find_checkpoint(workdir, settings.checkpoint, settings.averaged)
    # The images may have been moved.
    places = ("dataset", "data_dir", "manual_dir")
    moved = {name: getattr(settings, name) for name in places}
    made_with = settle(Settings(workdir=settings.workdir, **moved))
    calibration, compared = pictures(settings.images, made_with, classifier)
    shipment = Shipment(portable(classifier), calibration, settings.top_k)
    measured, failures = [comparison.measure_model(classifier, compared)], []
    try:
        for name in names:
            print(f"Writing {folder / name}.")
            written, failed = shipment.write(name, folder, compared)
            measured += written
            failures += failed
    finally:
        # What was written is described, also where the disk is full.
        if measured[1:]:
            weights = Weights(step, made_with.average, settings.averaged)
            path = write_card(folder, measured[0], shipment, made_with, weights)
            print(text_table(comparison.table_rows(measured)))
            print(
                f"Compared on {len(compared.images)} pictures, each file run "
                f"without this program. Described in {path}; its licence is to "
                "be filled in."
            )
    for failure in failures:
        print(printable(failure), file=sys.stderr)
    if failures:
        count, others = len(failures), len(measured) - 1
        raise UserError(
            f"--format={','.join(names)}: {count} of {count + others} files "
            f"failed; {others or 'no'} files are in {folder}"
        )
    return measured


class Weights(NamedTuple):
    """Which weights of a run are exported.

    Those of `step`; the average that the run keeps is `average`, "none" if it
    keeps none, and is what was taken if `averaged`.
    """

    step: int
    average: str
    averaged: bool

    def __str__(self):
        if self.average == "none":
            return f"those of step {self.step:,}"
        mean = f"the average (`--average={self.average}`) of the steps up to"
        if self.averaged:
            return f"{mean} {self.step:,}"
        return (
            f"those of step {self.step:,} itself (`--averaged=false`), not "
            f"{mean} it"
        )

    def are_of(self, report):
        """Tells whether a report was made of them."""
        taken = self.average if self.averaged else "none"
        found = report.get("step"), report.get("average", "none")
        return found == (self.step, taken)


def find_report(workdir, weights):
    """Returns what an evaluation measured of some weights; {} without one."""
    for path in sorted(workdir.path.glob("report*/report.json")):
        report = read_json(path)
        if REPORTS.fullmatch(path.parent.name) and weights.are_of(report):
            return report
    return {}


def write_card(folder, of_model, shipment, made_with, weights):
    """Writes the model card of all exports in a folder, and returns its path.

    Args:
      folder: of the exports.
      of_model: `comparison.Measured`, of the model itself.
      shipment: the `Shipment`.
      made_with: settled `Settings` of the run.
      weights: a `Weights`.
    """
    recipe = {
        # Where things lay on this machine is nobody's business.
        name: os.path.basename(text) if os.path.isabs(text) else text
        for name, text in made_with.texts().items()
    }
    card = Card(
        recipe["dataset"],
        recipe,
        str(weights),
        find_report(Workdir.of(made_with.workdir), weights),
        comparison.table_rows([of_model, *shipped(folder)]),
    )
    path = folder / "model_card.md"
    write_text(path, model_card(shipment.classifier, card))
    return path


def pictures(images, made_with, classifier):
    """Returns the pictures to calibrate with, and those to compare on.

    Args:
      images: what --images names; None for the run's own.
      made_with: settled `Settings` of the run.
      classifier: a `Classifier` in float32.

    Returns:
      A list of uint8 [image_size, image_size, 3], and
      `comparison.Pictures`.
    """
    if images is not None:
        paths = find_pictures(images, ())[:NUM_PICTURES]
        for path in paths:
            # Else nobody would know which one cannot be decoded.
            classifier.read(path)
        files = [read_file(path) for path in paths]
        compared = comparison.Pictures.of(classifier, files)
        return list(compared.images), compared
    try:
        data, _ = open_whole_data(made_with)
        seen, _ = stored_files(data.train, NUM_PICTURES)
        # How often the model is right on what it was trained on says nothing.
        files, labels = seen, None
        if data.evaluation is not None:
            files, labels = stored_files(data.evaluation, NUM_PICTURES)
    except UserError as error:
        raise UserError(
            f"{error}; or name pictures to try the files on: --images"
        ) from error
    compared = comparison.Pictures.of(classifier, files, labels)
    return [classifier.prepare(file) for file in seen], compared
