"""Measures how fast images are read, beside other ways of reading them.

    python -m benchmarks.input_pipeline [--pictures=FOLDER] [--rounds=5]

Each way prepares the same JPEGs for training, from memory and on all cores:
random resized crop to 224 x 224, flip, normalisation, batches of 64. The ways
take turns, and the numbers are the medians of all rounds.

whole pipeline     what a run does on the host, order and seeds included
and normalised     that, and what a run leaves to the device, on the CPU
bare               decode_and_crop_jpeg and resize, nothing else
decode, then crop  as with images that TFDS has decoded
Pillow             one picture after the other, in threads, torchvision's way
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
from train_loop.data import batches
from train_loop.data.decode import random_window
from train_loop.data.split import MemoryStore, Split
from train_loop.data.transforms import Transforms, parse_operations
from train_loop.prediction.classifier import normalize

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "pictures",
    None,
    "Folder with JPEGs, also in folders below. Default: 1,000 parts of "
    "scikit-learn's two photos, of the size that ImageNet's have.",
)
flags.DEFINE_integer("count", 1000, "How many images to take.", lower_bound=64)
flags.DEFINE_integer("rounds", 5, "How often each way is measured.")

SIZE = 224
NORMALIZATION = NORMALIZATIONS["imagenet"]
BATCH_SIZE = 64


def read_images():
    """Returns the bytes of the JPEGs to measure with."""
    if FLAGS.pictures:
        images = read_jpegs(FLAGS.pictures)
    else:
        images = list(parts_of_photos(FLAGS.count))
    return [images[i % len(images)] for i in range(FLAGS.count)]


def read_jpegs(folder):
    """Returns the bytes of all JPEGs in a folder, also in folders below.

    By their contents: in ImageNet there is a PNG file that is called .JPEG.
    Ends the program with a line where there is none.
    """
    images = [
        path.read_bytes()
        for path in sorted(pathlib.Path(folder).expanduser().rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()
    ]
    jpegs = [image for image in images if image.startswith(b"\xff\xd8")]
    if not jpegs:
        sys.exit(
            f"error: there is no JPEG in {folder}, nor below it; name a folder "
            "with .jpg, .jpeg or .JPEG files"
        )
    if len(jpegs) < len(images):
        print(f"{len(images) - len(jpegs)} files are no JPEGs and left out")
    return jpegs


def whole_pipeline(images):
    """Returns an endless iterator over batches, made as a run makes them."""
    labels = np.zeros(len(images), np.int64)
    split = Split.of_all(MemoryStore(tf.constant(images), labels))
    preprocessing = Preprocessing(NORMALIZATION, SIZE, 0.875, "bilinear")
    transforms = Transforms(
        preprocessing, parse_operations("random_resized_crop,flip")
    )
    batching = batches.Batching(BATCH_SIZE)
    return iter(batches.training_batches(split, transforms, batching))


def and_normalized(images):
    """Returns the same, with what the model gets."""
    normalized = tf.function(normalize)
    for batch, _ in whole_pipeline(images):
        yield normalized(batch, NORMALIZATION)


def window_of(shape):
    seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
    return random_window(shape, seed)


def bare(images):
    """Returns the same of decoding and resizing alone."""

    def prepare(encoded):
        window = tf.stack(window_of(tf.io.extract_jpeg_shape(encoded)))
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        return tf.image.resize(image, [SIZE, SIZE])

    return _batches(images, prepare)


def decode_then_crop(images):
    """Returns the same of whole images, cropped when they are decoded."""

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
    """Returns the same of Pillow and NumPy, in a thread per core."""
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


WAYS = {
    "whole pipeline": whole_pipeline,
    "and normalised": and_normalized,
    "bare": bare,
    "decode, then crop": decode_then_crop,
    "Pillow": pillow,
}


def main(_):
    images = read_images()
    kilobytes = statistics.mean(map(len, images)) / 1000
    print(f"{len(images)} JPEGs of {kilobytes:.0f} kB, {os.cpu_count()} cores")
    steps = -(-len(images) // BATCH_SIZE)
    rates = {name: [] for name in WAYS}
    for number in range(FLAGS.rounds):
        for name, make in WAYS.items():
            # Made anew each time: a data set goes on reading ahead while
            # another one is measured.
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
            f"{name:18} {rate:6.0f} images/s; the whole pipeline is "
            f"{own / rate:.2f} times as fast"
        )


if __name__ == "__main__":
    app.run(main)
