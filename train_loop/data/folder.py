"""Folders of images that are named after their classes."""

import os
import pathlib
from typing import NamedTuple

from train_loop.data.image_files import (
    IMAGE_SUFFIXES,
    Paths,
    heif_advice,
    store_files,
)
from train_loop.errors import UserError, first_few
from train_loop.workdir import Workdir

# What folders of splits are called, whatever their capitals -> the split.
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "val": "val",
    "test": "test",
    "testing": "test",
}


# Folders that systems add: what macOS packs into an archive, and thumbnails of
# a Synology NAS.
OF_SYSTEMS = ("__MACOSX", "@eaDir")
# How far below a folder its data set is looked for.
LEVELS = 5


def open_folder(root):
    """Returns the images below a folder.

    Args:
      root: folder in the layout of `tfds.ImageFolder`, SPLIT/CLASS/IMAGE,
        with splits by the names in `SPLITS`; or just CLASS/IMAGE. Images may
        lie in folders below that of their class, and any of these may be
        links.

    Returns:
      A `Stored`. Its warnings report what is skipped: files of other kinds,
      images outside of classes, and folders that are neither a split nor a
      class.

    Raises:
      UserError: there are no folders of classes, two for one split, or no
        images to train on.
    """
    root = pathlib.Path(root)
    folders = _split_folders(root)
    warnings = _unused(root, folders.values()) if folders else []
    folders = folders or {"train": root}
    levels = {split: list_folder(path) for split, path in folders.items()}
    classes = {
        split: {folder.name: folder for folder in level.folders}
        for split, level in levels.items()
    }
    class_names = sorted(set().union(*classes.values()))
    if not class_names:
        raise UserError(
            f"{root} is no folder of classes: it takes train/CLASS/IMAGE and "
            f"test/CLASS/IMAGE, or CLASS/IMAGE; found no folder{_above(root)}"
        )
    found = _Found(Paths(), [], [], [])

    def examples(split):
        for label, class_name in enumerate(class_names):
            folder, count = classes[split].get(class_name), 0
            if folder is not None:
                for path in _images(folder, found):
                    count += 1
                    yield path, label
            if not count:
                found.empty.append(folders[split] / class_name)

    files = {split: examples(split) for split in folders}
    try:
        stored = store_files(root, class_names, files)
    except UserError as error:
        raise UserError(f"{error}{heif_advice(found.others)}") from error
    # The splits' folders lie in the root.
    levels = {root: list_folder(root)} | {
        folders[split]: level for split, level in levels.items()
    }
    warnings += _outside_of_classes(levels, found)
    warnings += _below_classes(root, found, class_names)
    hint = ""
    if len(class_names) == 1:
        [folder, *_] = [of[class_names[0]] for of in classes.values() if of]
        hint = _below(folder)
    return stored._replace(warnings=tuple(warnings), hint=hint)


class Level(NamedTuple):
    """What lies in a folder: folders, of these the runs, and images."""

    folders: list
    runs: list
    images: list


def list_folder(path):
    """Returns the `Level` of a folder, sorted, without what is hidden."""
    if not path.is_dir():
        return Level([], [], [])
    level = Level([], [], [])
    for entry in path.iterdir():
        if is_skipped(entry.name):
            continue
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
            level.images.append(entry)
        elif entry.is_dir():
            (level.runs if _is_run(entry) else level.folders).append(entry)
    return Level(*map(sorted, level))


def subfolders(path):
    """Returns the folders in a folder, without runs that were put there."""
    return list_folder(path).folders


def is_skipped(name):
    """Whether what has this name is hidden, or of an operating system."""
    return name.startswith(".") or name in OF_SYSTEMS


def images_below(folder):
    """Yields the paths of the images in a folder and in those below it."""
    return _images(folder, _Found(Paths(), [], [], []))


class _Found(NamedTuple):
    """What is found in folders of classes beside images.

    `others` are files of other kinds, `runs` folders of runs, and `empty`
    folders without images. `splits` are folders in that of a class with the
    name of a split.
    """

    others: Paths
    runs: list
    splits: list
    empty: list


def _images(folder, found, above=()):
    """Yields the images in a folder and in those below it, in their order."""
    state = os.stat(folder)
    above = (*above, (state.st_dev, state.st_ino))
    # Of the folder that is read, the names alone are in memory.
    names, folders, others = [], set(), set()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_skipped(name):
                continue
            if not name.lower().endswith(IMAGE_SUFFIXES):
                (folders if entry.is_dir() else others).add(name)
            names.append(name)
    names.sort()
    for name in names:
        path = f"{folder}/{name}"
        if name in others:
            found.others.append(path)
        elif name not in folders:
            yield path
        elif _is_run(path):
            found.runs.append(path)
        # A link to where it lies would lead round and round.
        elif not _is_one_of(path, above):
            if len(above) == 1 and name.lower() in SPLITS:
                found.splits.append(pathlib.Path(path))
            yield from _images(path, found, above)


