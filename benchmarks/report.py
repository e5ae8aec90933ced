"""Measures how long a report takes, and how much memory, without a network.

    python -m benchmarks.report [--images=50000] [--classes=1000] [--skill=5]

The predictions are drawn: of a model that is right the more often, the larger
--skill is. With 0, which is the slowest, it guesses.
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
flags.DEFINE_integer("images", 50_000, "How many images.", lower_bound=1)
flags.DEFINE_integer("classes", 1000, "How many classes.", lower_bound=2)
flags.DEFINE_float("skill", 5.0, "How much larger the right logit is.")


def draw():
    """Returns `Predictions` of a model that is often right."""
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


def timed(what, function, *arguments):
    """Calls a function, and prints how long that took."""
    began = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - began
    print(f"{what:30} {seconds:6.1f} s   {peak_gib():.2f} GiB", flush=True)
    return result


def peak_gib():
    # Not ru_maxrss: a process inherits that from the one that started it.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def main(argv):
    del argv
    print(
        f"{FLAGS.images:,} predictions over {FLAGS.classes:,} classes, seconds "
        "and memory so far (TensorFlow included)"
    )
    predictions = timed("drawn", draw)
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
            "numbers and their intervals",
            Results.of,
            predictions,
            temperature,
        )
        timed("files", write_report, folder / "report", results)
        seconds = time.perf_counter() - began
        page = (folder / "report/report.html").stat().st_size / 1e6
        print(f"the whole report: {seconds:.1f} s; its page: {page:.1f} MB")


if __name__ == "__main__":
    app.run(main)
