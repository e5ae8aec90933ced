"""Checks of images: broken files, duplicates and rare classes."""

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

# Reading a broken image or file raises one of these.
INPUT_ERRORS = tf.errors.OpError
# A class with less than this fraction of the mean number of images is rare.
RARE_CLASS = 0.2
# Number of classes in a warning or a summary.
MAX_CLASSES = 5
# Kinds of groups of duplicates, the worst first.
DUPLICATE_KINDS = ("between splits", "between classes", "within a class")


def broken_images(split, examples=None):
    """Decodes each image, and yields the reason for a failure.

    Args:
      split: a `Split`.
      examples: dataset of single examples of `Split.read`; by default all, in
        the order of the split.

    Yields:
      (number in the store, reason; None if the image can be decoded).
    """
    decode = tf.function(
        lambda image: check_image(split.load(image)), autograph=False
    )

    def check(image, number):
        try:
            decode(image)
        except INPUT_ERRORS as error:
            return int(number), reason_of(error)
        return int(number), None

    yield from _in_threads(split, check, examples)


def explain(error, split, examples=None, seconds=math.inf):
    """Returns a UserError with the image or file that caused a read error.

    Args:
      error: exception that reading the split raised.
      split: a `Split`.
      examples: see `broken_images`.
      seconds: time limit of the search.

    Returns:
      A `UserError`; or `error` itself if all images can be read or it is not
      one of `INPUT_ERRORS`.
    """
    if not isinstance(error, INPUT_ERRORS):
        return error
    deadline = time.monotonic() + seconds
    try:
        for number, reason in broken_images(split, examples):
            if reason is not None:
                return UserError(
                    f"{split.store.name(number)}: cannot be decoded "
                    f"({reason}). Fix the image, or pass --skip_bad_images."
                )
            if time.monotonic() > deadline:
                return UserError(
                    f"--dataset: an image cannot be decoded "
                    f"({reason_of(error)}), and was not found within "
                    f"{seconds:g} s. Find it with --mode=data."
                )
    except INPUT_ERRORS as other:
        path = _broken_record_file(split)
        if path is not None:
            return UserError(
                f"{path}: damaged ({reason_of(other)}). Remove the folder, and "
                "prepare the data set again."
            )
    return error


@contextlib.contextmanager
def explained(split):
    """Replaces errors from reading a split; see `explain`."""
    try:
        yield
    except INPUT_ERRORS as error:
        raise explain(error, split) from error


def find_broken(data, rejected):
    """Returns a record for each image that cannot be used.

    Args:
      data: a `Data`.
      rejected: {path: reason} of files that are not in its splits.

    Returns:
      A list of {"split", "number", "name", "reason"}; rejected files have the
      split None and no number.
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
    """Returns the records of `find_broken`, cached in a file.

    Args:
      data: a `Data`.
      rejected: see `find_broken`.
      path: path of the file. If it is missing or outdated, it is written.
      workers: a `Workers`. Each checks all images, because it can have copies
        of its own. All of them skip an image that is broken for one.
    """
    splits = data.splits.values()
    origin = {"searched": [split.origin(workers) for split in splits]}
    cached = read_json_lines(path)
    if workers.all(cached[:1] == [origin]):
        return cached[1:]
    records = _broken_for_any(data, find_broken(data, rejected), workers)
    with workers.in_turn():
        if read_json_lines(path) != [origin, *records]:
            lines = [json.dumps(line) + "\n" for line in (origin, *records)]
            write_text(path, "".join(lines))
    return records


def without_broken(data, records):
    """Returns the data without broken images; a split can become empty."""
    numbers = [r["number"] for r in records if r["split"] is not None]
    return data.map(lambda _, split: split.without(numbers))


def check_not_empty(data):
    """Raises UserError if all images of a split were broken."""
    for name, split in data.splits.items():
        if not split.num_examples:
            raise UserError(
                f"--skip_bad_images: no image of the {name} split can be "
                "decoded. Fix the images, or pass another split."
            )


def describe_skipped(data, records):
    """Returns a line with the number of skipped images."""
    left = sum(split.num_examples for split in data.splits.values())
    count = len(records)
    return f"Skipping {count} broken images of {left + count:,}"


class Duplicates(NamedTuple):
    """Groups of images with equal bytes.

    Attributes:
      groups: list of int64 arrays, two or more numbers in the store each.
      unchecked: number of candidates that the time limit left unread.
      candidates: number of images that could have a duplicate.
    """

    groups: list
    unchecked: int
    candidates: int


class DuplicateImage(NamedTuple):
    """An image in a group of duplicates; `label` is None if unknown."""

    name: str
    split: str
    label: str | None


def find_duplicates(
    splits, between=False, seconds=math.inf, clock=time.monotonic
):
    """Finds images that are exact duplicates of others.

    If each image is a file, only files with equal sizes are read.

    Args:
      splits: one or two `Split`s of a store without common examples.
      between: whether to find only duplicates in different splits.
      seconds: time limit. Small files are read first.
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
    order = np.delete(np.arange(done), unreadable)
    order = order[np.argsort(keys[order], kind="stable")]
    begins = np.flatnonzero(np.diff(keys[order])) + 1
    groups = [
        np.sort(numbers[group])
        for group in np.split(order, begins)
        if len(group) > 1
    ]
    if between:
        first = np.isin(numbers, splits[0].indices)
        first = set(numbers[first].tolist())
        groups = [g for g in groups if 0 < len(first & {*g.tolist()}) < len(g)]
    groups.sort(key=lambda group: group[0])
    return Duplicates(groups, len(numbers) - done, len(numbers))


