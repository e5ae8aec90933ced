"""Measurements: time of steps, limits of the machine, memory of the process."""

import importlib.metadata
import os
import pathlib
import platform
import re
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train_loop.process import count_cores, read_cpuinfo

# Minimum number of steps after the first one: late setup is not timed.
WARM_UP_STEPS = 2
# Approximate duration of a group of steps, so that the overhead of the clock
# and of a call from Python is negligible.
SECONDS_PER_GROUP = 0.25
# Approximate duration of a measurement of the machine's limits.
SECONDS_PER_MEASUREMENT = 0.05
# The best repetition counts, because other load only slows the machine down.
REPETITIONS = 8
LARGEST_MATRIX = 8192
# Larger than the caches.
BYTES = {"CPU": 2**28, "GPU": 2**30}
# Processor features that speed up matrix products, best first.
FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


class Timer:
    """Times steps in groups.

    The time to the first step counts from the creation of the timer, before
    data are opened and the model is built.

    Args:
      is_first: whether nothing else ran in this process before.

    Attributes:
      first_step: {"process": seconds from the start of the process to the end
        of the first step, or None; "task": seconds from the creation}.
      groups: seconds of each group.
      group_steps: number of steps in a group.
      waits: seconds that each group waited for input, if known.
    """

    def __init__(self, is_first=True):
        self.is_first = is_first
        self.began = time.perf_counter()
        self.first_step = None
        self.groups = []
        self.group_steps = None
        self.waits = []

    def run(self, take, rounds, agree=round, warm_up=0.0):
        """Times the first step, then warms up, then times groups of steps.

        Args:
          take: function of a number of steps. It runs them to their end, and
            returns the seconds that it waited for input, or None.
          rounds: number of groups.
          agree: maps a number to an integer that is the same on all workers.
          warm_up: minimum duration of the warm-up in seconds.
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
        """Returns the results, as values for JSON.

        Args:
          batch_size: number of images in a step.
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
                **_percentiles(images / seconds),
            },
            "step_seconds": _percentiles(seconds / self.group_steps),
            "first_step_seconds": self.first_step,
            "input_wait": sum(self.waits) / total if self.waits else None,
        }


class Limits(NamedTuple):
    """Peak rates of a machine, per second.

    `flops` are operations of matrix products, where a multiply-add counts as
    two; `bytes` are bytes that are read from or written to memory.
    """

    flops: float
    bytes: float

    def times(self, factor):
        """Returns the limits of several equal machines together."""
        return Limits(self.flops * factor, self.bytes * factor)


def measure_flops(dtype):
    """Measures the peak rate of matrix products, in operations per second.

    The square matrices grow until a product takes long enough.

    Args:
      dtype: dtype of the matrices.
    """
    size, best = 512, 0.0
    while size < LARGEST_MATRIX:
        size *= 2
        seconds = _seconds_of_product(size, dtype)
        best = max(best, 2 * size**3 / seconds)
        if seconds > SECONDS_PER_MEASUREMENT:
            break
    return best


def measure_bytes():
    """Measures the peak memory bandwidth, in bytes per second.

    The result is the better of an in-place sum (two reads, one write) and of a
    maximum (one read).
    """
    count = BYTES[_device()] // 4
    target, ones = tf.Variable(tf.zeros(count)), tf.ones(count)

    def add(number, done):
        target.assign_add(ones)
        return target.sparse_read([0])[0]

    def find_largest(number, largest):
        # The slice differs each time, or TensorFlow would compute it once.
        # Its offset is a multiple of 64 bytes, which avoids a copy.
        return largest + tf.reduce_max(ones[16 * number :])

    return max(
        3 * 4 * count / _best_seconds(add, tf.constant(0.0)),
        4 * count / _best_seconds(find_largest, tf.constant(0.0)),
    )


def describe_host():
    """Returns {"processor", "cores", "features", "system"} for JSON."""
    cpuinfo = read_cpuinfo()
    name = re.search(r"model name\s*: (.+)", cpuinfo)
    words = set(cpuinfo.split())
    return {
        "processor": name[1] if name else platform.machine(),
        "cores": count_cores(),
        "features": [feature for feature in FEATURES if feature in words],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*names):
    """Returns {library: version} of the installed libraries."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def process_age():
    """Returns the seconds since the process started; None without /proc."""
    try:
        # The fields follow the process name, which may contain brackets.
        text = pathlib.Path("/proc/self/stat").read_text()
        ticks = int(text.rpartition(")")[2].split()[19])
        began = ticks / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        return None


def peak_memory():
    """Returns the peak memory of the process in bytes; None without /proc."""
    try:
        # Not ru_maxrss, which a process inherits from its parent.
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


def gpu_names():
    """Returns the names of the GPUs."""
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details
    return [details(gpu).get("device_name", gpu.name) for gpu in gpus]


def peak_device_memory():
    """Returns the peak memory of a GPU in bytes; None without GPUs."""
    info = tf.config.experimental.get_memory_info
    peaks = [
        info(device.name.removeprefix("/device:"))["peak"]
        for device in tf.config.list_logical_devices("GPU")
    ]
    return max(peaks, default=None)


def _seconds_of_product(size, dtype):
    # Random values, because zeros take less power. Products keep their scale.
    left, right = (
        tf.cast(tf.random.normal([size, size], stddev=size**-0.5), dtype)
        for _ in range(2)
    )

    # Each product depends on the previous one, or only one would be computed.
    return _best_seconds(lambda number, product: product @ right, left)


def _best_seconds(work, value):
    """Returns the seconds of one repetition.

    Args:
      work: maps (the number of the repetition, a tensor) to the next tensor.
      value: the first tensor.
    """

    @tf.function(autograph=False)
    def repeat(times):
        _, result = tf.while_loop(
            lambda number, _: number < times,
            lambda number, result: (number + 1, work(number, result)),
            [0, value],
            parallel_iterations=1,
        )
        # A single number is enough to wait for the result.
        return tf.reshape(result, [-1])[0]

    def timed(times):
        began = time.perf_counter()
        repeat(tf.constant(times)).numpy()
        return time.perf_counter() - began

    timed(1)
    # Many repetitions in a call make its overhead negligible.
    times = max(round(SECONDS_PER_MEASUREMENT / timed(1)), 1)
    return min(timed(times) for _ in range(REPETITIONS)) / times


def _percentiles(values):
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def _device():
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
