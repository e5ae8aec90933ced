"""Checks of images: which are broken, which are duplicates, which are rare."""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train_loop.console import transient_bar
from train_loop.data.decode import check_image
from train_loop.data.split import Split
from train_loop.data.tfds import READ_BUFFER_BYTES
from train_loop.errors import UserError, first_few, reason_of
from train_loop.workdir import read_json_lines, write_text

# What an image or a file that cannot be read raises.
INPUT_ERRORS = tf.errors.OpError
# A class with less than this fraction of the mean number of images is rare.
RARE_CLASS = 0.2
# How many classes a warning or a summary reports.
MAX_CLASSES = 5
# How duplicates of an image may be distributed, the worst first.
DUPLICATE_KINDS = ("between splits", "between classes", "within a class")


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

    yield from _in_threads(split, examine, examples)


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


def find_broken(data, rejected):
    """Returns a record for each image that cannot be used.

    Args:
      data: a `Data`.
      rejected: {path: reason} of files that are not even in its splits.
    """
    records = [
        {"split": None, "name": name, "reason": reason}
        for name, reason in rejected.items()
    ]
    for name, split in data.splits.items():
        bar = transient_bar(split.num_examples, "image", f"checking {name}")
        with explained(split), bar:
            for number, reason in broken_images(split):
                bar.update(1)
                if reason is not None:
                    record = {"split": name, "number": number}
                    record["name"] = split.store.name(number)
                    records.append({**record, "reason": reason})
    return records


def find_broken_once(data, rejected, path, workers):
    """Returns the same from a file, which is written where it is missing.

    Args:
      data: a `Data`.
      rejected: see `find_broken`.
      path: of the file.
      workers: a `Workers`. Each looks through all images, for its files may be
        others' copies, and an image that is broken for one is skipped by all.
    """
    splits = data.splits.values()
    origin = {"searched": [split.origin(workers) for split in splits]}
    earlier = read_json_lines(path)
    if workers.all(earlier[:1] == [origin]):
        return earlier[1:]
    records = _broken_for_any(data, find_broken(data, rejected), workers)
    with workers.in_turn():
        if read_json_lines(path) != [origin, *records]:
            lines = [json.dumps(line) + "\n" for line in (origin, *records)]
            write_text(path, "".join(lines))
    return records


def without_broken(data, records):
    """Returns the data without broken images; a split may end up empty."""
    numbers = [r["number"] for r in records if r["split"] is not None]
    return data.map(lambda _, split: split.without(numbers))


def check_not_empty(data):
    """Raises UserError where nothing but broken images was in a split."""
    for name, split in data.splits.items():
        if not split.num_examples:
            raise UserError(f"no image for {name} can be decoded")


def describe_skipped(data, records):
    """Returns a line on how many images are skipped."""
    left = sum(split.num_examples for split in data.splits.values())
    count = len(records)
    return f"Leaving out {count} broken images of {left + count:,}"


class Duplicates(NamedTuple):
    """Examples of equal bytes.

    `groups` are int64 arrays of two numbers in the store or more; `unchecked`
    is how many images of the size of another one were not read for lack of
    time, of `candidates`.
    """

    groups: list
    unchecked: int
    candidates: int


class DuplicateImage(NamedTuple):
    """An image: its name, that of its split, and its class where known."""

    name: str
    split: str
    label: str | None


def find_duplicates(
    splits, between=False, seconds=math.inf, clock=time.monotonic
):
    """Finds images that are exact duplicates of others.

    Where each image is a file, only those of equal size are read.

    Args:
      splits: one or two `Split`s of a store that share no example.
      between: whether to look for duplicates in different splits only.
      seconds: after which to stop; small files are read first.
      clock: returns the time in seconds.

    Returns:
      `Duplicates`.
    """
    stop = clock() + seconds
    store = splits[0].store
    numbers = _candidates(store, splits, between)
    keys, done, unreadable = np.zeros(len(numbers), np.uint64), 0, []
    split = Split(store, numbers)
    load = tf.function(split.load, autograph=False)

    def digest(image, number):
        del number
        try:
            content = load(image).numpy()
        except INPUT_ERRORS:
            return None
        return hashlib.blake2b(content, digest_size=8).digest()

    digests = _in_threads(split, digest)
    bar = transient_bar(len(numbers), "image", "looking for duplicates")
    with bar, contextlib.closing(digests):
        while done < len(numbers) and clock() < stop:
            key = next(digests)
            if key is None:
                unreadable.append(done)
            else:
                keys[done] = int.from_bytes(key, "little")
            done += 1
            bar.update(1)
    places = np.delete(np.arange(done), unreadable)
    places = places[np.argsort(keys[places], kind="stable")]
    begins = np.flatnonzero(np.diff(keys[places])) + 1
    groups = [
        np.sort(numbers[group])
        for group in np.split(places, begins)
        if len(group) > 1
    ]
    if between:
        first = np.isin(numbers, splits[0].indices)
        first = set(numbers[first].tolist())
        groups = [g for g in groups if 0 < len(first & {*g.tolist()}) < len(g)]
    groups.sort(key=lambda group: group[0])
    return Duplicates(groups, len(numbers) - done, len(numbers))


