"""The time of steps: how it is taken, and the table of what was measured."""

import time
from functools import partial

import numpy as np

from train_loop.benchmark.machine import process_age
from train_loop.console import format_metric, text_table

# After the first one, at least: what is set up late is no part of a step.
WARM_UP_STEPS = 2
# A group of steps takes at least about this long, so that the clock and the
# call from Python do not count.
SECONDS_PER_GROUP = 0.25


class Timer:
    """Times steps, by groups.

    The time to the first step counts from the timer's creation: before data
    are opened and the network is built.

    Args:
      is_first: whether the process has done nothing else before.

    Attributes:
      first_step: {"process": seconds from the start of the process to the end
        of the first step, or None; "task": seconds from the beginning}.
      groups: seconds of each group.
      group_steps: steps of each group.
      waits: seconds that each group waited for input, where that is known.
    """

    def __init__(self, is_first=True):
        self.is_first = is_first
        self.began = time.perf_counter()
        self.first_step = None
        self.groups = []
        self.group_steps = None
        self.waits = []

    def run(self, take, rounds, agree=round, warm_up=0.0):
        """Times steps: the first one, some to warm up, and then groups.

        Args:
          take: function of a number of steps that does them, to their end, and
            returns the seconds that it waited for input, or None.
          rounds: how many groups.
          agree: maps a number to an integer that is the same on all workers.
          warm_up: how many seconds warming up takes at least.
        """
        take(1)
        since = time.perf_counter() - self.began
        process = process_age() if self.is_first else None
        self.first_step = {"process": process, "task": since}
        laps = []
        while not agree(len(laps) >= WARM_UP_STEPS and sum(laps) >= warm_up):
            began = time.perf_counter()
            take(1)
            laps.append(time.perf_counter() - began)
        seconds = sum(laps[1:]) / len(laps[1:])
        self.group_steps = agree(max(round(SECONDS_PER_GROUP / seconds), 1))
        for _ in range(rounds):
            began = time.perf_counter()
            waited = take(self.group_steps)
            self.groups.append(time.perf_counter() - began)
            self.waits += [] if waited is None else [waited]

    def numbers(self, batch_size):
        """Returns what was measured, as a value for JSON.

        Args:
          batch_size: images of a step.
        """
        seconds = np.array(self.groups)
        images = self.group_steps * batch_size
        total = float(seconds.sum())
        return {
            "steps": len(seconds) * self.group_steps,
            "images": len(seconds) * images,
            "seconds": total,
            "steps_per_group": self.group_steps,
            "images_per_second": {
                "mean": len(seconds) * images / total,
                **percentiles(images / seconds),
            },
            "step_seconds": percentiles(seconds / self.group_steps),
            "first_step_seconds": self.first_step,
            "input_wait": sum(self.waits) / total if self.waits else None,
        }


def percentiles(values):
    """Returns the median and the 10th and 90th percentile of some numbers."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def results_table(found, names):
    """Returns the text that is printed of a benchmark.

    Args:
      found: what `--benchmark_file` holds.
      names: of the tasks.
    """
    configuration, limits = found["configuration"], found["limits"]
    size = configuration["image_size"]
    title = (
        f"{configuration['model']}, {size} x {size}, batches of "
        f"{configuration['batch_size']}, {configuration['precision']}, "
        f"{configuration['data']} images, {configuration['replicas']} "
        "replica(s)"
    )
    rows = [["", *names]]
    for row, text_of in ROWS.items():
        texts = [text_of(found[name]) for name in names]
        if any(texts):
            rows.append([row, *texts])
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype, rate in limits["flops_per_second"].items()
    )
    machine = (
        f"One device here, as TensorFlow reaches it: matrix products "
        f"{products}; memory {limits['bytes_per_second'] / 1e9:,.1f} GB/s."
    )
    lines = [_roofline_line(name, found[name]["roofline"]) for name in names]
    return "\n".join([title, text_table(rows), machine, *lines])


def _roofline_line(name, least):
    """Returns the least time of a step, and its reason."""
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


def _range(numbers, text_of):
    low, high = text_of(numbers["p10"]), text_of(numbers["p90"])
    return f"{text_of(numbers['median'])} ({low} to {high})"


def _gigabytes(count):
    return "" if count is None else f"{count / 1e9:.2f} GB"


def _known_seconds(seconds):
    return "" if seconds is None else _seconds(seconds)


# Title -> (what was measured of a task) -> text; "" if it is unknown.
ROWS = {
    "images per second (10th to 90th percentile)": lambda m: _range(
        m["images_per_second"], partial(format_metric, "images_per_second")
    ),
    "seconds per step": lambda m: _range(m["step_seconds"], _seconds),
    "steps timed": lambda m: str(m["steps"]),
    "first step, from the start of the process": lambda m: _known_seconds(
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
