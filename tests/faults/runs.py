"""Runs in separate processes, and the comparison of their results."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

# Two replicas, and everything with state between steps.
FLAGS = (
    "--dataset=digits",
    "--virtual_devices=2",
    "--steps=200",
    "--report_every=10",
    "--evaluate_every=40",
    "--checkpoint_every=20",
    "--augment=shift,mixup",
    "--stochastic_depth=0.2",
    "--weight_average=ema",
    "--gradient_accumulation_steps=2",
    "--clip_norm=1",
    "--precision=mixed_float16",
)
# Metrics that depend on the speed of the machine.
SPEEDS = ("images_per_second", "input_wait")


def start(workdir, *flags, **options):
    """Starts the program in a folder; returns the process."""
    return subprocess.Popen(
        [sys.executable, "-m", "train_loop.main", f"--workdir={workdir}"]
        + [*flags],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(workdir, *flags):
    """Runs the program in a folder to its end; returns what it printed."""
    process = start(workdir, *flags)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}:\n{output}")
    return output


def differences(workdir, other):
    """Returns the bitwise differences between two finished runs."""
    prefixes = [
        tf.train.latest_checkpoint(f / "checkpoints") for f in (workdir, other)
    ]
    ours, theirs = map(tf.train.load_checkpoint, prefixes)
    shapes = ours.get_variable_to_shape_map()
    found = [
        key
        for key in shapes
        if ours.get_variable_to_dtype_map()[key] != tf.string
        and not np.array_equal(ours.get_tensor(key), theirs.get_tensor(key))
    ]
    if shapes != theirs.get_variable_to_shape_map():
        found.append("names and shapes")
    if numbers(workdir) != numbers(other):
        found.append("metrics.jsonl")
    return found


def numbers(workdir):
    """Returns the records of a run without its speed."""
    records = map(
        json.loads, (workdir / "metrics.jsonl").read_text().splitlines()
    )
    return [
        {name: v for name, v in record.items() if name not in SPEEDS}
        for record in records
    ]
