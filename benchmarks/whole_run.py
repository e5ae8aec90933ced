"""Compares the speed of a whole run with that of its bare step.

    python -m benchmarks.whole_run [--model resnet50] [--rounds 3]
        [--batch_size 32] [--image_size 224] [--precision float32] [--steps 20]

The run is `python -m train_loop.main` in a new process. It reads and augments
JPEGs of 500 x 375 pixels, counts metrics, updates its progress bar, reports to
the console, TensorBoard and `metrics.jsonl`, and saves a checkpoint after half
of the timed steps. Its time is the difference of two reports in TensorBoard,
after a warm-up of half as many steps.

The bare step is that of `--mode=benchmark` on synthetic images in memory. The
two alternate, and their ratio is computed within a round.
"""

import json
import pathlib
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from benchmarks.compare import median_and_range, range_text
from benchmarks.photos import parts_of_photos, write_classes
from benchmarks.programs import run_python
from train_loop.benchmark.machine import describe_host, versions
from train_loop.console import parser_of
from train_loop.training.reports import TAGS

NUM_IMAGES = 1000


def program(options, *flags):
    """Runs the trainer to its end.

    Raises:
      SystemExit: it failed, with its last line of standard error.
    """
    try:
        run_python(
            "-m",
            "train_loop.main",
            f"--model={options.model}",
            f"--batch_size={options.batch_size}",
            f"--image_size={options.image_size}",
            f"--precision={options.precision}",
            *flags,
        )
    except ChildProcessError as error:
        sys.exit(str(error))


def bare_step(options, folder):
    """Returns the median seconds of a step on synthetic images."""
    file = folder / "bare.json"
    program(
        options,
        "--mode=benchmark",
        f"--benchmark_rounds={options.steps}",
        f"--benchmark_file={file}",
    )
    return json.loads(file.read_text())["train"]["step_seconds"]["median"]


def step_of_run(options, folder, number):
    """Returns the seconds per step of a whole run."""
    workdir, half = folder / f"run{number}", options.steps // 2
    program(
        options,
        f"--dataset={folder / 'images'}",
        f"--workdir={workdir}",
        f"--steps={3 * half}",
        f"--report_every={half}",
        f"--checkpoint_every={2 * half}",
        "--validation_fraction=0",
    )
    return seconds_per_step(workdir)


def seconds_per_step(workdir):
    """Returns the time from the first to the last report, per step."""
    events = EventAccumulator(str(workdir / "train"))
    events.Reload()
    # TensorBoard stores the scalars of TensorFlow 2 as tensors.
    first, *_, last = events.Tensors(TAGS["images_per_second"])
    return (last.wall_time - first.wall_time) / (last.step - first.step)


def read_options(arguments):
    """Returns the parsed command line."""
    parser = parser_of("python -m benchmarks.whole_run", __doc__)
    add = parser.add_argument
    add("--model", default="resnet50", help="Name of a variant.")
    add("--batch_size", type=int, default=32, help="Batch size.")
    add("--image_size", type=int, default=224, help="Height and width.")
    add("--precision", default="float32", help="Value of --precision.")
    add("--steps", type=int, default=20, help="Number of timed steps.")
    add("--rounds", type=int, default=3, help="Measurements of each.")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = read_options(arguments)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_classes(folder / "images", parts_of_photos(NUM_IMAGES))
        for number in range(options.rounds):
            bare = bare_step(options, folder)
            whole = step_of_run(options, folder, number)
            ratios.append(bare / whole)
            print(
                f"round {number + 1} of {options.rounds}: bare step "
                f"{bare:.3f} s, step of a run {whole:.3f} s",
                flush=True,
            )
    host, libraries = describe_host(), versions("tensorflow", "keras")
    print(
        f"{options.model}, {options.precision}, batch {options.batch_size}, "
        f"{options.image_size} x {options.image_size}: speed of a run relative "
        f"to its bare step {range_text(median_and_range(ratios), '{:.3f}')}. "
        f"{host['processor']}, {host['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in libraries.items())
    )


if __name__ == "__main__":
    main()
