"""Measures the input pipeline, compared with other implementations.

    python -m benchmarks.input_pipeline [--pictures=FOLDER] [--rounds=5]

Each implementation prepares the same JPEGs for training, from memory and on
all cores: random resized crop to 224 x 224, flip, normalization, batches of
64. The implementations alternate; the results are medians of all rounds.

whole pipeline     all that a run does on the host, including order and seeds
and normalized     the same, and the normalization, which a run does on a device
bare               decode_and_crop_jpeg and resize alone
decode, then crop  as with images that TFDS has decoded
Pillow             image by image in threads, as in torchvision
"""

import concurrent.futures
import io
import os
import pathlib
import statistics
import sys
import time

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import app, flags

from benchmarks.photos import parts_of_photos
from resnet_layers import NORMALIZATIONS, Preprocessing
from resnet_layers.images import normalize
from train_loop.data import batches
from train_loop.data.decode import random_window
from train_loop.data.split import MemoryStore, Split
from train_loop.data.transforms import Transforms, parse_operations

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "pictures",
    None,
    "Folder with JPEGs, searched recursively. Default: 1,000 crops of the two "
    "photos of scikit-learn, of ImageNet's size.",
)
flags.DEFINE_integer("count", 1000, "Number of images.", lower_bound=64)
flags.DEFINE_integer("rounds", 5, "Measurements of each implementation.")

SIZE = 224
NORMALIZATION = NORMALIZATIONS["imagenet"]
BATCH_SIZE = 64


def read_images():
    """Returns the bytes of the JPEGs."""
    if FLAGS.pictures:
        images = read_jpegs(FLAGS.pictures)
    else:
        images = list(parts_of_photos(FLAGS.count))
    return [images[i % len(images)] for i in range(FLAGS.count)]


def read_jpegs(folder):
    """Returns the bytes of all JPEGs in a folder and its subfolders.

    JPEGs are recognized by content, because ImageNet has a PNG file named
    .JPEG.

    Raises:
      SystemExit: there are no JPEGs.
    """
    images = [
        path.read_bytes()
        for path in sorted(pathlib.Path(folder).expanduser().rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()
    ]
    jpegs = [image for image in images if image.startswith(b"\xff\xd8")]
    if not jpegs:
        sys.exit(
            f"error: --pictures={folder}: no JPEG found. Pass a folder with "
            ".jpg, .jpeg or .JPEG files."
        )
    if len(jpegs) < len(images):
        print(f"Skipping {len(images) - len(jpegs)} files that are not JPEGs.")
    return jpegs


def whole_pipeline(images):
    """Returns an endless iterator over the batches of a run."""
    labels = np.zeros(len(images), np.int64)
    split = Split.of_all(MemoryStore(tf.constant(images), labels))
    preprocessing = Preprocessing(NORMALIZATION, SIZE, 0.875, "bilinear")
    transforms = Transforms(
        preprocessing, parse_operations("random_resized_crop,flip")
    )
    batching = batches.Batching(BATCH_SIZE)
    return iter(batches.training_batches(split, transforms, batching))


def and_normalized(images):
    """Yields the same batches, normalized."""
    normalized = tf.function(normalize)
    for batch, _ in whole_pipeline(images):
        yield normalized(batch, NORMALIZATION)


def window_of(shape):
    seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
    return random_window(shape, seed)


def bare(images):
    """Returns an iterator that only decodes and resizes."""

    def prepare(encoded):
        window = tf.stack(window_of(tf.io.extract_jpeg_shape(encoded)))
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        return tf.image.resize(image, [SIZE, SIZE])

    return _batches(images, prepare)


def decode_then_crop(images):
    """Returns an iterator that crops after decoding."""

    def prepare(encoded):
        image = tf.io.decode_jpeg(encoded, channels=3)
        image = tf.image.convert_image_dtype(image, tf.float32)
        top, left, height, width = window_of(tf.shape(image))
        image = image[top : top + height, left : left + width]
        image = tf.image.resize(image, [SIZE, SIZE])
        return tf.image.random_flip_left_right(image)

    return _batches(images, prepare)


def _batches(images, prepare):
    return iter(
        tf.data.Dataset.from_tensor_slices(images)
        .repeat()
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )


def pillow(images):
    """Yields batches from Pillow and NumPy, with a thread per core."""
    mean = np.float32(NORMALIZATION.mean)
    stddev = np.float32(NORMALIZATION.stddev)
    random = np.random.default_rng(0)

    def prepare(encoded, scale, ratio, x, y, flip):
        with PIL.Image.open(io.BytesIO(encoded)) as opened:
            image = opened.convert("RGB")
        area = scale * image.width * image.height
        width = min(round((area * ratio) ** 0.5), image.width)
        height = min(round((area / ratio) ** 0.5), image.height)
        left, top = x * (image.width - width), y * (image.height - height)
        box = (left, top, left + width, top + height)
        image = image.crop(box).resize((SIZE, SIZE), PIL.Image.BILINEAR)
        if flip:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return (np.asarray(image, np.float32) - mean) / stddev

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        while True:
            order = random.permutation(len(images))
            for first in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
                chosen = order[first : first + BATCH_SIZE]
                crops = executor.map(
                    prepare,
                    [images[index] for index in chosen],
                    random.uniform(0.08, 1, BATCH_SIZE),
                    np.exp(random.uniform(-0.28, 0.28, BATCH_SIZE)),
                    random.uniform(size=BATCH_SIZE),
                    random.uniform(size=BATCH_SIZE),
                    random.uniform(size=BATCH_SIZE) < 0.5,
                )
                yield np.stack(list(crops))


IMPLEMENTATIONS = {
    "whole pipeline": whole_pipeline,
    "and normalized": and_normalized,
    "bare": bare,
    "decode, then crop": decode_then_crop,
    "Pillow": pillow,
}


def main(_):
    images = read_images()
    kilobytes = statistics.mean(map(len, images)) / 1000
    print(f"{len(images)} JPEGs of {kilobytes:.0f} kB, {os.cpu_count()} cores")
    steps = -(-len(images) // BATCH_SIZE)
    rates = {name: [] for name in IMPLEMENTATIONS}
    for number in range(FLAGS.rounds):
        for name, make in IMPLEMENTATIONS.items():
            # Created for each measurement, because a data set would prefetch
            # during the measurement of another one.
            batches = make(images)
            for _ in range(3):
                next(batches)
            began = time.perf_counter()
            for _ in range(steps):
                next(batches)
            seconds = time.perf_counter() - began
            rates[name].append(steps * BATCH_SIZE / seconds)
            del batches
        print(f"round {number + 1} of {FLAGS.rounds}")
    own = statistics.median(rates["whole pipeline"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(
            f"{name:18} {rate:6.0f} images/s; speedup of the whole pipeline: "
            f"{own / rate:.2f}x"
        )


if __name__ == "__main__":
    app.run(main)
