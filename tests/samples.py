"""Small splits, image folders and image files, and readers of run folders."""

import collections
import concurrent.futures
import io
import json
import threading

import h5py
import numpy as np
import PIL.Image
import tensorflow as tf

from train_loop import Settings
from train_loop.data.split import MemoryStore, Split
from train_loop.data.tfds import RecordStore
from train_loop.training.workers import Workers

# Tracing takes most of the time of a short run. These arguments make
# `resnet_tiny` even smaller, here and in programs that start with `SHRINK`.
SMALL_NET = {"block": "basic", "stage_sizes": (1,), "width": 8}
SHRINK = f"""
from train_loop import process
process.import_tensorflow()
from resnet_layers import VARIANTS
VARIANTS["resnet_tiny"].arguments.update({SMALL_NET})
"""

# A run of a few seconds, on any images.
SMALL_FLAGS = (
    "--model=resnet_tiny",
    "--image_size=16",
    "--batch_size=6",
    "--strategy=one_device",
    "--report_every=1",
)


# A single worker.
ALONE = Workers(tf.distribute.get_strategy())


class WorkersInThreads(Workers):
    """One of several workers, each a thread of a test."""

    def __init__(self, number, barrier):
        self.number, self.count, self.shared = number, barrier.parties, barrier

    def sums(self, *numbers):
        self.shared.numbers[self.number] = numbers
        self.shared.wait(timeout=60)
        columns = zip(*self.shared.numbers.values(), strict=True)
        sums = [float(sum(column)) for column in columns]
        # All workers read these numbers before one writes the next.
        self.shared.wait(timeout=60)
        return sums


def together(function, count=2):
    """Calls a function of a `Workers` in several workers at once."""
    barrier = threading.Barrier(count)
    barrier.numbers = {}
    with concurrent.futures.ThreadPoolExecutor(count) as executor:
        return [
            *executor.map(
                lambda number: function(WorkersInThreads(number, barrier)),
                range(count),
            )
        ]


# The same as `Settings`, without augmentation.
SMALL = Settings(
    model="resnet_tiny",
    image_size=16,
    batch_size=6,
    strategy="one_device",
    report_every=1,
    augment=(),
)


def indexed(count, **options):
    """Returns a split whose images are the number of the example as text."""
    numbers = np.arange(count)
    images = tf.constant(numbers.astype(str))
    return Split.of_all(MemoryStore(images, numbers, **options))


def records(count, folder):
    """Returns the same examples in windows of 7, from files of 5 records."""
    files, counts = [], []
    for first in range(0, count, 5):
        path = str(folder / f"{first}.tfrecord")
        numbers = range(first, min(first + 5, count))
        with tf.io.TFRecordWriter(path) as writer:
            for number in numbers:
                writer.write(str(number).encode())
        files.append(path)
        counts.append(len(numbers))

    def parse(record):
        return {
            "image": record,
            "label": tf.strings.to_number(record, tf.int64),
        }

    return Split.of_all(SmallWindows(files, counts, parse, 100 / count))


class SmallWindows(RecordStore):
    window = 7


# Name -> folder for files -> split of the numbers from 0 to 22.
SPLITS = {
    "memory": lambda folder: indexed(23),
    "records": lambda folder: records(23, folder),
}


def write_folder(root, counts, file_format="jpeg"):
    """Writes unique images with one color per class.

    Args:
      root: folder.
      counts: number of images by folder, such as {"train/cat": 3}.
      file_format: format and suffix of the files.
    """
    colors, written = {}, collections.Counter()
    for subfolder, count in counts.items():
        folder = root / subfolder
        folder.mkdir(parents=True)
        color = colors.setdefault(folder.name, 40 + 60 * len(colors))
        for number in range(count):
            height = 20 + written[folder.name]
            written[folder.name] += 1
            pixels = np.full((height, 24, 3), color, "uint8")
            PIL.Image.fromarray(pixels).save(
                folder / f"{number}.{file_format}", file_format
            )


def write_hand_signs(folder, train=12, test=6):
    """Writes train_signs.h5 and test_signs.h5 in the layout of hand signs."""
    random = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 6
        pixels = (
            random.integers(0, 40, (count, 64, 64, 3))
            + labels[:, None, None, None] * 40
        )
        with h5py.File(folder / f"{name}_signs.h5", "w") as file:
            file[f"{name}_set_x"] = pixels.astype("uint8")
            file[f"{name}_set_y"] = labels
            file["list_classes"] = np.arange(6)


def read_all(split):
    """Returns [(bytes of the file, label)] in the order of the split."""
    examples = [
        (split.load(example["image"]).numpy(), int(example["label"]))
        for example in split.stored()
    ]
    assert len(examples) == split.num_examples
    return examples


def broken_files():
    """Returns {name: bytes} of damaged images and of other files."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), "uint8")
    jpeg, png = encoded(pixels, "jpeg"), encoded(pixels, "png")
    return {
        "truncated.jpg": jpeg[:-500],
        "truncated.png": png[:-500],
        "corrupt.jpg": jpeg[:4] + jpeg[40:],
        "text.jpg": b"not an image at all",
        "text.gif": b"nor this",
        "short.png": b"\x89PNG",
        "empty.jpg": b"",
    }


def read_metrics(workdir):
    """Returns the metrics of a run without those that depend on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("images_per_second", None)
        record.pop("input_wait", None)
    return records


def read_checkpoint(workdir, step):
    """Returns {key: array} of the model and optimizer in a checkpoint."""
    reader = tf.train.load_checkpoint(str(workdir / f"checkpoints/ckpt-{step}"))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if key.startswith(("model/", "optimizer/"))
    }


def smooth_pixels(height=60, width=90, channels=3):
    """Returns a smooth uint8 image without repeated regions."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) for c in range(channels)]
    return np.uint8(np.stack(waves, -1) * 60 + 125)


def encoded(pixels, file_format, **options):
    """Returns the bytes of an image file."""
    file = io.BytesIO()
    image = PIL.Image.fromarray(pixels.squeeze())
    image.save(file, file_format, **options)
    return file.getvalue()
