"""Measures how time and memory scale with the size of the work.

    python -m benchmarks.scaling [--sweep batch_size replicas] [--rounds 1]
        [--model resnet50] [--image_size 224] [--batch_size 32]
        [--output scaling.json] [--plot scaling.png]

Each point is `--mode=benchmark` in new processes. The points of all sweeps
alternate, once per round; the results are medians. A sweep varies one quantity;
flags set the others:

batch_size   images per step
image_size   height and width
depth        layers of a ResNet with bottleneck blocks
replicas     virtual devices of one process, which share the batch
workers      processes of `train_loop.launch`, which share the batch
data_set     JPEGs in a folder, read as in a run, for resnet_tiny

An exponent is the slope of a line fitted to the logarithms: 1 if twice the work
takes twice the time, 0 if it takes the same time. The efficiency of replicas
and workers is the time of one divided by the time of several, for the same
batch on the same cores: 1 without overhead. Memory is the peak memory of one
process, including TensorFlow (about half a GB).
"""

import io
import json
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image
from matplotlib.figure import Figure

from benchmarks.photos import write_classes
from benchmarks.programs import run_python
from train_loop.benchmark.machine import describe_host, versions
from train_loop.console import parser_of

MAIN = ("-m", "train_loop.main")
# Number of images of the data set 1, and their side.
NUM_IMAGES, SIDE = 500, 64
# Label -> function of a task's results in `--benchmark_file`.
MEASURES = {
    "seconds per step": lambda m: m["step_seconds"]["median"],
    "seconds to the first step": lambda m: m["first_step_seconds"]["task"],
    "GB of memory": lambda m: m["peak_memory_bytes"] / 1e9,
}


class Sweep(NamedTuple):
    """A quantity that varies from point to point.

    `command` maps a value and a folder for images to the arguments of Python
    before the common flags, and to flags that override these. `values` are
    numbers in ascending order. If `is_shared`, the value is the number of
    devices or processes that share the same work.
    """

    values: tuple
    command: Callable
    is_shared: bool = False


def with_flag(name):
    """Returns a `command` that sets a flag."""
    return lambda value, _: (MAIN, (f"--{name}={value}",))


def with_depth(value, _):
    return MAIN, (f"--model=resnet{value}",)


def with_replicas(value, _):
    return MAIN, (f"--virtual_devices={value}", "--strategy=mirrored")


def with_workers(value, _):
    return ("-m", "train_loop.launch", f"--workers={value}", "--"), ()


def with_data_set(value, folder):
    data_set = folder / f"{value}"
    # Later rounds use it again.
    if not data_set.exists():
        write_classes(data_set, noise_images(value * NUM_IMAGES))
    return MAIN, (
        f"--dataset={data_set}",
        "--model=resnet_tiny",
        f"--image_size={SIDE}",
        "--batch_size=64",
    )


SWEEPS = {
    "batch_size": Sweep((8, 16, 32, 64), with_flag("batch_size")),
    "image_size": Sweep((64, 96, 128, 192, 224), with_flag("image_size")),
    "depth": Sweep((26, 50, 101, 152), with_depth),
    "replicas": Sweep((1, 2), with_replicas, is_shared=True),
    "workers": Sweep((1, 2), with_workers, is_shared=True),
    "data_set": Sweep((1, 10), with_data_set),
}


def noise_images(count):
    """Yields the bytes of JPEGs."""
    random = np.random.default_rng(0)
    for _ in range(count):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "jpeg", quality=90)
        yield file.getvalue()


def measure(command, options, file):
    """Measures a point; returns {label: number}, or prints why it failed.

    Args:
      command: the command of a `Sweep`.
      options: the parsed command line.
      file: path for the results of the benchmark.
    """
    program, changes = command
    try:
        run_python(
            *program,
            "--mode=benchmark",
            f"--benchmark_file={file}",
            f"--benchmark_rounds={options.steps}",
            f"--model={options.model}",
            f"--image_size={options.image_size}",
            f"--batch_size={options.batch_size}",
            # The last value of a repeated flag counts.
            *changes,
        )
    except ChildProcessError as error:
        print(f"Skipping a point: {error}", flush=True)
        return None
    measured = json.loads(file.read_text())["train"]
    return {name: of(measured) for name, of in MEASURES.items()}


def exponent(values, numbers):
    """Returns the slope of the least-squares line of the logarithms."""
    slope, _ = np.polyfit(np.log(values), np.log(numbers), 1)
    return float(slope)


