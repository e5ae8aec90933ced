"""Compares random access to ArrayRecord with windows of TFRecord files.

    pip install array_record
    python -m benchmarks.record_formats [--count=4000] [--window_mib=512]

TFDS writes both formats. On Linux, where alone this runs, TFDS installs
ArrayRecord too. The same examples, about 110 kB of noise and a label, are read
in shuffled order and parsed, but not decoded. The methods alternate, each in a
new process; the results are medians of all rounds.

TFRecord     as in a run: shuffles the files, cuts their sequence into windows,
             reads a window sequentially, shuffles it in memory, and prefetches
             the next one
ArrayRecord  reads the examples in any order, several tens in each call from
             TensorFlow's graph to Python

from start   seconds to the first batch of 256 of an epoch
from middle  the same for a run that resumes in the middle of an epoch
examples/s   over a whole epoch, including the wait for its first batch
CPU s        CPU seconds of all cores per 1,000 examples
MiB          peak memory growth of the process

Cold files are dropped from the page cache of this machine; the host of a
virtual machine may still cache them.
"""

import contextlib
import multiprocessing
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from train_loop.data.split import shuffled

FLAGS = flags.FLAGS
flags.DEFINE_integer("count", 4000, "Number of examples.", lower_bound=512)
flags.DEFINE_integer("files", 40, "Number of files.", lower_bound=1)
flags.DEFINE_integer("window_mib", 512, "Size of a window.", lower_bound=1)
flags.DEFINE_integer("per_call", 64, "Examples per call to Python.")
flags.DEFINE_integer("rounds", 3, "Measurements of each method.")
flags.DEFINE_string("folder", None, "Parent of the temporary files.")

BATCH_SIZE = 256
READ_BUFFER_BYTES = 2**23
FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
}
CACHES = ("cold", "warm")
SEED = (1, 2)


def array_record():
    """Returns the module and the reader class of ArrayRecord."""
    try:
        from array_record.python import array_record_data_source as source
        from array_record.python import array_record_module as module
    except ImportError:
        sys.exit(
            "error: ArrayRecord is not installed. Install it: pip install "
            "array_record."
        )
    return module, source.ArrayRecordDataSource


def write(folder, count, files):
    """Writes the same examples in both formats, as TFDS does.

    The label of an example is its index.

    Returns:
      {name of a method: [(path, number of examples)]}.
    """
    module, _ = array_record()
    random = np.random.default_rng(0)
    written = {name: [] for name in METHODS}
    for labels in np.array_split(np.arange(count), files):
        name = f"train-{len(written['TFRecord']):05}-of-{files:05}"
        paths = [str(folder / f"{name}.{each.lower()}") for each in METHODS]
        with contextlib.ExitStack() as stack:
            writers = [
                tf.io.TFRecordWriter(paths[0]),
                module.ArrayRecordWriter(paths[1], "group_size:1"),
            ]
            for writer in writers:
                stack.callback(writer.close)
            for label in labels:
                size = random.normal(110_000, 30_000)
                record = example(random.bytes(max(int(size), 10_000)), label)
                for writer in writers:
                    writer.write(record)
        for method, path in zip(METHODS, paths, strict=True):
            written[method].append((path, len(labels)))
    return written


def example(image, label):
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    features = tf.train.Features(feature=features)
    return tf.train.Example(features=features).SerializeToString()


