"""A data set as it is stored, and what a run takes of it."""

import collections
import functools
import math
import unicodedata
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from sklearn.model_selection import StratifiedShuffleSplit

from train_loop.data.split import Split
from train_loop.errors import UserError, first_few

# How many names are reported that have several spellings.
FEW = 5
# What is evaluated on where --eval_split is not given: the first that exists.
EVALUATION_SPLITS = ("validation", "val", "test")


class Stored(NamedTuple):
    """A data set as it is stored.

    `splits` is {name: `Split`}, all of one store; `refused` {path: reason} of
    images that are there and cannot be used; `warnings` are lines of text,
    `hint` says where the data set may be if this is not it, and `fault` why no
    new run may use it, if that is so.
    """

    class_names: tuple
    splits: dict
    refused: dict = {}  # noqa: RUF012
    warnings: tuple = ()
    hint: str = ""
    fault: str = ""


class Data(NamedTuple):
    """What a run trains and evaluates on: two `Split`s.

    `evaluation` is None where nothing is evaluated on. `contents` is a value
    for JSON that tells these examples from others, even where some are left
    out later because they are broken; `note` says in words what was chosen
    where nobody did, or is empty. `fault` is that of `Stored`.
    """

    class_names: tuple
    train: Split
    evaluation: Split | None
    contents: dict
    note: str = ""
    fault: str = ""

    @property
    def splits(self):
        """{name: `Split`}, by the names that reports give them."""
        both = {"train": self.train, "eval": self.evaluation}
        return {
            name: split for name, split in both.items() if split is not None
        }

    def map(self, function):
        """Returns the data with `function(name, split)` of each split."""
        mapped = {n: function(n, split) for n, split in self.splits.items()}
        return self._replace(
            train=mapped["train"], evaluation=mapped.get("eval")
        )

    def difference(self, contents):
        """Returns in words what differs from earlier contents, or ""."""
        if self.contents == contents:
            return ""
        if self.contents["class_names"] != contents["class_names"]:
            return "the classes are others"
        counts = [
            {name: part["images"] for name, part in each["splits"].items()}
            for each in (contents, self.contents)
        ]
        if counts[0] != counts[1]:
            before, now = (
                " and ".join(f"{n:,} for {name}" for name, n in each.items())
                for each in counts
            )
            return f"there were {before}, and are {now}"
        return "names or labels are others"


def choose_splits(
    stored, train_split=None, eval_split=None, validation_fraction=0.2
):
    """Returns the `Data` that a run takes of a data set.

    Args:
      stored: a `Stored`. Its examples stand in an order that does not follow
        the classes, so that any slice of them is a fair one.
      train_split: what to train on, in TFDS's split language, such as
        "train[:90%]"; None for "train".
      eval_split: what to evaluate on; None for the split that exists for it,
        or else for a part of the training examples.
      validation_fraction: how large that part is; 0 for nothing to evaluate
        on. Where labels are known without reading every image, it has this
        part of each class.

    Raises:
      UserError: there is no such split, nothing in it, or something twice; or
        there is only one class.
    """
    if len(stored.class_names) < 2:
        raise UserError(
            f"there is only one class, {stored.class_names[0]}; training takes "
            "at least two, and a folder is train/CLASS/IMAGE and "
            "test/CLASS/IMAGE, or CLASS/IMAGE"
            f"{stored.hint and f'. {stored.hint}'}"
        )
    held_out = [name for name in EVALUATION_SPLITS if name in stored.splits]
    train = _select(stored, "train_split", train_split or "train")
    if not (eval_split or held_out):
        return _data(stored, *_hold_out(train, validation_fraction))
    spec = eval_split or held_out[0]
    evaluation = _select(stored, "eval_split", spec)
    shared = train.overlap(evaluation)
    if shared:
        raise UserError(
            f"--train_split={train_split or 'train'} and --eval_split={spec} "
            f"share {shared:,} images: what was trained on measures nothing; "
            "take parts that share none, such as train[:90%] and train[90%:]"
        )
    note = ""
    if not eval_split and held_out[1:]:
        rest = " and ".join(held_out[1:])
        note = (
            f"Evaluating on {spec}; {rest} is left for the end: "
            f"--mode=evaluate --eval_split={held_out[-1]}"
        )
    return _data(stored, train, evaluation, note)


def choose_evaluation(stored, eval_split=None):
    """Returns the `Split` of a data set to measure anything on.

    Args:
      stored: a `Stored`.
      eval_split: which one; None for the split that exists for it, or else for
        all of the first.

    Raises:
      UserError: there is no such split, or nothing in it.
    """
    names = [*EVALUATION_SPLITS, *stored.splits]
    first = next(name for name in names if name in stored.splits)
    return _select(stored, "eval_split", eval_split or first)


