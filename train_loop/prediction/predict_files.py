"""Predictions for many image files, and the formats they are printed in."""

import csv
import io
import json
import os
from typing import NamedTuple

import tensorflow as tf

from train_loop.console import csv_cells, text_table
from train_loop.errors import UserError
from train_loop.prediction.classifier import BATCH_SIZE


class FilePrediction(NamedTuple):
    """The prediction for an image file.

    `predictions` are (name of the class, probability), the most probable one
    first; none where `error` says why the file cannot be read.
    """

    image: str
    predictions: tuple = ()
    error: str | None = None


def predict_files(classifier, paths, top_k=None):
    """Yields a `FilePrediction` for each file, in their order.

    Files are read and decoded in parallel, while the model predicts those
    before; one that cannot be read does not stop the others.

    Args:
      classifier: a `Classifier`.
      paths: of the files.
      top_k: number of classes; None for all.
    """
    names = tf.constant([os.fsencode(path) for path in paths], tf.string)

    @tf.autograph.experimental.do_not_convert
    def read(number, path):
        return number, classifier.prepare(tf.io.read_file(path))

    batches = (
        tf.data.Dataset.from_tensor_slices(names)
        .enumerate()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        # Their numbers are then missing.
        .ignore_errors()
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )
    done = 0
    for numbers, images in batches:
        ranked = classifier.rank(classifier.probabilities(images), top_k)
        for number, predictions in zip(numbers.numpy(), ranked, strict=True):
            for path in paths[done:number]:
                yield _alone(classifier, path, top_k)
            yield FilePrediction(paths[number], tuple(predictions))
            done = number + 1
    for path in paths[done:]:
        yield _alone(classifier, path, top_k)


def _alone(classifier, path, top_k):
    """Returns the prediction for a file that failed in a batch, or why."""
    try:
        [predictions] = classifier(path, top_k)
    except UserError as error:
        return FilePrediction(path, error=str(error).removeprefix(f"{path} "))
    return FilePrediction(path, tuple(predictions))


def as_table(predictions):
    """Yields a line for each image that could be read."""
    rows = [
        [
            image,
            *(f"{label} {probability:.1%}" for label, probability in ranked),
        ]
        for image, ranked, error in predictions
        if not error
    ]
    if rows:
        ranks = [str(rank) for rank in range(1, len(rows[0]))]
        yield from text_table([["image", *ranks], *rows]).splitlines()


def as_json(predictions):
    """Yields a list: {"image", "predictions"} or {"image", "error"} each."""
    opening = "["
    for image, ranked, error in predictions:
        record = {"image": image, "error": error}
        if not error:
            record = {
                "image": image,
                "predictions": [
                    {"label": label, "probability": probability}
                    for label, probability in ranked
                ],
            }
        yield opening + json.dumps(record)
        opening = ","
    yield "]" if opening == "," else "[]"


def as_csv(predictions):
    """Yields a line for each class, or for the error of an image."""
    yield _csv("image", "rank", "label", "probability", "error")
    for image, ranked, error in predictions:
        if error:
            yield _csv(image, "", "", "", error)
        for rank, (label, probability) in enumerate(ranked, 1):
            yield _csv(image, rank, label, probability, "")


def _csv(*fields):
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(csv_cells(fields))
    return line.getvalue()


# Name -> function of `FilePrediction`s.
PREDICTION_FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}
