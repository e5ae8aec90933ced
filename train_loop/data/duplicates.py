"""Images that are exact duplicates of others."""

import contextlib
import hashlib
import math
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train_loop.console import passing_bar
from train_loop.data.check import INPUT_ERRORS, in_threads
from train_loop.data.split import Split

# How duplicates of an image may be distributed, the worst first.
KINDS = ("between splits", "between classes", "within a class")


class Duplicates(NamedTuple):
    """Examples of equal bytes.

    `groups` are int64 arrays of two numbers in the store or more; `unchecked`
    is how many images of the size of another one were not read for lack of
    time, of `candidates`.
    """

    groups: list
    unchecked: int
    candidates: int


class Member(NamedTuple):
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
        return int.from_bytes(
            hashlib.blake2b(content, digest_size=8).digest(), "little"
        )

    digests = in_threads(split, digest)
    bar = passing_bar(len(numbers), "image", "looking for duplicates")
    with bar, contextlib.closing(digests):
        while done < len(numbers) and clock() < stop:
            key = next(digests)
            if key is None:
                unreadable.append(done)
            else:
                keys[done] = key
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
        [example] = members(found.groups[:1], data)
        lines.append(
            f"{count:,} images to evaluate on are exact duplicates of images "
            f"to train on, such as {described(example)}. Results look better "
            "than they are; --mode=data lists all duplicates"
        )
    if found.unchecked:
        lines.append(
            f"{found.unchecked:,} of {found.candidates:,} images that have the "
            "size of one in the other split were not compared within "
            f"{seconds:g} s; --mode=data compares all"
        )
    return lines


def members(groups, data):
    """Returns the `Member`s of each of some groups.

    Args:
      groups: of `Duplicates`.
      data: the `Data` that these are of.
    """
    if not groups:
        return []
    store, numbers = data.train.store, np.concatenate(groups)
    found = np.empty(len(numbers), object)
    for name, split in data.splits.items():
        for place in np.flatnonzero(np.isin(numbers, split.indices)):
            label = None
            if store.labels is not None:
                label = data.class_names[store.labels[numbers[place]]]
            found[place] = Member(store.name(numbers[place]), name, label)
    ends = np.cumsum([len(group) for group in groups])
    return [part.tolist() for part in np.split(found, ends[:-1])]


def kind_of(group):
    """Returns how a group of `Member`s is distributed, one of `KINDS`."""
    if len({member.split for member in group}) > 1:
        return "between splits"
    if len({member.label for member in group}) > 1:
        return "between classes"
    return "within a class"


def described(group, count=3):
    """Returns some `Member`s in a line, of each split and class if possible."""
    first = {member[1:]: member for member in reversed(group)}
    shown = sorted(group, key=lambda member: first[member[1:]] is not member)
    texts = [
        f"{name} ({split}{'' if label is None else f', {label}'})"
        for name, split, label in shown[:count]
    ]
    others = len(group) - count
    return " = ".join(texts) + (f" and {others:,} more" if others > 0 else "")


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
    of_numbers = store.sizes[numbers]
    numbers = numbers[np.isin(of_numbers, sizes[counts > 1])]
    return numbers[np.argsort(store.sizes[numbers], kind="stable")]


def _is_a_file_each(store):
    # Of records, only the mean size is known.
    each_known = np.ndim(store.sizes) > 0
    return each_known and len(store.files) == store.num_examples
