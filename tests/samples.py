"""Small splits, folders and files of pictures, and what runs leave behind."""

import io

import h5py
import numpy as np
import PIL.Image
import tensorflow as tf

from train_loop.splits import IndexedSplit, Piece, RecordSplit


def indexed(count, **options):
    """Returns examples whose picture is their number as text."""
    numbers = np.arange(count)
    return IndexedSplit(
        tf.constant(numbers.astype(str)), tf.constant(numbers), **options
    )


def records(count, folder):
    """Returns the same examples, in windows of 7, from files of 5."""
    pieces = []
    for first in range(0, count, 5):
        path = str(folder / f"{first}.tfrecord")
        numbers = range(first, min(first + 5, count))
        with tf.io.TFRecordWriter(path) as writer:
            for number in numbers:
                writer.write(str(number).encode())
        pieces.append(Piece(path, 0, len(numbers)))

    def parse(record):
        return {
            "image": record,
            "label": tf.strings.to_number(record, tf.int64),
        }

    return SmallWindows(pieces, parse, 100)


class SmallWindows(RecordSplit):
    window = 7


def write_folder(root, counts, file_format="jpeg"):
    """Writes pictures of one colour per class.

    Args:
      root: folder.
      counts: {"train/cat": how many} and so on.
      file_format: of the files, and their suffix.
    """
    colors = {}
    for place, count in counts.items():
        folder = root / place
        folder.mkdir(parents=True)
        color = colors.setdefault(folder.name, 40 + 60 * len(colors))
        for number in range(count):
            pixels = np.full((20 + number, 24, 3), color, "uint8")
            PIL.Image.fromarray(pixels).save(
                folder / f"{number}.{file_format}", file_format
            )


def write_hand_signs(folder, train=12, test=6):
    """Writes train_signs.h5 and test_signs.h5, as the hand signs come."""
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


def read_checkpoint(workdir, step):
    """Returns {key: array} of a run's model and optimizer."""
    reader = tf.train.load_checkpoint(str(workdir / f"checkpoints/ckpt-{step}"))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if key.startswith(("model/", "optimizer/"))
    }


def encoded(pixels, file_format, **options):
    """Returns the bytes of a picture's file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()