def in_windows(files, start, window_mib, per_call):
    """Returns the examples of a shuffled epoch from TFRecord files.

    Args:
      files: [(path, number of examples)].
      start: position of the first example.
      window_mib: size of a window.
      per_call: unused.
    """
    del per_call
    paths, counts = zip(*files, strict=True)
    count = sum(counts)
    fraction = window_mib * 2**20 / sum(map(os.path.getsize, paths))
    window = min(round(fraction * count), count)
    order = shuffled(tf.range(len(files)), SEED, len(files))
    paths = tf.gather(tf.constant(paths), order)
    ends = tf.cumsum(tf.gather(tf.constant(counts, tf.int64), order))

    def read_file(path):
        return tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)

    @tf.autograph.experimental.do_not_convert
    def read_window(begin):
        size = tf.minimum(count - begin, window)
        first = tf.searchsorted(ends, [begin], side="right")[0]
        skipped = begin - tf.concat([[0], ends], axis=0)[first]
        examples = (
            tf.data.Dataset.from_tensor_slices(paths[first:])
            .flat_map(read_file)
            .skip(skipped)
            .take(size)
            .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(size)
            .get_single_element()
        )
        unread = tf.maximum(start - begin, 0)
        positions = shuffled(tf.range(size), SEED, size)[unread:]
        return {k: tf.gather(v, positions) for k, v in examples.items()}

    begins = tf.data.Dataset.range(start // window * window, count, window)
    return begins.map(read_window).prefetch(1).unbatch()


def at_random(files, start, window_mib, per_call):
    """Returns the examples of a shuffled epoch from ArrayRecord files.

    Args:
      files: [(path, number of examples)].
      start: position of the first example.
      window_mib: unused.
      per_call: number of examples per call to Python.
    """
    del window_mib
    _, data_source = array_record()
    # The lengths, which TFDS knows, avoid opening all files in advance. The
    # reader uses random access by default, without prefetching.
    source = data_source([f"{path}[0:{length}]" for path, length in files])

    def read(indices):
        return np.array(source.__getitems__(indices), object)

    def read_some(positions):
        indices = shuffled(positions, SEED, len(source))
        records = tf.numpy_function(read, [indices], tf.string)
        return parse(tf.ensure_shape(records, [None]))

    return (
        tf.data.Dataset.range(start, len(source))
        .batch(per_call)
        .map(read_some, num_parallel_calls=tf.data.AUTOTUNE)
        .unbatch()
    )


METHODS = {"TFRecord": in_windows, "ArrayRecord": at_random}


def parse(records):
    if records.shape.rank:
        return tf.io.parse_example(records, FEATURES)
    return tf.io.parse_single_example(records, FEATURES)


def measure(method, files, start, window_mib, per_call, whole):
    """Reads in this process; returns {column: number}.

    Args:
      method: a key of `METHODS`.
      files: [(path, number of examples)].
      start: position of the first example.
      window_mib: size of a window.
      per_call: number of examples per call to Python.
      whole: whether to read the whole epoch, not only the first batch.
    """
    # Excludes one-time initialization of TensorFlow.
    list(tf.data.Dataset.range(2).batch(2))
    memory, seconds, processor = peak_mib(), time.perf_counter(), cpu_seconds()
    examples = METHODS[method](files, start, window_mib, per_call)
    options = tf.data.Options()
    options.deterministic = True
    batches = iter(
        examples.batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
    labels = [next(batches)["label"].numpy()]
    first = time.perf_counter() - seconds
    if whole:
        labels += [batch["label"].numpy() for batch in batches]
    seconds = time.perf_counter() - seconds
    labels = np.concatenate(labels)
    assert len(np.unique(labels)) == len(labels)
    assert not whole or len(labels) == sum(count for _, count in files)
    return {
        "first": first,
        "rate": len(labels) / seconds,
        "processor": 1000 * (cpu_seconds() - processor) / len(labels),
        "memory": peak_mib() - memory,
    }


def peak_mib():
    # Not ru_maxrss, which a process inherits from its parent.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def cpu_seconds():
    times = os.times()
    return times.user + times.system


def set_cache(cache, files):
    """Makes files cold or warm, without privileges and for these files only."""
    for path, _ in files:
        with open(path, "rb") as file:
            if cache == "warm":
                while file.read(2**20):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_new_process(*arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def main(_):
    array_record()
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        files = write(pathlib.Path(folder), FLAGS.count, FLAGS.files)
        print(
            f"{FLAGS.count} examples in {FLAGS.files} files, windows of "
            f"{FLAGS.window_mib} MiB, {FLAGS.per_call} examples per call, "
            f"{os.cpu_count()} cores",
            flush=True,
        )
        for method, written in files.items():
            size = sum(os.path.getsize(path) for path, _ in written)
            print(f"{method:11} {size / 1e6:.1f} MB on disk")
        compare(files)


def compare(files):
    """Prints the results of each method, and the ratios of the two."""
    rows = {(cache, method): [] for cache in CACHES for method in METHODS}
    for number in range(FLAGS.rounds):
        for cache, method in rows:
            reading = FLAGS.window_mib, FLAGS.per_call
            set_cache(cache, files[method])
            row = in_new_process(method, files[method], 0, *reading, True)
            set_cache(cache, files[method])
            middle = FLAGS.count // 2
            resumed = in_new_process(
                method, files[method], middle, *reading, False
            )
            rows[cache, method].append({**row, "middle": resumed["first"]})
        print(f"round {number + 1} of {FLAGS.rounds}", flush=True)
    print("                  from start  from middle  examples/s  CPU s   MiB")
    for cache in CACHES:
        medians = {}
        for method in METHODS:
            measured = rows[cache, method]
            medians[method] = median = {
                name: statistics.median(row[name] for row in measured)
                for name in measured[0]
            }
            print(
                f"{cache}  {method:11} {median['first']:10.2f} s "
                f"{median['middle']:10.2f} s {median['rate']:11.0f} "
                f"{median['processor']:6.2f} {median['memory']:5.0f}"
            )
        ratios = {
            name: value / medians["ArrayRecord"][name]
            for name, value in medians["TFRecord"].items()
        }
        print(
            f"{cache}  {'ratio':11} {ratios['first']:12.2f} "
            f"{ratios['middle']:12.2f} {ratios['rate']:11.2f} "
            f"{ratios['processor']:6.2f} {ratios['memory']:5.2f}"
        )


if __name__ == "__main__":
    app.run(main)
