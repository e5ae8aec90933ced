"""What is in a split, and which of its images are broken."""

import collections
import concurrent.futures
import contextlib
import json
import math
import os
import time

import numpy as np
import tensorflow as tf

from train_loop.console import passing_bar
from train_loop.data.decode import check_image
from train_loop.data.stores import READ_BUFFER_BYTES
from train_loop.errors import UserError, first_few, reason_of
from train_loop.workdir import read_json_lines, write_text

# What an image or a file that cannot be read raises.
INPUT_ERRORS = tf.errors.OpError
# Fewer images than this part of the mean class make a class a rare one.
RARE = 0.2
# How many classes are named in a warning or a summary.
FEW = 5


def broken_images(split, examples=None):
    """Yields what is wrong with each image in turn.

    Args:
      split: a `Split`.
      examples: dataset of what its `read` returns, one by one; by default of
        all examples, as stored.

    Yields:
      (number in the store, reason, or None where it can be decoded).
    """
    decode = tf.function(
        lambda image: check_image(split.load(image)), autograph=False
    )

    def examine(image, number):
        try:
            decode(image)
        except INPUT_ERRORS as error:
            return int(number), reason_of(error)
        return int(number), None

    yield from in_threads(split, examine, examples)


def in_threads(split, function, examples=None):
    """Yields what a function returns of each image and its number, in turn.

    Args:
      split: a `Split`.
      function: of an image of its `read` and an int64 scalar. An error in a
        data set would end it for all images.
      examples: see `broken_images`.
    """
    threads = os.cpu_count()
    examples = split.stored() if examples is None else examples
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        for batch in examples.batch(16 * threads).prefetch(1):
            yield from executor.map(function, batch["image"], batch["number"])


def explain(error, split, examples=None, seconds=math.inf):
    """Returns a UserError that names what a reading error comes from.

    Args:
      error: that was raised where the split was read.
      split: a `Split`.
      examples: see `broken_images`.
      seconds: how long the search may take.

    Returns:
      A `UserError`, or the error itself where all images can be read, and
      where it is of another kind.
    """
    if not isinstance(error, INPUT_ERRORS):
        return error
    deadline = time.monotonic() + seconds
    try:
        for number, reason in broken_images(split, examples):
            if reason is not None:
                return UserError(
                    f"{split.store.name(number)} cannot be decoded ({reason}); "
                    "mend it, or leave such images out with --skip_bad_images"
                )
            if time.monotonic() > deadline:
                return UserError(
                    f"an image cannot be decoded ({reason_of(error)}), and was "
                    f"not found within {seconds:g} s; --mode=data finds it"
                )
    except INPUT_ERRORS as other:
        path = _broken_record_file(split)
        if path is not None:
            return UserError(
                f"{path} is damaged ({reason_of(other)}); have the data set "
                "prepared again"
            )
    return error


@contextlib.contextmanager
def explained(split):
    """Lets what reads a split name what it cannot read; see `explain`."""
    try:
        yield
    except INPUT_ERRORS as error:
        raise explain(error, split) from error


def _broken_record_file(split):
    """Returns the first TFRecord file that cannot be read to its end."""
    for path in split.store.files:
        try:
            for _ in tf.data.TFRecordDataset(
                path, buffer_size=READ_BUFFER_BYTES
            ):
                pass
        except INPUT_ERRORS:
            return path
    return None


def find_broken(data, refused):
    """Returns a record for each image that is of no use.

    Args:
      data: a `Data`.
      refused: {path: reason} of files that are not even in its splits.
    """
    records = [
        {"split": None, "name": name, "reason": reason}
        for name, reason in refused.items()
    ]
    for name, split in data.splits.items():
        bar = passing_bar(split.num_examples, "image", f"checking {name}")
        with explained(split), bar:
            for number, reason in broken_images(split):
                bar.update(1)
                if reason is not None:
                    record = {"split": name, "number": number}
                    record["name"] = split.store.name(number)
                    records.append({**record, "reason": reason})
    return records