def _is_one_of(path, above):
    state = os.stat(path)
    return (state.st_dev, state.st_ino) in above


def _is_run(folder):
    """Whether a folder is that of a run, and not of a class."""
    workdir = Workdir(pathlib.Path(folder))
    return workdir.is_run and (
        workdir.data.exists() or workdir.checkpoints.exists()
    )


def _split_folders(root):
    """Returns {split: folder of its classes}, in the order of `SPLITS`."""
    found = {}
    for folder in subfolders(root):
        split = SPLITS.get(folder.name.lower())
        if split is None or not subfolders(folder):
            continue
        # A link from one to the other is no second folder; small letters
        # sort last, and stay.
        if split in found and not folder.samefile(found[split]):
            raise UserError(
                f"{found[split]} and {folder} are both the split {split}; put "
                "their images into one folder, or rename one of them"
            )
        found[split] = folder
    return {split: found[split] for split in SPLITS.values() if split in found}


def _unused(root, used):
    """Returns a warning of what lies beside the folders of splits."""
    names = [
        folder.name
        for folder in subfolders(root)
        if not any(folder.samefile(other) for other in used)
    ]
    if not names:
        return []
    verb = "is" if len(names) == 1 else "are"
    return [
        f"{first_few(names)} in {root} {verb} used for nothing: what "
        f"holds folders of classes, and is called {', '.join(SPLITS)}, is read"
    ]


def _outside_of_classes(levels, found):
    """Returns warnings of runs, and of images beside the folders of classes.

    Args:
      levels: {folder: its `Level`}.
      found: a `_Found`.
    """
    runs = [run for level in levels.values() for run in level.runs]
    runs = [*dict.fromkeys(map(str, [*runs, *found.runs]))]
    verb = "is the folder of a run" if len(runs) == 1 else "are those of runs"
    warnings = [f"{first_few(runs)} {verb}: skipped"] if runs else []
    for folder, level in levels.items():
        names = [image.name for image in level.images]
        if names:
            warnings.append(
                f"{len(names):,} images in {folder} are in no folder of a "
                f"class: skipped: {first_few(names)}"
            )
    return warnings


def _below_classes(root, found, class_names):
    """Returns warnings of what folders of classes hold beside images."""
    warnings, empty = [], found.empty
    if empty:
        verb = "holds" if len(empty) == 1 else "hold"
        warnings.append(f"{first_few(empty)} {verb} no images")
    if found.others:
        # There may be as many as images.
        few = [path for path, _ in zip(found.others, range(5), strict=False)]
        names = [os.path.relpath(path, root) for path in few]
        names += [""] * (len(found.others) - len(few))
        warnings.append(
            f"{len(found.others)} files in {root} are skipped: they are none "
            f"of {', '.join(IMAGE_SUFFIXES)}: {first_few(names)}"
            f"{heif_advice(found.others)}"
        )
    inner = dict.fromkeys(path.parent for path in found.splits)
    data_sets = [path for path in inner if _split_folders(path)]
    if data_sets and len(class_names) > 1:
        verb = "looks" if len(data_sets) == 1 else "look"
        warnings.append(
            f"{first_few(data_sets)} {verb} like a data set, and not like a "
            f"class. If so, pass --dataset={data_sets[0]}"
        )
    splits = [p for p in found.splits if p.parent not in data_sets]
    if splits:
        verb = "is no split" if len(splits) == 1 else "are no splits"
        warnings.append(
            f"{first_few(splits)} {verb}, but part of a class. For splits, use "
            "train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    return warnings


def _below(folder):
    """Returns a hint at a data set in what would be the only class."""
    for _ in range(LEVELS):
        level = list_folder(folder)
        if _split_folders(folder) or len(level.folders) > 1:
            return f"{folder} looks like the data set: pass --dataset={folder}"
        if level.images or not level.folders:
            break
        [folder] = level.folders
    return ""


def _above(root):
    """Returns a hint at a data set above a folder without folders."""
    if not list_folder(root).images:
        return ""
    root = root.absolute()
    is_split = root.parent.name.lower() in SPLITS
    folder = root.parent.parent if is_split else root.parent
    return f", but images. If these are one class, pass --dataset={folder}"
