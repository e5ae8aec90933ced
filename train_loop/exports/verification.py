"""Verification of exported files: other runtimes run them on known images."""

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

# Largest accepted difference of a logit in float32, as a fraction of the
# logits' range.
TOLERANCE = 1e-4
# Logarithms of smaller probabilities are not accurate in float32.
SMALLEST = 1e-30


class ReferenceImages(NamedTuple):
    """Images for the verification, and the model's predictions for them.

    `files` are the bytes of JPEG or PNG files, `images` the preprocessed uint8
    [n, image_size, image_size, 3], `labels` int [n] or None, and
    `probabilities` float32 [n, num_classes].
    """

    files: list
    images: np.ndarray
    labels: np.ndarray | None
    probabilities: np.ndarray

    @classmethod
    def predicted_by(cls, classifier, files, labels=None):
        """Returns `ReferenceImages` with the predictions of a classifier.

        Args:
          classifier: a `Classifier`.
          files: bytes of image files in any format that it reads.
          labels: labels of the images, if known.
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
    """How a file's predictions compare with the model's.

    `difference` is the largest difference of a probability, `drift` that of a
    logit as a fraction of the logits' range. `agreement` is the fraction of
    images with the model's class, `accuracy` the fraction with the right class
    (None without labels). `milliseconds` is the time per image for each of
    `runtimes.BATCH_SIZES` (empty if the file has no runtime): the 10th and
    90th percentile, or the median alone in files of an earlier version.
    """

    name: str
    megabytes: float
    difference: float
    drift: float
    agreement: float
    accuracy: float | None
    milliseconds: tuple = ()


def run_files(folder, files, reference):
    """Runs files in their runtimes, in a process without this project.

    Args:
      folder: the format's folder.
      files: `File`s in it.
      reference: `ReferenceImages`.

    Returns:
      For each file its `FileMetrics`, or one line with the reason why it
      cannot be run.
    """
    with tempfile.TemporaryDirectory() as exchange:
        exchange = pathlib.Path(exchange)
        np.save(exchange / "images.npy", reference.images)
        request = json.dumps(serving_request(reference.files))
        (exchange / "files.json").write_text(request)
        # TensorFlow treats the path of a SavedModel as a pattern, in which
        # brackets match other characters.
        link = exchange / "files"
        link.symlink_to(folder.absolute())
        found = []
        while len(found) < len(files):
            # A file that cannot be run ends the process; the next process
            # continues with the other files.
            found += _run(exchange, link, files[len(found) :], reference)
        return found


def _run(exchange, folder, files, reference):
    """Returns results as `run_files` does, up to the first failure."""
    # Only Keras files need a package of this project: `resnet_layers`.
    root = pathlib.Path(resnet_layers.__file__).parents[1]
    paths = [f"{file.runtime}={folder / file.path}" for file in files]
    ended = subprocess.run(
        [sys.executable, runtimes.__file__, exchange, *paths],
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
    """Returns in one line why a process ended."""
    if ended.returncode < 0:
        # The last line of standard error is unrelated then.
        return f"ended by {signal.Signals(-ended.returncode).name}"
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {ended.returncode}"


def compare_with_model(name, size, probabilities, reference, milliseconds=()):
    """Returns the `FileMetrics` of a file's predictions.

    Args:
      name: name of the file, for tables.
      size: size of the file in bytes.
      probabilities: [n, num_classes]; `runtimes.NOT_LISTED` if the file did
        not return one.
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
    """Returns the `FileMetrics` of the model itself, as the reference."""
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
    """Returns why a file fails the verification; None if it passes.

    Args:
      metrics: the file's `FileMetrics`, or the reason why it cannot be run.
      is_exact: whether the file computes in float32.
    """
    if isinstance(metrics, str):
        return metrics
    if np.isnan(metrics.difference):
        return "predicts NaN"
    if is_exact and metrics.drift > TOLERANCE:
        return (
            "predictions differ from the model's: logits differ by "
            f"{metrics.drift:.1e} of their range, at most {TOLERANCE:.0e} is "
            "accepted"
        )
    return None


def metrics_table(metrics):
    """Returns a table of `FileMetrics` as rows of text, the header first."""
    sizes = runtimes.BATCH_SIZES
    header = ["file", "MB", "largest difference", "same class", "accuracy"]
    rows = [header + [f"ms per image, batch {size}" for size in sizes]]
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
    """Returns a request to the REST server of TensorFlow Serving, for JSON.

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
    """Returns a file with the same pixels that TensorFlow can decode."""
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
