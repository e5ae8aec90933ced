"""Summary of a model's cost, and benchmark of its speed on this machine."""

import dataclasses
import json
import pathlib
import tempfile
from dataclasses import replace

import tensorflow as tf

from resnet_layers import VARIANTS
from train_loop.benchmark.machine import (
    Limits,
    Timer,
    describe_host,
    gpu_names,
    measure_bytes,
    measure_flops,
    peak_device_memory,
    peak_memory,
    versions,
)
from train_loop.benchmark.model_costs import compared_with_roofline, cost_table
from train_loop.benchmark.tasks import TASKS, results_table
from train_loop.builders.model import check_image_size
from train_loop.console import text_table
from train_loop.errors import UserError, check_choice
from train_loop.recipes import GENERIC
from train_loop.resolve import (
    DEFAULTS,
    MODE_DEFAULTS,
    check_run_or_new,
    resolve,
)
from train_loop.workdir import Workdir, check_writable, write_text

# Settings that decide the recipe, and with it the image size.
RECIPE_SETTINGS = ("workdir", "dataset", "recipe", "weights")


def summarize(settings):
    """Prints parameters, MACs and activation memory of a model's parts."""
    settings = resolve(without_digits(settings))
    check_image_size(settings)
    model = VARIANTS[settings.model](
        dtype=settings.precision, **_classes(settings.workdir)
    )
    size = settings.image_size
    model.build((None, size, size, settings.channels))
    print(
        f"{settings.model}, {model.num_classes} classes, {size} x {size}, "
        f"{settings.precision}; multiply-adds and activations are for one image"
    )
    print(text_table(cost_table(model, size)))


def without_digits(settings):
    """Returns settings of a model alone with the generic recipe.

    The default recipe, that of the digits, has their image size.
    """
    is_explicit = not settings.given.keys().isdisjoint(RECIPE_SETTINGS)
    if settings.model is None or is_explicit:
        return settings
    return replace(settings, recipe=GENERIC)


def _classes(workdir):
    """Returns the argument `num_classes` of a run's model; {} without a run.

    Raises:
      UserError: the folder is not a run.
    """
    if workdir is None:
        return {}
    if not Workdir.of(workdir).is_run:
        raise UserError(
            f"--workdir={workdir}: not an existing run (no flags.txt). Pass "
            "the folder of a run."
        )
    names = Workdir.of(workdir).read_data()["class_names"]
    return {"num_classes": len(names)}


# The settings that determine the speed.
CONFIGURATION = (
    *("model", "image_size", "batch_size", "precision", "optimizer", "loss"),
    *(
        "strategy",
        "virtual_devices",
        "jit_compile",
        "gradient_accumulation_steps",
    ),
    *(
        "weight_average",
        "freeze",
        "frozen_batch_norm",
        "synchronized_batch_norm",
    ),
    *("stochastic_depth", "gradient_checkpointing", "fast_paths"),
    *("clip_norm", "deterministic", "dataset", "augment", "cache"),
)
# Of these, those that do not matter for synthetic images.
OF_IMAGES = ("dataset", "augment", "cache")
# Warm-up before real images are timed: it uses up the batches that were
# prefetched while the step was traced.
WARM_UP_SECONDS = 2.0


def benchmark(settings):
    """Measures and prints the speed of one configuration on this machine.

    Writes `--benchmark_file`. An explicit `--workdir` also gets the files of
    `--cache=disk` and `--skip_bad_images`.

    Args:
      settings: explicit `Settings`.

    Returns:
      The content of that file.

    Raises:
      UserError: a setting is invalid, or an input is missing.
    """
    options = settings.over(MODE_DEFAULTS)
    names = options.benchmark.split(",")
    for name in names:
        check_choice("--benchmark", name, TASKS)
    path = options.benchmark_file and pathlib.Path(options.benchmark_file)
    if path:
        check_writable("--benchmark_file", path.parent)
    check_run_or_new(settings)
    is_synthetic = options.benchmark_data == "synthetic" or (
        options.benchmark_data is None
        and settings.dataset is None
        and settings.workdir is None
    )
    with tempfile.TemporaryDirectory() as folder:
        measured = settings_to_measure(settings, is_synthetic, folder)
        tasks = {}
        for name in names:
            # The time of the start counts for the first task only.
            timer = Timer(is_first=not tasks)
            tasks[name] = _timed(timer, name, measured, is_synthetic, options)
    # Last: they would add to the peak memory of the tasks.
    limits = _measure_limits(task for task, _ in tasks.values())
    task, _ = tasks[names[0]]
    results = {
        "configuration": {
            "data": "synthetic" if is_synthetic else "real",
            "replicas": max(task.replicas for task, _ in tasks.values()),
            "workers": task.workers.count,
            **_configuration(task.settings, is_synthetic),
        },
        "machine": {
            **describe_host(),
            "devices": gpu_names(),
            "versions": versions("tensorflow", "keras"),
        },
        # For one device.
        "limits": {
            "flops_per_second": {
                dtype: limit.flops for dtype, limit in limits.items()
            },
            "bytes_per_second": limits["float32"].bytes,
        },
        **{
            name: {
                **numbers,
                **compared_with_roofline(
                    task.minimum_work(),
                    task.limits(limits[_dtype(task)]),
                    numbers["step_seconds"]["median"],
                ),
            }
            for name, (task, numbers) in tasks.items()
        },
    }
    if task.workers.is_chief:
        print(results_table(results, names))
        if path:
            write_text(path, json.dumps(results, indent=2) + "\n")
            print(f"All results are in {path}.")
    return results


def settings_to_measure(settings, is_synthetic, folder):
    """Returns the settings to measure.

    Args:
      settings: explicit `Settings`.
      is_synthetic: whether images are random noise.
      folder: `workdir` to use if none is set.
    """
    if settings.workdir is not None:
        return settings
    if is_synthetic:
        if not any(
            name in settings.given for name in ("model", *RECIPE_SETTINGS)
        ):
            settings = dataclasses.replace(settings, model=DEFAULTS.model)
        settings = without_digits(settings)
    return dataclasses.replace(settings, workdir=folder)


def _timed(timer, name, settings, is_synthetic, options):
    """Returns a `Task` and its results."""
    task = TASKS[name](settings, is_synthetic)
    with task.workers.explaining_lost_workers():
        timer.run(
            task.take,
            options.benchmark_rounds,
            lambda number: round(task.workers.from_chief(number)),
            warm_up=0.0 if is_synthetic else WARM_UP_SECONDS,
        )
    return task, {
        **timer.numbers(task.batch_size),
        "peak_memory_bytes": peak_memory(),
        "peak_device_memory_bytes": peak_device_memory(),
    }


def _measure_limits(tasks):
    """Returns {dtype: `Limits`} of one device; workers measure together."""
    bandwidth = measure_bytes()
    dtypes = dict.fromkeys(("float32", *map(_dtype, tasks)))
    return {dtype: Limits(measure_flops(dtype), bandwidth) for dtype in dtypes}


def _dtype(task):
    return tf.keras.DTypePolicy(task.settings.precision).compute_dtype


def _configuration(settings, is_synthetic):
    texts = settings.texts()
    unused = OF_IMAGES if is_synthetic else ()
    return {
        name: texts[name]
        for name in CONFIGURATION
        if name in texts and name not in unused
    }