def leak_warnings(data, seconds, clock=time.monotonic):
    """Returns lines on images to evaluate on that are trained on as well.

    Args:
      data: a `Data`.
      seconds: how long to look for them.
      clock: see `find_duplicates`.
    """
    if data.evaluation is None or not _is_a_file_each(data.train.store):
        return []
    found = find_duplicates([*data.splits.values()], True, seconds, clock)
    lines = []
    if found.groups:
        numbers = np.concatenate(found.groups)
        count = np.isin(data.evaluation.indices, numbers).sum()
        [example] = group_members(found.groups[:1], data)
        lines.append(
            f"{count:,} images to evaluate on are exact duplicates of images "
            f"to train on, such as {describe_group(example)}. Results look "
            "better than they are; --mode=data lists all duplicates"
        )
    if found.unchecked:
        lines.append(
            f"{found.unchecked:,} of {found.candidates:,} images that have the "
            "size of one in the other split were not compared within "
            f"{seconds:g} s; --mode=data compares all"
        )
    return lines


def group_members(groups, data):
    """Returns the `DuplicateImage`s of each group of `Duplicates` of `Data`."""
    if not groups:
        return []
    store, numbers = data.train.store, np.concatenate(groups)
    found = np.empty(len(numbers), object)
    for name, split in data.splits.items():
        for place in np.flatnonzero(np.isin(numbers, split.indices)):
            label = None
            if store.labels is not None:
                label = data.class_names[store.labels[numbers[place]]]
            found[place] = DuplicateImage(
                store.name(numbers[place]), name, label
            )
    ends = np.cumsum([len(group) for group in groups])
    return [part.tolist() for part in np.split(found, ends[:-1])]


def kind_of_group(group):
    """Returns which of `DUPLICATE_KINDS` a group is."""
    if len({member.split for member in group}) > 1:
        return "between splits"
    if len({member.label for member in group}) > 1:
        return "between classes"
    return "within a class"


def describe_group(group, count=3):
    """Returns a line on some images of a group, one of each split and class."""
    first = {member[1:]: member for member in reversed(group)}
    shown = sorted(group, key=lambda member: first[member[1:]] is not member)
    texts = [
        f"{name} ({split}{'' if label is None else f', {label}'})"
        for name, split, label in shown[:count]
    ]
    others = len(group) - count
    return " = ".join(texts) + (f" and {others:,} more" if others > 0 else "")


@tf.autograph.experimental.do_not_convert
def count_labels(split, name):
    """Returns {label: how many} of a split, however long it takes."""
    if split.labels is not None:
        labels, counts = np.unique(split.labels, return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))
    counts = collections.Counter()
    labels = split.stored().map(lambda example: example["label"])
    bar = transient_bar(split.num_examples, "image", f"counting {name}")
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
    rare = [
        label for label in labels if counts.get(label, 0) < RARE_CLASS * mean
    ]
    rare.sort(key=lambda label: counts.get(label, 0))
    lines = [
        f"{class_names[label]} has {counts.get(label, 0)} images; the mean is "
        f"{mean:.0f}"
        for label in rare
    ]
    others = len(rare) - MAX_CLASSES
    if others > 0:
        lines[MAX_CLASSES:] = [
            f"{others:,} other classes have less than {RARE_CLASS:.0%} of the "
            "mean"
        ]
    return lines


def describe_counts(counts, class_names):
    """Returns a line on the smallest and the largest classes.

    Arguments are those of `balance_warnings`.
    """
    labels = sorted(counts, key=lambda label: (counts[label], label))

    def listed(labels):
        texts = [
            f"{class_names[n]} ({counts[n]:,})" for n in labels[:MAX_CLASSES]
        ]
        return ", ".join(texts)

    empty = [name for n, name in enumerate(class_names) if not counts.get(n, 0)]
    line = f"smallest {listed(labels)}; largest {listed(labels[::-1])}"
    if empty:
        line += f"; {len(empty):,} empty: {first_few(empty)}"
    return line


def _in_threads(split, function, examples=None):
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


def _broken_record_file(split):
    """Returns the first TFRecord file that cannot be read to its end."""
    for path in split.store.files:
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        try:
            for _ in records:
                pass
        except INPUT_ERRORS:
            return path
    return None


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


def _candidates(store, splits, between):
    """Returns the numbers of images that may have a duplicate.

    Of files, those with the size of another one, small ones first.
    """
    numbers = np.concatenate([split.indices for split in splits])
    if not _is_a_file_each(store):
        return numbers
    if between:
        sizes = [np.unique(store.sizes[split.indices]) for split in splits]
        sizes = np.concatenate(sizes)
    else:
        sizes = store.sizes[numbers]
    sizes, counts = np.unique(sizes, return_counts=True)
    numbers = numbers[np.isin(store.sizes[numbers], sizes[counts > 1])]
    return numbers[np.argsort(store.sizes[numbers], kind="stable")]


def _is_a_file_each(store):
    # Of records, only the mean size is known.
    return np.ndim(store.sizes) and len(store.files) == store.num_examples
