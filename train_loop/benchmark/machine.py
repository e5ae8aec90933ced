"""The machine: its devices, their limits, and this process."""

import importlib.metadata
import os
import pathlib
import platform
import re
import time
from typing import NamedTuple

import tensorflow as tf

from train_loop.process import read_cpuinfo

# A measurement takes at least about this long.
SECONDS_PER_MEASUREMENT = 0.05
# How often; the best counts, as other work on the machine only slows it down.
REPETITIONS = 8
LARGEST_MATRIX = 8192
# More than caches hold.
BYTES = {"CPU": 2**28, "GPU": 2**30}
# Features of processors that make products fast, best first.
FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


class Limits(NamedTuple):
    """What a machine does in a second at most.

    `flops` are those of a matrix product, where a product and the sum with it
    are two; `bytes` are read or written in its memory.
    """

    flops: float
    bytes: float

    def times(self, factor):
        """Returns the limits of several such machines together."""
        return Limits(self.flops * factor, self.bytes * factor)


def measure_flops(dtype):
    """Returns how many floating-point operations products make in a second.

    Of square matrices, larger ones from time to time, until one takes long.

    Args:
      dtype: what is multiplied.
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
    """Returns how many bytes of memory are read and written in a second.

    The better one of a sum in place (two are read, one is written) and of a
    maximum (all are read).
    """
    count = BYTES[_device()] // 4
    target, ones = tf.Variable(tf.zeros(count)), tf.ones(count)

    def add(number, done):
        target.assign_add(ones)
        return target.sparse_read([0])[0]

    def find_largest(number, largest):
        # Another part each time, or it would be looked for once; where it
        # begins is a multiple of 64 bytes, so that it is not copied.
        return largest + tf.reduce_max(ones[16 * number :])

    return max(
        3 * 4 * count / _best_seconds(add, tf.constant(0.0)),
        4 * count / _best_seconds(find_largest, tf.constant(0.0)),
    )


def describe_host():
    """Returns {"processor", "cores", "features", "system"} as for JSON."""
    cpuinfo = read_cpuinfo()
    named = re.search(r"model name\s*: (.+)", cpuinfo)
    known = set(cpuinfo.split())
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count()
    return {
        "processor": named[1] if named else platform.machine(),
        "cores": cores,
        "features": [name for name in FEATURES if name in known],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*names):
    """Returns {library: version} of those that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def process_age():
    """Returns the seconds since the process started, before the interpreter.

    None on systems without /proc.
    """
    try:
        # Behind the name, which may hold anything, brackets too.
        text = pathlib.Path("/proc/self/stat").read_text()
        ticks = int(text.rpartition(")")[2].split()[19])
        began = ticks / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        return None


def peak_memory():
    """Returns the largest number of bytes of main memory of the process.

    None on systems without /proc.
    """
    try:
        # Not ru_maxrss: a process inherits that from the one that started it.
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
    """Returns the largest number of bytes on a GPU; None without GPUs."""
    info = tf.config.experimental.get_memory_info
    peaks = [
        info(device.name.removeprefix("/device:"))["peak"]
        for device in tf.config.list_logical_devices("GPU")
    ]
    return max(peaks, default=None)


def _seconds_of_product(size, dtype):
    # Random, as zeros take less power; and of a size that products keep.
    left, right = (
        tf.cast(tf.random.normal([size, size], stddev=size**-0.5), dtype)
        for _ in range(2)
    )

    # Each takes the one before, or they would be computed once.
    return _best_seconds(lambda number, product: product @ right, left)


def _best_seconds(work, value):
    """Returns the seconds of a single time.

    Args:
      work: maps (the number of the time, a tensor) to the tensor of the next
        time.
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
        # Enough to know that all is done.
        return tf.reshape(result, [-1])[0]

    def timed(times):
        began = time.perf_counter()
        repeat(tf.constant(times)).numpy()
        return time.perf_counter() - began

    timed(1)
    # From one time to several, what a call costs by itself falls out.
    times = max(round(SECONDS_PER_MEASUREMENT / timed(1)), 1)
    return min(timed(times) for _ in range(REPETITIONS)) / times


def _device():
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
