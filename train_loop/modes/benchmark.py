"""A benchmark: how fast one configuration is here, and how fast it could be."""

import dataclasses
import json
import pathlib
import tempfile
from functools import partial

import tensorflow as tf

from train_loop.benchmark.machine import (
    Limits,
    describe_host,
    gpu_names,
    measure_bytes,
    measure_flops,
    peak_device_memory,
    peak_memory,
    roofline_of,
    versions,
)
from train_loop.benchmark.timing import TASKS, Stopwatch
from train_loop.console import format_metric, text_table
from train_loop.errors import check_choice
from train_loop.modes.summary import SAYING, suited
from train_loop.resolve import DEFAULTS, MODE_DEFAULTS, check_run_or_new
from train_loop.settings import to_text
from train_loop.workdir import check_writable, write_text

# What of the settings makes one configuration.
TELLING = (
    *("model", "image_size", "batch_size", "precision", "optimizer", "loss"),
    *("strategy", "virtual_devices", "jit_compile", "accumulate_steps"),
    *("average", "freeze", "frozen_batch_norm", "synchronized_batch_norm"),
    *("stochastic_depth", "remat", "kernel_products", "fused_batch_norm"),
    *("clip_norm", "deterministic", "dataset", "augment", "cache"),
)
# Of these, what noise does not ask.
OF_IMAGES = ("dataset", "augment", "cache")
# Before real images are timed: what was read ahead while the step was traced
# is used up by then.
WARM_UP_SECONDS = 2.0


def benchmark(settings):
    """Measures one configuration, the machine that it runs on, and prints it.

    Nothing is left behind but `--benchmark_file`, and in a `--workdir` that is
    named what reading its images leaves there: `--cache=disk`, and the list of
    `--skip_bad_images`.

    Args:
      settings: `Settings` that were given.

    Returns:
      What that file holds.

    Raises:
      UserError: it cannot be measured.
    """
    asked = settings.over(MODE_DEFAULTS)
    names = asked.benchmark.split(",")
    for name in names:
        check_choice("--benchmark", name, TASKS)
    path = asked.benchmark_file and pathlib.Path(asked.benchmark_file)
    if path:
        check_writable("--benchmark_file", path.parent)
    check_run_or_new(settings)
    is_synthetic = asked.benchmark_data == "synthetic" or (
        asked.benchmark_data is None
        and settings.dataset is None
        and settings.workdir is None
    )
    with tempfile.TemporaryDirectory() as folder:
        given = to_measure(settings, is_synthetic, folder)
        tasks = {}
        for name in names:
            # Only the first one begins when the process does.
            stopwatch = Stopwatch(is_first=not tasks)
            tasks[name] = _timed(stopwatch, name, given, is_synthetic, asked)
    # Behind all that is timed, whose memory they would add to.
    limits = _measure_limits(task for task, _ in tasks.values())
    task, _ = tasks[names[0]]
    found = {
        "configuration": {
            "data": "synthetic" if is_synthetic else "real",
            "replicas": max(task.replicas for task, _ in tasks.values()),
            "workers": task.workers.count,
            **_configuration(task.settings, is_synthetic),
            # The others compute norms as training does.
            **(
                {
                    name: to_text(getattr(asked, name))
                    for name in ("fold_batch_norm", "constant_weights")
                }
                if "predict" in tasks
                else {}
            ),
        },
        "machine": {
            **describe_host(),
            "devices": gpu_names(),
            "versions": versions("tensorflow", "keras"),
        },
        # Of one device.
        "limits": {
            "flops_per_second": {
                dtype: limit.flops for dtype, limit in limits.items()
            },
            "bytes_per_second": limits["float32"].bytes,
        },
        **{
            name: {**numbers, **_against(limits[_dtype(task)], task, numbers)}
            for name, (task, numbers) in tasks.items()
        },
    }
    if task.workers.is_chief:
        print(_described(found, names))
        if path:
            write_text(path, json.dumps(found, indent=2) + "\n")
            print(f"All numbers are in {path}.")
    return found


def to_measure(settings, is_synthetic, folder):
    """Returns the settings of what is measured.

    Args:
      settings: `Settings` that were given.
      is_synthetic: whether images are noise.
      folder: where a run may write that no `workdir` was given for.
    """
    if settings.workdir is not None:
        return settings
    if is_synthetic:
        if not any(name in settings.given for name in ("model", *SAYING)):
            settings = dataclasses.replace(settings, model=DEFAULTS.model)
        # The model alone, with the size of images that it was made for.
        settings = suited(settings)
    return dataclasses.replace(settings, workdir=folder)


