"""Measures memory and time to open a folder of many images.

    python -m benchmarks.opening_folders [--images=1000000] [--classes=1000]

The images are hard links to a file of one byte in a temporary folder, because
opening does not read them. Their names have 20 letters, as in ImageNet.

open   seconds to list the images and to split them
bytes  peak memory growth of a new process per image, until the first batch of
       indices is read
"""

import multiprocessing
import os
import pathlib
import re
import tempfile
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("images", 1_000_000, "Number of images.", lower_bound=1)
flags.DEFINE_integer("classes", 1_000, "Number of folders.", lower_bound=2)
flags.DEFINE_string("folder", None, "Parent of the temporary files.")


def write(root, images, classes):
    """Writes CLASS/IMAGE with classes of equal size."""
    for label in range(classes):
        folder = pathlib.Path(root, f"n{label:08}")
        folder.mkdir()
        first = None
        for number in range(label, images, classes):
            path = f"{folder}/n{label:08}_{number:06}.JPEG"
            # Some file systems allow 65,000 links.
            if first is None or number // classes % 60_000 == 0:
                first = path
                pathlib.Path(path).write_bytes(b"x")
            else:
                os.link(first, path)


def measure(root):
    """Returns (seconds, bytes) to open a folder in this process."""
    import tensorflow as tf

    from train_loop.data.datasets import choose_splits, open_dataset

    # Imports on first use do not count.
    with tempfile.TemporaryDirectory() as small:
        write(small, 20, 2)
        first_numbers(choose_splits(open_dataset(small)), tf)
    # Resets the peak.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before, began = kib("VmRSS"), time.perf_counter()
    data = choose_splits(open_dataset(root))
    seconds = time.perf_counter() - began
    first_numbers(data, tf)
    return seconds, (kib("VmHWM") - before) * 1024


def first_numbers(data, tf):
    """Reads the first examples, but not their files."""
    for split in data.splits.values():
        count = tf.constant(min(8, split.num_examples), tf.int64)
        examples = split.read([0, 0], tf.constant(0, tf.int64), count)
        split.load(examples["image"][0])


def kib(key):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status)[1])


def main(_):
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as root:
        write(root, FLAGS.images, FLAGS.classes)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, size = pool.apply(measure, (root,))
    print(
        f"{FLAGS.images:,} images of {FLAGS.classes:,} classes: open "
        f"{seconds:.1f} s, {size / FLAGS.images:.0f} bytes per image"
    )


if __name__ == "__main__":
    app.run(main)
