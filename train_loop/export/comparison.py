"""Files that were shipped, run by others and compared with the model."""

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
from train_loop.export import runtimes

# Files in float32 must have the model's logits, to this part of their spread.
TOLERANCE = 1e-4
# Logarithms of smaller probabilities say nothing in float32.
SMALLEST = 1e-30


class Pictures(NamedTuple):
    """What files and the model are compared on, and what the model says.

    `files` are the bytes of JPEG or PNG files, `images` uint8
    [n, image_size, image_size, 3] made from them, `labels` int [n] or None,
    `probabilities` float32 [n, num_classes].
    """

    files: list
    images: np.ndarray
    labels: np.ndarray | None
    probabilities: np.ndarray

    @classmethod
    def of(cls, classifier, files, labels=None):
        """Returns the pictures in files, and what a classifier says of them.

        Args:
          classifier: a `Classifier`.
          files: bytes of any files that it reads.
          labels: of the pictures, where they are known.
        """
        images = np.stack([classifier.prepare(file) for file in files])
        return cls(
            [_servable(file) for file in files],
            images,
            None if labels is None else np.asarray(labels),
            _answers(classifier, images),
        )


class Measured(NamedTuple):
    """How a file compares with the model.

    `difference` is the largest one of a probability, `drift` that of a logit
    as a part of the logits' spread, `agreement` how many pictures get the same
    answer, `accuracy` how many the right one (None where labels are not
    known), and `milliseconds` what a picture takes in batches of each of
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


class File(NamedTuple):
    """A file of a format: its path there, who runs it, how exact it is.

    `runtime` is one of `runtimes.RUNTIMES`; None where nobody runs it.
    `is_exact` says that it computes in float32.
    """

    path: str
    runtime: str | None = None
    is_exact: bool = True

    def __str__(self):
        return self.path + " (files)" * (self.runtime == "serving")


def measure(folder, files, pictures):
    """Runs files by other runtimes, in a process of their own.

    Args:
      folder: in which they are.
      files: `File`s.
      pictures: `Pictures`.

    Returns:
      For each a `Measured`, or in a line why it cannot be run.
    """
    with tempfile.TemporaryDirectory() as exchange:
        exchange = pathlib.Path(exchange)
        np.save(exchange / "images.npy", pictures.images)
        request = json.dumps(serving_request(pictures.files))
        (exchange / "files.json").write_text(request)
        # TensorFlow takes the path of a SavedModel for a pattern: brackets in
        # it would match something else.
        link = exchange / "files"
        link.symlink_to(folder.absolute())
        found = []
        while len(found) < len(files):
            # A file that cannot be run ends the process: another one continues.
            found += _run(exchange, link, files[len(found) :], pictures)
        return found


def _run(exchange, folder, files, pictures):
    """Returns what `measure` does, up to the first file that failed."""
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
        answers = exchange / f"{number}.npz"
        if not answers.exists():
            reason = _reason(ended)
            return [*found, f"cannot be run by {file.runtime} ({reason})"]
        with np.load(answers) as values:
            found.append(
                compare(
                    str(file),
                    bytes_of(folder / file.path),
                    values["probabilities"],
                    pictures,
                    values["milliseconds"].tolist(),
                )
            )
        answers.unlink()
    return found


def _reason(ended):
    """Returns in a line why a process ended."""
    if ended.returncode < 0:
        # Its last line is about something else.
        return f"ended by {signal.Signals(-ended.returncode).name}"
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {ended.returncode}"


def compare(name, num_bytes, probabilities, pictures, milliseconds=()):
    """Returns a `Measured` of what a file answers.

    Args:
      name: of the file, for people.
      num_bytes: of the file.
      probabilities: [n, num_classes]; `runtimes.UNSAID` where there is none.
      pictures: `Pictures`.
      milliseconds: what a picture takes.
    """
    expected = pictures.probabilities
    logits = np.log(np.maximum(expected, SMALLEST))
    spread = np.ptp(logits, axis=1, keepdims=True)
    drift = np.abs(np.log(np.maximum(probabilities, SMALLEST)) - logits)
    said = {"where": probabilities != runtimes.UNSAID, "initial": 0.0}
    predictions = np.argmax(probabilities, axis=1)
    accuracy = None
    if pictures.labels is not None:
        accuracy = np.mean(predictions == pictures.labels)
    return Measured(
        name,
        num_bytes / 1e6,
        np.max(np.abs(probabilities - expected), **said),
        np.max(drift / spread, **said),
        np.mean(predictions == np.argmax(expected, axis=1)),
        accuracy,
        milliseconds,
    )


def measure_model(classifier, pictures):
    """Returns the `Measured` of the model itself, for the others' sake."""
    return compare(
        "the model itself",
        sum(weight.nbytes for weight in classifier.model.get_weights()),
        pictures.probabilities,
        pictures,
        runtimes.milliseconds(
            lambda images: classifier.probabilities(images).numpy(),
            pictures.images,
        ),
    )


def problem(found, is_exact):
    """Returns why a file cannot stand for the model; None where it can.

    Args:
      found: the file's `Measured`, or in a line why there is none.
      is_exact: whether it computes in float32.
    """
    if isinstance(found, str):
        return found
    if np.isnan(found.difference):
        return "predicts NaN"
    if is_exact and found.drift > TOLERANCE:
        return (
            "predicts otherwise than the model: logits differ by "
            f"{found.drift:.1e} of their range, at most {TOLERANCE:.0e} is "
            "accepted"
        )
    return None


def to_json(measured):
    """Returns several `Measured` as text, for `from_json`."""
    values = [each._asdict() for each in measured]
    return json.dumps(values, indent=2, default=float) + "\n"


def from_json(text):
    """Returns several `Measured` from the text of `to_json`."""
    return [Measured(**values) for values in json.loads(text)]


def table_rows(measured):
    """Returns rows of text, the header first, of several `Measured`."""
    sizes = runtimes.BATCH_SIZES
    rows = [
        [
            "file",
            "MB",
            "largest difference",
            "same answer",
            "accuracy",
            *(f"ms per picture, {size} at once" for size in sizes),
        ]
    ]
    for each in measured:
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
    """Returns what TensorFlow Serving's REST server takes, for JSON.

    Args:
      files: bytes of JPEG or PNG files.
    """
    return {
        "instances": [
            {"image_bytes": {"b64": base64.b64encode(file).decode()}}
            for file in files
        ]
    }


def _answers(classifier, images):
    size = max(runtimes.BATCH_SIZES)
    return np.concatenate(
        [
            classifier.probabilities(images[begin : begin + size])
            for begin in range(0, len(images), size)
        ]
    )


def _servable(file):
    """Returns a file that TensorFlow decodes, of the same pixels."""
    if tf.io.is_jpeg(file) or file.startswith(b"\x89PNG"):
        return file
    png = io.BytesIO()
    with PIL.Image.open(io.BytesIO(file)) as image:
        image.convert("RGB").save(png, "png")
    return png.getvalue()


def bytes_of(path):
    """Returns how large a file is, or all files of a folder are."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