def _timed(stopwatch, name, given, is_synthetic, asked):
    """Returns a `Task`, and what was measured of it."""
    task = TASKS[name](given, is_synthetic)
    with task.workers.explaining_lost_workers():
        stopwatch.time(
            task.take,
            asked.benchmark_rounds,
            lambda number: round(task.workers.from_chief(number)),
            warm_up=0.0 if is_synthetic else WARM_UP_SECONDS,
        )
    return task, {
        **stopwatch.numbers(task.batch_size),
        "peak_memory_bytes": peak_memory(),
        "peak_device_memory_bytes": peak_device_memory(),
    }


def _measure_limits(tasks):
    """Returns {dtype: `Limits`} of one device; workers measure together."""
    moved = measure_bytes()
    dtypes = dict.fromkeys(("float32", *map(_dtype, tasks)))
    return {dtype: Limits(measure_flops(dtype), moved) for dtype in dtypes}


def _dtype(task):
    return tf.keras.DTypePolicy(task.settings.precision).compute_dtype


def _against(of_device, task, numbers):
    """Returns what a step comes to, beside what its devices can do."""
    limits = task.limits(of_device)
    least = roofline_of(task.works(), limits)
    seconds = numbers["step_seconds"]["median"]
    return {
        "limits": {
            "flops_per_second": limits.flops,
            "bytes_per_second": limits.bytes,
        },
        "flops_per_second": least.flops / seconds,
        "share_of_flops": least.products_seconds / seconds,
        "share_of_bandwidth": least.memory_seconds / seconds,
        "roofline": {
            **least._asdict(),
            "share": least.least_seconds / seconds,
        },
    }


def _configuration(settings, is_synthetic):
    texts = settings.texts()
    unread = OF_IMAGES if is_synthetic else ()
    return {
        name: texts[name]
        for name in TELLING
        if name in texts and name not in unread
    }


def _described(found, names):
    """Returns what was found as text."""
    configuration, limits = found["configuration"], found["limits"]
    size = configuration["image_size"]
    head = (
        f"{configuration['model']}, {size} x {size}, batches of "
        f"{configuration['batch_size']}, {configuration['precision']}, "
        f"{configuration['data']} images, {configuration['replicas']} "
        "replica(s)"
    )
    rows = [["", *names]]
    for title, text_of in ROWS.items():
        texts = [text_of(found[name]) for name in names]
        if any(texts):
            rows.append([title, *texts])
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype, rate in limits["flops_per_second"].items()
    )
    machine = (
        f"One device here, as TensorFlow reaches it: matrix products "
        f"{products}; memory {limits['bytes_per_second'] / 1e9:,.1f} GB/s."
    )
    lines = [_roofline_line(name, found[name]["roofline"]) for name in names]
    return "\n".join([head, text_table(rows), machine, *lines])


def _roofline_line(name, least):
    """Says what a step must take, and why."""
    return (
        f"A step of {name}: products of {least['flops'] / 1e9:,.1f} GFLOP take "
        f"{_seconds(least['products_seconds'])}, {least['bytes'] / 1e9:,.2f} "
        f"GB to move take {_seconds(least['memory_seconds'])}; operation by "
        f"operation, whichever takes longer, at least "
        f"{_seconds(least['least_seconds'])}: {least['share']:.0%} of that "
        "speed is reached."
    )


def _seconds(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _spread(numbers, text_of):
    low, high = text_of(numbers["p10"]), text_of(numbers["p90"])
    return f"{text_of(numbers['median'])} ({low} to {high})"


def _gigabytes(count):
    return "" if count is None else f"{count / 1e9:.2f} GB"


def _age(seconds):
    return "" if seconds is None else _seconds(seconds)


# Title -> (what was measured of a task) -> text; "" where nobody knows.
ROWS = {
    "images per second (10th to 90th percentile)": lambda m: _spread(
        m["images_per_second"], partial(format_metric, "images_per_second")
    ),
    "seconds per step": lambda m: _spread(m["step_seconds"], _seconds),
    "steps timed": lambda m: str(m["steps"]),
    "first step, from the start of the process": lambda m: _age(
        m["first_step_seconds"]["process"]
    ),
    "first step, from the beginning of the task": lambda m: _seconds(
        m["first_step_seconds"]["task"]
    ),
    "waiting for input": lambda m: (
        "" if m["input_wait"] is None else f"{m['input_wait']:.1%}"
    ),
    "memory at its most": lambda m: _gigabytes(m["peak_memory_bytes"]),
    "memory of the GPU at its most": lambda m: _gigabytes(
        m["peak_device_memory_bytes"]
    ),
    # Training: forward, and the gradients of inputs and of kernels, three
    # times the products of the forward pass, but for the images' gradient.
    "GFLOP/s": lambda m: f"{m['flops_per_second'] / 1e9:,.1f}",
    "share of matrix products' speed": lambda m: f"{m['share_of_flops']:.0%}",
    "share of memory's speed": lambda m: f"{m['share_of_bandwidth']:.0%}",
    "share of the roofline": lambda m: f"{m['roofline']['share']:.0%}",
}