def find_broken_once(data, refused, path, workers):
    """Returns the same from a file, which is written where it is missing.

    Args:
      data: a `Data`.
      refused: see `find_broken`.
      path: of the file.
      workers: a `Workers`. Each looks through all images, for its files may be
        others' copies, and what is broken for one is of no use for all.
    """
    splits = data.splits.values()
    origin = {"searched": [split.origin(workers) for split in splits]}
    earlier = read_json_lines(path)
    if workers.all(earlier[:1] == [origin]):
        return earlier[1:]
    records = _broken_for_any(data, find_broken(data, refused), workers)
    with workers.in_turn():
        if read_json_lines(path) != [origin, *records]:
            lines = [json.dumps(line) + "\n" for line in (origin, *records)]
            write_text(path, "".join(lines))
    return records


def _broken_for_any(data, records, workers):
    """Returns the records of all workers; reasons are this one's."""
    if workers.count == 1:
        return records
    known = {record.get("number") for record in records}
    counts = [n in known for n in range(data.train.store.num_examples)]
    broken = np.flatnonzero(workers.sums(*counts))
    of_others = [
        {
            "split": name,
            "number": int(number),
            "name": split.store.name(number),
            "reason": "another worker cannot decode it",
        }
        for name, split in data.splits.items()
        for number in split.indices[np.isin(split.indices, broken)]
        if number not in known
    ]
    return records + of_others


def without_broken(data, records):
    """Returns the data without broken images; a split may end up empty."""
    numbers = [r["number"] for r in records if r["split"] is not None]
    return data.map(lambda _, split: split.without(numbers))


def check_not_empty(data):
    """Raises UserError where nothing but broken images was in a split."""
    for name, split in data.splits.items():
        if not split.num_examples:
            raise UserError(f"no image for {name} can be decoded")


def describe_left_out(data, records):
    """Tells how many images the data are without."""
    left = sum(split.num_examples for split in data.splits.values())
    return (
        f"Leaving out {len(records)} broken images of {left + len(records):,}"
    )


@tf.autograph.experimental.do_not_convert
def count_labels(split, name):
    """Returns {label: how many} of a split, however long it takes."""
    if split.labels is not None:
        labels, counts = np.unique(split.labels, return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))
    counts = collections.Counter()
    labels = split.stored().map(lambda example: example["label"])
    bar = passing_bar(split.num_examples, "image", f"counting {name}")
    with explained(split), bar:
        for batch in labels.batch(4096).as_numpy_iterator():
            counts.update(batch.tolist())
            bar.update(len(batch))
    return counts


def balance_warnings(counts, class_names):
    """Returns a line of text about each class with few images or none.

    Of many such classes, about the smallest; and how many others there are.

    Args:
      counts: {label: how many}.
      class_names: of all classes.
    """
    mean = sum(counts.values()) / len(class_names)
    labels = range(len(class_names))
    rare = [label for label in labels if counts.get(label, 0) < RARE * mean]
    rare.sort(key=lambda label: counts.get(label, 0))
    lines = [
        f"{class_names[label]} has {counts.get(label, 0)} images; the mean is "
        f"{mean:.0f}"
        for label in rare[:FEW]
    ]
    if rare[FEW:]:
        lines.append(
            f"{len(rare[FEW:]):,} other classes have less than {RARE:.0%} of "
            "the mean"
        )
    return lines


def describe_counts(counts, class_names):
    """Tells in a line what the smallest and the largest classes are.

    Args:
      counts: {label: how many}.
      class_names: of all classes.
    """
    labels = sorted(counts, key=lambda label: (counts[label], label))

    def told(labels):
        texts = [f"{class_names[n]} ({counts[n]:,})" for n in labels[:FEW]]
        return ", ".join(texts)

    empty = [name for n, name in enumerate(class_names) if not counts.get(n, 0)]
    line = f"smallest {told(labels)}; largest {told(labels[::-1])}"
    if empty:
        line += f"; {len(empty):,} empty: {first_few(empty)}"
    return line
