"""Measures a whole run beside its bare step.

    python -m benchmarks.whole_run [--model resnet50] [--rounds 3]
        [--batch_size 32] [--image_size 224] [--precision float32] [--steps 20]

The run is `python -m train_loop.main` on JPEGs of 500 x 375 pixels, in a
process of its own: it reads and augments them, counts metrics, moves its bar,
reports to the console, TensorBoard and `metrics.jsonl`, and saves a checkpoint
where half of the timed steps are done. Its time is that between two reports, as
TensorBoard has it, behind those of as many steps to warm up as half of them.

The bare step is that of `--mode=benchmark`, on noise that is in memory. The two
take turns, and their ratio is taken within a round.
"""

import json
import pathlib
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from benchmarks.compare import spread, spread_text
from benchmarks.photos import parts_of_photos, write_classes
from benchmarks.programs import run_python
from train_loop.benchmark.machine import describe_host, versions
from train_loop.console import parser_of
from train_loop.training.reports import TAGS

PICTURES = 1000


def program(options, *flags):
    """Runs the trainer to its end.

    Raises:
      SystemExit: it failed, with the last thing that it said.
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
    """Returns the seconds of a step on noise, the median of a process."""
    file = folder / "bare.json"
    program(
        options,
        "--mode=benchmark",
        f"--benchmark_rounds={options.steps}",
        f"--benchmark_file={file}",
    )
    return json.loads(file.read_text())["train"]["step_seconds"]["median"]


def step_of_run(options, folder, number):
    """Returns the seconds of a step of a run, with all that happens between."""
    workdir, half = folder / f"run{number}", options.steps // 2
    program(
        options,
        f"--dataset={folder / 'pictures'}",
        f"--workdir={workdir}",
        f"--steps={3 * half}",
        f"--report_every={half}",
        f"--checkpoint_every={2 * half}",
        "--validation_fraction=0",
    )
    return seconds_per_step(workdir)


def seconds_per_step(workdir):
    """Returns the time from the first report to the last, for each step."""
    events = EventAccumulator(str(workdir / "train"))
    events.Reload()
    # Scalars of TensorFlow 2 are tensors to TensorBoard.
    first, *_, last = events.Tensors(TAGS["images_per_second"])
    return (last.wall_time - first.wall_time) / (last.step - first.step)


def read_options(arguments):
    """Returns what the command line says."""
    parser = parser_of("python -m benchmarks.whole_run", __doc__)
    add = parser.add_argument
    add("--model", default="resnet50", help="A row of VARIANTS.")
    add("--batch_size", type=int, default=32, help="Images per step.")
    add("--image_size", type=int, default=224, help="Height and width.")
    add("--precision", default="float32", help="As the trainer takes it.")
    add("--steps", type=int, default=20, help="Timed steps of each.")
    add("--rounds", type=int, default=3, help="Turns of each.")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = read_options(arguments)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_classes(folder / "pictures", parts_of_photos(PICTURES))
        for number in range(options.rounds):
            bare = bare_step(options, folder)
            whole = step_of_run(options, folder, number)
            shares.append(bare / whole)
            print(
                f"round {number + 1} of {options.rounds}: {bare:.3f} s for a "
                f"bare step, {whole:.3f} s for one of a run",
                flush=True,
            )
    host, libraries = describe_host(), versions("tensorflow", "keras")
    print(
        f"{options.model}, {options.precision}, batch {options.batch_size}, "
        f"{options.image_size} x {options.image_size}: a run is "
        f"{spread_text(spread(shares), '{:.3f}')} times as fast as its bare "
        "step. "
        f"{host['processor']}, {host['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in libraries.items())
    )


if __name__ == "__main__":
    main()
