"""This file answers: what is in a split, and which pictures are broken?"""

import collections
import concurrent.futures
import os

import tensorflow as tf

# Fewer pictures than this part of the mean class make a class a rare one.
RARE = 0.2


def broken_pictures(examples, load, decode):
    """Yields what is wrong with each picture in turn.

    Args:
      examples: dataset of what a split's `read` returns, one by one.
      load: the split's own.
      decode: maps the bytes of a file to a tensor; raises where it cannot.

    Yields:
      (index, reason, or None where the picture can be decoded).
    """
    decode_loaded = tf.function(lambda image: decode(load(image)))

    def examine(image, index):
        try:
            decode_loaded(image)
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            return int(index), reason_of(error)
        return int(index), None

    # In threads, not in the data set: there, one error ends them all.
    threads = os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        for batch in examples.batch(16 * threads).prefetch(1):
            yield from executor.map(examine, batch["image"], batch["index"])


def reason_of(error):
    """Returns the first line of what TensorFlow says, without its own names."""
    if isinstance(error, UnicodeDecodeError):
        # It could not be told, because of the bytes that it quotes.
        return "Its beginning is not that of a picture."
    lines = [line for line in error.message.splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line.rpartition("}} ")[2].partition(" [Op:")[0].strip()


def broken_file(paths):
    """Returns the first TFRecord file that cannot be read to its end."""
    for path in paths:
        try:
            for _ in tf.data.TFRecordDataset(path, buffer_size=2**23):
                pass
        except tf.errors.OpError:
            return path
    return None


def count_labels(split):
    """Yields, after every few pictures, how many there are of each label."""
    counts = collections.Counter()
    labels = split.stored().map(lambda example: example["label"])
    for batch in labels.batch(4096).as_numpy_iterator():
        counts.update(batch.tolist())
        yield counts


def balance_warnings(counts, class_names):
    """Returns a line of text about each class with few pictures or none.

    Args:
      counts: {label: how many}.
      class_names: of all classes.
    """
    mean = sum(counts.values()) / len(class_names)
    return [
        f"{name} has {counts.get(label, 0)} pictures; the mean is {mean:.0f}"
        for label, name in enumerate(class_names)
        if counts.get(label, 0) < RARE * mean
    ]
