"""Measures time and memory of a report, without a model.

    python -m benchmarks.report [--images=50000] [--classes=1000] [--skill=5]

The predictions are random. A larger --skill makes more of them correct; 0,
which is the slowest, makes them guesses.
"""

import pathlib
import re
import tempfile
import time

import numpy as np
from absl import app, flags

from train_loop.evaluation.metrics import fit_temperature
from train_loop.evaluation.predictions import Predictions
from train_loop.evaluation.report import write_report
from train_loop.evaluation.results import Results

FLAGS = flags.FLAGS
flags.DEFINE_integer("images", 50_000, "Number of images.", lower_bound=1)
flags.DEFINE_integer("classes", 1000, "Number of classes.", lower_bound=2)
flags.DEFINE_float("skill", 5.0, "Margin of the label's logit.")


def draw():
    """Returns random `Predictions`."""
    random = np.random.default_rng(0)
    labels = random.integers(FLAGS.classes, size=FLAGS.images)
    logits = random.standard_normal((FLAGS.images, FLAGS.classes), np.float32)
    logits[np.arange(FLAGS.images), labels] += FLAGS.skill
    pixels = random.integers(0, 256, (8, 160, 160, 3), np.uint8)
    return Predictions(
        logits,
        labels,
        [f"class {number}" for number in range(FLAGS.classes)],
        [f"{number}.jpg" for number in range(FLAGS.images)],
        lambda number: pixels[number % len(pixels)],
    )


def timed(label, function, *arguments):
    """Calls a function, and prints its time and the peak memory."""
    began = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - began
    print(f"{label:30} {seconds:6.1f} s   {peak_gib():.2f} GiB", flush=True)
    return result


def peak_gib():
    # Not ru_maxrss, which a process inherits from its parent.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def main(argv):
    del argv
    print(
        f"{FLAGS.images:,} predictions, {FLAGS.classes:,} classes; seconds and "
        "peak memory so far (including TensorFlow)"
    )
    predictions = timed("random predictions", draw)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        began = time.perf_counter()
        temperature = timed(
            "temperature",
            fit_temperature,
            predictions.logits,
            predictions.labels,
        )
        results = timed(
            "metrics and intervals",
            Results.of,
            predictions,
            temperature,
        )
        timed("files", write_report, folder / "report", results)
        seconds = time.perf_counter() - began
        page = (folder / "report/report.html").stat().st_size / 1e6
        print(f"whole report: {seconds:.1f} s, report.html: {page:.1f} MB")


if __name__ == "__main__":
    app.run(main)