def check_new(data, dataset):
    """Raises UserError where a new run could not be measured correctly.

    Runs that exist are read all the same.

    Args:
      data: a `Data`.
      dataset: its name.
    """
    if data.fault:
        raise UserError(data.fault)
    repeated = repeated_names(data.class_names)
    if repeated:
        numbers = [
            number
            for number, name in enumerate(data.class_names)
            if name == repeated[0]
        ]
        raise UserError(
            f"--dataset={dataset}: names of classes must be unique, and "
            f"{repeated[0]!r} is that of classes "
            f"{' and '.join(map(str, numbers))}. Rename one of them"
        )
    if data.evaluation is None:
        return
    linked = data.train.linked(data.evaluation)
    if len(linked):
        train, evaluation = map(data.train.store.name, linked[0])
        raise UserError(
            f"--dataset={dataset}: {len(linked):,} images to evaluate on are "
            f"images to train on, through links: {evaluation} is {train}. Put "
            "other images in place of the links, or pass other splits"
        )


def repeated_names(names):
    """Returns the names that come more than once."""
    counts = collections.Counter(names)
    return [name for name, count in counts.items() if count > 1]


def check_unique(names):
    """Raises UserError where classes cannot be matched by their names."""
    repeated = repeated_names(names)
    if repeated:
        raise UserError(
            f"several classes are called {first_few(map(repr, repeated))}: "
            "classes are matched by name, which must be unique. Rename them"
        )


def spelling_warnings(class_names):
    """Returns lines on classes that may be one, written in several ways."""
    warnings, alike = [], {}
    for name in dict.fromkeys(class_names):
        form = unicodedata.normalize("NFC", name)
        alike.setdefault(" ".join(form.split()).casefold(), []).append(name)
    for names in alike.values():
        forms = {unicodedata.normalize("NFC", name) for name in names}
        folded = {form.casefold() for form in forms}
        if len(names) > 1:
            what = "Unicode form" if len(forms) == 1 else "case"
            what = what if len(folded) == 1 else "spaces"
            warnings.append(
                f"classes {' and '.join(map(ascii, names))} differ in {what} "
                "only, which some file systems take for one name. If they are "
                "one class, give them one name"
            )
    others = len(warnings) - FEW
    if others > 0:
        warnings[FEW:] = [f"{others:,} other names have several spellings"]
    return warnings


def _data(stored, train, evaluation, note=""):
    data = Data(stored.class_names, train, evaluation, {}, note, stored.fault)
    contents = {
        "class_names": [*stored.class_names],
        "splits": {
            name: {"images": split.num_examples, "identity": split.identity}
            for name, split in data.splits.items()
        },
    }
    return data._replace(contents=contents)


def _select(stored, flag, spec):
    """Returns the split that a flag asks for."""
    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[split.num_examples], num_bytes=0
        )
        for name, split in stored.splits.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"--{flag}={spec} cannot be read; there is "
            f"{', '.join(stored.splits)}, and parts of it such as "
            f"{next(iter(stored.splits))}[:90%]"
        ) from error
    split = functools.reduce(
        Split.plus,
        (
            stored.splits[part.splitname].slice(part.from_, part.to)
            for part in parts
        ),
    )
    if not split.num_examples:
        raise UserError(f"--{flag}={spec} holds no images")
    repeated = 0
    if len(parts) > 1:
        _, times = np.unique(split.indices, return_counts=True)
        repeated = np.count_nonzero(times > 1)
    if repeated:
        raise UserError(
            f"--{flag}={spec} names {repeated:,} images more than once; take "
            "parts that share none"
        )
    return split


def _hold_out(split, fraction):
    """Returns what is left of a split, the part held out, and a note."""
    count = split.num_examples
    if fraction == 0:
        note = "Training on everything (--validation_fraction=0): "
        return split, None, f"{note}nothing is evaluated on"
    if not 0 < fraction < 1 or count < 2:
        raise UserError(
            f"--validation_fraction={fraction} of {count} images cannot be "
            "held out; take a part between 0 and 1 of at least two, or 0 to "
            "train on everything and to evaluate on nothing"
        )
    if split.labels is None:
        kept = min(max(round(count * (1 - fraction)), 1), count - 1)
        return split.slice(0, kept), split.slice(kept, count), ""
    _check_even(split, fraction)
    halves = StratifiedShuffleSplit(test_size=fraction, random_state=0)
    # Of the images, only their number counts.
    images = np.broadcast_to(0, count)
    train, evaluation = next(halves.split(images, split.labels))
    return split.take(np.sort(train)), split.take(np.sort(evaluation)), ""


def _check_even(split, fraction):
    """Raises UserError where not every class could be on both sides."""
    count = split.num_examples
    present, first, counts = np.unique(
        split.labels, return_index=True, return_counts=True
    )
    alone = first[counts == 1]
    if len(alone):
        names = [split.store.name(split.indices[i]) for i in alone]
        raise UserError(
            "the only image of its class can be trained on or evaluated on, "
            f"not both: {first_few(names)}; add images of the class, put those "
            "to evaluate on into a folder test/, or take "
            "--validation_fraction=0"
        )
    held_out = math.ceil(fraction * count)
    if min(held_out, count - held_out) < len(present):
        raise UserError(
            f"--validation_fraction={fraction} of {count:,} images leaves "
            f"{count - held_out:,} to train on and {held_out:,} to evaluate "
            f"on, and there are {len(present):,} classes; take a part that has "
            "an image of each on both sides, or --validation_fraction=0"
        )