def leak_warnings(data, seconds, clock=time.monotonic):
    """Returns warnings about evaluation images that are training images too.

    Args:
      data: a `Data`.
      seconds: time limit of the search.
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
            f"eval: {count:,} images are exact duplicates of training images, "
            f"such as {describe_group(example)}. The metrics look better than "
            "they are. List all duplicates with --mode=data."
        )
    if found.unchecked:
        lines.append(
            f"eval: {found.unchecked:,} of {found.candidates:,} possible "
            f"duplicates were not compared within {seconds:g} s. Compare all "
            "with --mode=data."
        )
    return lines


def group_members(groups, data):
    """Returns the `DuplicateImage`s of each group of `Duplicates`."""
    if not groups:
        return []
    store, numbers = data.train.store, np.concatenate(groups)
    found = np.empty(len(numbers), object)
    for name, split in data.splits.items():
        for index in np.flatnonzero(np.isin(numbers, split.indices)):
            label = None
            if store.labels is not None:
                label = data.class_names[store.labels[numbers[index]]]
            found[index] = DuplicateImage(
                store.name(numbers[index]), name, label
            )
    ends = np.cumsum([len(group) for group in groups])
    return [part.tolist() for part in np.split(found, ends[:-1])]


def kind_of_group(group):
    """Returns the kind of a group, one of `DUPLICATE_KINDS`."""
    if len({member.split for member in group}) > 1:
        return "between splits"
    if len({member.label for member in group}) > 1:
        return "between classes"
    return "within a class"


def describe_group(group, count=3):
    """Returns a line with images of a group, first one per split and class."""
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
    """Returns {label: count} of a split; reads all examples if necessary."""
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
    """Returns a warning for each class with few or no images.

    For many rare classes: the smallest, and the number of the others.

    Args:
      counts: {label: count}.
      class_names: names of all classes.
    """
    mean = sum(counts.values()) / len(class_names)
    labels = range(len(class_names))
    rare = [
        label for label in labels if counts.get(label, 0) < RARE_CLASS * mean
    ]
    rare.sort(key=lambda label: counts.get(label, 0))
    lines = [
        f"{class_names[label]} has {counts.get(label, 0)} images; the mean is "
        f"{mean:.0f}."
        for label in rare
    ]
    others = len(rare) - MAX_CLASSES
    if others > 0:
        lines[MAX_CLASSES:] = [
            f"{others:,} other classes have less than {RARE_CLASS:.0%} of the "
            "mean."
        ]
    return lines


def describe_counts(counts, class_names):
    """Returns a line with the smallest and the largest classes.

    See `balance_warnings` for the arguments.
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
    """Yields the results of a function for each image, in order.

    Not a `tf.data` map, which would end at the first error.

    Args:
      split: a `Split`.
      function: maps (image of `Split.read`, int64 number) to a result.
      examples: see `broken_images`.
    """
    threads = os.cpu_count()
    examples = split.stored() if examples is None else examples
    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        for batch in examples.batch(16 * threads).prefetch(1):
            yield from executor.map(function, batch["image"], batch["number"])


def _broken_record_file(split):
    """Returns the first damaged TFRecord file, or None."""
    for path in split.store.files:
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        try:
            for _ in records:
                pass
        except INPUT_ERRORS:
            return path
    return None


def _broken_for_any(data, records, workers):
    """Returns the records of all workers, with the reasons of this one."""
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
    """Returns the numbers of images that can have a duplicate.

    Files need another file of equal size. Small files come first.
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
    # For records, only the mean size is known.
    return np.ndim(store.sizes) and len(store.files) == store.num_examples
