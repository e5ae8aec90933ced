"""How exported files are verified: other runtimes run them on known images."""

import base64
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

import resnet_layers
from train_loop.exports import runtimes

# Files in float32 must have the model's logits, to this fraction of their
# range.
TOLERANCE = 1e-4
# Logarithms of smaller probabilities mean nothing in float32.
SMALLEST = 1e-30


class ReferenceImages(NamedTuple):
    """Images to compare files with the model on, and the model's predictions.

    `files` are the bytes of JPEG or PNG files, `images` uint8
    [n, image_size, image_size, 3] made from them, `labels` int [n] or None,
    `probabilities` float32 [n, num_classes].
    """

    files: list
    images: np.ndarray
    labels: np.ndarray | None
    probabilities: np.ndarray

    @classmethod
    def predicted_by(cls, classifier, files, labels=None):
        """Returns the images in files, with the predictions of a classifier.

        Args:
          classifier: a `Classifier`.
          files: bytes of any files that it reads.
          labels: of the images, if they are known.
        """
        images = np.stack([classifier.prepare(file) for file in files])
        size = max(runtimes.BATCH_SIZES)
        probabilities = [
            classifier.probabilities(images[begin : begin + size])
            for begin in range(0, len(images), size)
        ]
        return cls(
            [_as_jpeg_or_png(file) for file in files],
            images,
            None if labels is None else np.asarray(labels),
            np.concatenate(probabilities),
        )


class FileMetrics(NamedTuple):
    """How a file compares with the model.

    `difference` is the largest one of a probability, `drift` that of a logit
    as a fraction of the logits' range, `agreement` the fraction of images with
    the model's class, `accuracy` that with the right one (None if labels are
    not known), and `milliseconds` the time of an image in batches of each of
    `runtimes.BATCH_SIZES` (none where nothing was run): the 10th and the 90th
    percentile, or the median alone where an earlier version measured it.
    """

    name: str
    megabytes: float
    difference: float
    drift: float
    agreement: float
    accuracy: float | None
    milliseconds: tuple = ()


def run_files(folder, files, reference):
    """Runs files by other runtimes, in a process without this project.

    Args:
      folder: of the files.
      files: `File`s.
      reference: `ReferenceImages`.

    Returns:
      For each its `FileMetrics`, or in a line why it cannot be run.
    """
    with tempfile.TemporaryDirectory() as exchange:
        exchange = pathlib.Path(exchange)
        np.save(exchange / "images.npy", reference.images)
        request = json.dumps(serving_request(reference.files))
        (exchange / "files.json").write_text(request)
        # TensorFlow takes the path of a SavedModel for a pattern: brackets in
        # it would match something else.
        link = exchange / "files"
        link.symlink_to(folder.absolute())
        found = []
        while len(found) < len(files):
            # A file that cannot be run ends the process: another one continues.
            found += _run(exchange, link, files[len(found) :], reference)
        return found


def _run(exchange, folder, files, reference):
    """Returns what `run_files` does, up to the first file that failed."""
    # Keras's files alone need a package of ours, to import.
    root = pathlib.Path(resnet_layers.__file__).parents[1]
    paths = [f"{file.runtime}={folder / file.path}" for file in files]
    ended = subprocess.run(
        [sys.executable, "-P", runtimes.__file__, exchange, *paths],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = []
    for number, file in enumerate(files):
        predictions = exchange / f"{number}.npz"
        if not predictions.exists():
            reason = _reason(ended)
            return [*found, f"cannot be run by {file.runtime} ({reason})"]
        with np.load(predictions) as values:
            found.append(
                compare_with_model(
                    str(file),
                    num_bytes(folder / file.path),
                    values["probabilities"],
                    reference,
                    values["milliseconds"].tolist(),
                )
            )
        predictions.unlink()
    return found


def _reason(ended):
    """Returns in a line why a process ended."""
    if ended.returncode < 0:
        # Its last line is about something else.
        return f"ended by {signal.Signals(-ended.returncode).name}"
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {ended.returncode}"


def compare_with_model(name, size, probabilities, reference, milliseconds=()):
    """Returns the `FileMetrics` of a file's predictions.

    Args:
      name: of the file, for people.
      size: of the file, in bytes.
      probabilities: [n, num_classes]; `runtimes.NOT_LISTED` if there is none.
      reference: `ReferenceImages`.
      milliseconds: see `FileMetrics`.
    """
    expected = reference.probabilities
    logits = np.log(np.maximum(expected, SMALLEST))
    drift = np.abs(np.log(np.maximum(probabilities, SMALLEST)) - logits)
    drift /= np.ptp(logits, axis=1, keepdims=True)
    listed = {"where": probabilities != runtimes.NOT_LISTED, "initial": 0.0}
    labels = np.argmax(probabilities, axis=1)
    accuracy = None
    if reference.labels is not None:
        accuracy = np.mean(labels == reference.labels)
    return FileMetrics(
        name,
        size / 1e6,
        np.max(np.abs(probabilities - expected), **listed),
        np.max(drift, **listed),
        np.mean(labels == np.argmax(expected, axis=1)),
        accuracy,
        milliseconds,
    )


def model_metrics(classifier, reference):
    """Returns the `FileMetrics` of the model itself, to compare with."""
    return compare_with_model(
        "the model itself",
        sum(weight.nbytes for weight in classifier.model.get_weights()),
        reference.probabilities,
        reference,
        runtimes.milliseconds(
            lambda images: classifier.probabilities(images).numpy(),
            reference.images,
        ),
    )


def reason_to_reject(metrics, is_exact):
    """Returns why a file cannot replace the model; None if it can.

    Args:
      metrics: the file's `FileMetrics`, or in a line why there are none.
      is_exact: whether it computes in float32.
    """
    if isinstance(metrics, str):
        return metrics
    if np.isnan(metrics.difference):
        return "predicts NaN"
    if is_exact and metrics.drift > TOLERANCE:
        return (
            "predicts otherwise than the model: logits differ by "
            f"{metrics.drift:.1e} of their range, at most {TOLERANCE:.0e} is "
            "accepted"
        )
    return None


def metrics_table(metrics):
    """Returns rows of text, the header first, of several `FileMetrics`."""
    sizes = runtimes.BATCH_SIZES
    header = ["file", "MB", "largest difference", "same answer", "accuracy"]
    rows = [header + [f"ms per picture, {size} at once" for size in sizes]]
    for each in metrics:
        times = [
            " to ".join(f"{end:.2f}" for end in np.unique(ends))
            for ends in each.milliseconds
        ]
        rows.append(
            [
                each.name,
                f"{each.megabytes:.1f}",
                f"{each.difference:.1e}",
                f"{each.agreement:.1%}",
                "-" if each.accuracy is None else f"{each.accuracy:.1%}",
                *(times or ["-"] * len(sizes)),
            ]
        )
    return rows


def serving_request(files):
    """Returns a request of TensorFlow Serving's REST server, for JSON.

    Args:
      files: bytes of JPEG or PNG files.
    """
    return {
        "instances": [
            {"image_bytes": {"b64": base64.b64encode(file).decode()}}
            for file in files
        ]
    }


def _as_jpeg_or_png(file):
    """Returns a file that TensorFlow decodes, of the same pixels."""
    if tf.io.is_jpeg(file) or file.startswith(b"\x89PNG"):
        return file
    png = io.BytesIO()
    with PIL.Image.open(io.BytesIO(file)) as image:
        image.convert("RGB").save(png, "png")
    return png.getvalue()


def num_bytes(path):
    """Returns the size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