def summarize(sweep, points):
    """Returns the summary of a sweep; None if all of its points failed.

    Args:
      sweep: a `Sweep`.
      points: {value: [{label: number}, for each round]}.
    """
    values = [value for value, rounds in points.items() if rounds]
    if not values:
        return None
    measures = {
        name: [
            statistics.median(each[name] for each in points[value])
            for value in values
        ]
        for name in MEASURES
    }
    summary = {"values": values, **measures}
    if len(values) > 1:
        summary["exponents"] = {
            name: exponent(values, numbers)
            for name, numbers in measures.items()
        }
    if sweep.is_shared and values[0] == 1:
        seconds = measures["seconds per step"]
        summary["efficiency"] = [seconds[0] / each for each in seconds]
    return summary


def draw(path, summaries):
    """Plots each sweep in a row, on logarithmic axes."""
    figure = Figure(
        figsize=(4 * len(MEASURES), 3 * len(summaries)), layout="constrained"
    )
    grid = figure.subplots(len(summaries), len(MEASURES), squeeze=False)
    for row, (name, summary) in zip(grid, summaries.items(), strict=True):
        for axis, measure_name in zip(row, MEASURES, strict=True):
            numbers = summary[measure_name]
            axis.loglog(summary["values"], numbers, marker="o")
            axis.set_xticks(summary["values"], map(str, summary["values"]))
            # A wide range, so that slow growth looks slow.
            axis.set_ylim(min(numbers) / 2, max(numbers) * 2)
            ends = [min(numbers), max(numbers)]
            if ends[1] < 1.3 * ends[0]:
                # The two labels would overlap.
                ends = [statistics.median(numbers)]
            axis.set_yticks(ends, map("{:.3g}".format, ends))
            axis.minorticks_off()
            axis.set_xlabel(name)
            slope = summary.get("exponents", {}).get(measure_name)
            suffix = "" if slope is None else f", exponent {slope:.2f}"
            axis.set_title(f"{measure_name}{suffix}", fontsize=9)
    figure.savefig(path, dpi=120)


def describe(name, summary):
    """Returns the table of a sweep as text."""
    lines = [f"{name:11}" + "".join(f"{v:>10}" for v in summary["values"])]
    for measure_name in MEASURES:
        numbers = "".join(f"{n:10.3g}" for n in summary[measure_name])
        slope = summary.get("exponents", {}).get(measure_name)
        suffix = "" if slope is None else f"   exponent {slope:.2f}"
        lines.append(f"  {measure_name:26}{numbers}{suffix}")
    if "efficiency" in summary:
        numbers = "".join(f"{n:10.3g}" for n in summary["efficiency"])
        lines.append(f"  {'efficiency':26}{numbers}")
    return "\n".join(lines)


def read_options(arguments):
    """Returns the parsed command line."""
    parser = parser_of("python -m benchmarks.scaling", __doc__)
    add = parser.add_argument
    add("--sweep", nargs="+", choices=[*SWEEPS], default=[*SWEEPS])
    add("--values", type=int, nargs="+", help="Values of a single sweep.")
    add("--model", default="resnet50", help="Name of a variant.")
    add("--image_size", type=int, default=224, help="Height and width.")
    add("--batch_size", type=int, default=32, help="Batch size.")
    add("--rounds", type=int, default=1, help="Measurements of each point.")
    add("--steps", type=int, default=5, help="Timed groups of steps.")
    add("--output", type=pathlib.Path, help="JSON file for all results.")
    add(
        "--plot",
        type=pathlib.Path,
        default="scaling.png",
        help="PNG file for the plot.",
    )
    options = parser.parse_args(arguments)
    if options.values and len(options.sweep) > 1:
        parser.error("--values: requires a single --sweep. Pass one.")
    return options


def main(arguments=None):
    options = read_options(arguments)
    points = {
        name: {value: [] for value in options.values or SWEEPS[name].values}
        for name in options.sweep
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for number in range(options.rounds):
            for name, of_sweep in points.items():
                for value, rounds in of_sweep.items():
                    command = SWEEPS[name].command(value, folder)
                    found = measure(command, options, folder / "numbers.json")
                    rounds += [] if found is None else [found]
                    print(
                        f"round {number + 1} of {options.rounds}: {name} "
                        f"{value}",
                        flush=True,
                    )
    summaries = {
        name: summary
        for name, of_sweep in points.items()
        if (summary := summarize(SWEEPS[name], of_sweep))
    }
    for name, summary in summaries.items():
        print(describe(name, summary))
    if options.output:
        value = {
            "machine": describe_host(),
            "versions": versions("tensorflow", "keras"),
            "sweeps": summaries,
            "rounds": points,
        }
        options.output.write_text(json.dumps(value, indent=2) + "\n")
    if summaries:
        draw(options.plot, summaries)
        print(f"The plot is in {options.plot}.")


if __name__ == "__main__":
    main()
