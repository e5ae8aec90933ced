"""Images in folders named after their classes, or listed in a CSV file."""

import csv
import functools
import io
import os
import pathlib
import re
from typing import NamedTuple

from train_loop.data.image_files import (
    IMAGE_SUFFIXES,
    Paths,
    heif_advice,
    open_image_files,
)
from train_loop.errors import UserError, first_few
from train_loop.workdir import Workdir

# What folders of splits are called, whatever their capitals -> the split.
SPLIT_FOLDERS = {
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
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
# How far below a folder its data set is looked for.
LEVELS = 5
CSV_SUFFIXES = (".csv", ".tsv")
CSV_DELIMITERS = (",", ";", "\t")
# What a column holds -> what it may be called, in any capitals, with blanks or
# hyphens for underscores.
CSV_COLUMNS = {
    "image": (
        *("image", "image_path", "image_name", "path", "file"),
        *("file_path", "file_name", "filepath", "filename"),
    ),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split",),
    # Of pandas; skipped.
    "index": ("", "index", "unnamed:_0"),
}


def open_folder(root):
    """Returns the images below a folder.

    Args:
      root: folder in the layout of `tfds.ImageFolder`, SPLIT/CLASS/IMAGE,
        with splits by the names in `SPLIT_FOLDERS`; or just CLASS/IMAGE.
        Images may lie in folders below that of their class, and any of these
        may be links.

    Returns:
      A `Dataset`. Its warnings report what is skipped: files of other kinds,
      images outside of classes, and folders that are neither a split nor a
      class.

    Raises:
      UserError: there are no folders of classes, two for one split, or no
        images to train on.
    """
    root = pathlib.Path(root)
    folders = _split_folders(root)
    warnings = _unused_folders(root, folders.values()) if folders else []
    folders = folders or {"train": root}
    levels = {split: _list_folder(path) for split, path in folders.items()}
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
    unused = _Unused(Paths(), [], [], [])

    def examples(split):
        for label, class_name in enumerate(class_names):
            folder, count = classes[split].get(class_name), 0
            if folder is not None:
                for path in _images(folder, unused):
                    count += 1
                    yield path, label
            if not count:
                unused.empty.append(folders[split] / class_name)

    files = {split: examples(split) for split in folders}
    try:
        stored = open_image_files(root, class_names, files)
    except UserError as error:
        raise UserError(f"{error}{heif_advice(unused.others)}") from error
    # The splits' folders lie in the root.
    levels = {root: _list_folder(root)} | {
        folders[split]: level for split, level in levels.items()
    }
    warnings += _outside_of_classes(levels, unused)
    warnings += _below_classes(root, unused, class_names)
    hint = ""
    if len(class_names) == 1:
        [folder, *_] = [of[class_names[0]] for of in classes.values() if of]
        hint = _below(folder)
    return stored._replace(warnings=tuple(warnings), hint=hint)


def open_csv(path):
    """Returns the images that a CSV file lists.

    Args:
      path: of a file in UTF-8 with two columns by names in `CSV_COLUMNS`:
        paths, relative to the folder of the file, and names of classes. A
        third one may name the split of each image, as in `SPLIT_FOLDERS`.
        Commas, semicolons or tabs separate them.

    Returns:
      A `Dataset`.

    Raises:
      UserError: the file cannot be read, or has other columns, an image
        twice, a line without image or label, or no line.
    """
    path = pathlib.Path(path).expanduser()
    try:
        # Spreadsheets begin such files with a mark.
        text = path.read_text(encoding="utf-8-sig")
        rows = _read_csv(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a table in UTF-8 with commas ({error})"
        ) from error
    columns = rows[0][1] if rows else []
    kinds = _kinds(columns)
    if not _fits(kinds):
        others = [*CSV_COLUMNS["image"][1:], *CSV_COLUMNS["label"][1:]]
        raise UserError(
            f"{path} has the columns {', '.join(columns) or 'of no table'}; it "
            "takes image and label, or other names for them "
            f"({', '.join(others)}), "
            "one label for each image, and optionally split"
        )
    line_of, examples, fault = {}, [], ""
    real_folder = functools.cache(os.path.realpath)
    for number, row in rows[1:]:
        values = dict(zip(kinds, row, strict=False))
        image, label = values.get("image"), values.get("label")
        if len(row) != len(kinds) or not image or not label or "\0" in image:
            raise UserError(
                f"line {number} of {path} is no image with a label: "
                f"{','.join(row)}"
            )
        split = SPLIT_FOLDERS.get(values.get("split", "train").lower())
        if split is None:
            raise UserError(
                f"line {number} of {path} has the split "
                f"{values['split'] or 'of no name'}; must be one of "
                f"{', '.join(SPLIT_FOLDERS)}"
            )
        # However it is spelled, a.png and ./a.png.
        folder, name = os.path.split(path.parent / image)
        place = real_folder(folder), name
        if place in line_of:
            fault = fault or (
                f"line {number} of {path} has {image} again, which line "
                f"{line_of[place]} has; each image has one line and one label"
            )
        line_of.setdefault(place, number)
        examples.append((split, path.parent / image, label))
    class_names = sorted({label for *_, label in examples})
    if not class_names:
        raise UserError(
            f"{path} lists no image; it takes a line for each, below the names "
            "of the columns"
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    files = {split: [] for split, *_ in examples}
    for split, image, label in examples:
        files[split].append((image, numbers[label]))
    stored = open_image_files(path.parent, class_names, files)
    # Runs that began with one image in two spellings stay readable.
    return stored._replace(fault=fault)


class _Level(NamedTuple):
    """What lies in a folder: folders, of these the runs, and images."""

    folders: list
    runs: list
    images: list


def _list_folder(path):
    """Returns the `_Level` of a folder, sorted, without what is hidden."""
    if not path.is_dir():
        return _Level([], [], [])
    level = _Level([], [], [])
    for entry in path.iterdir():
        if is_skipped(entry.name):
            continue
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
            level.images.append(entry)
        elif entry.is_dir():
            (level.runs if _is_run(entry) else level.folders).append(entry)
    return _Level(*map(sorted, level))


def subfolders(path):
    """Returns the folders in a folder, without runs that were put there."""
    return _list_folder(path).folders


def is_skipped(name):
    """Whether what has this name is hidden, or of an operating system."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def images_below(folder):
    """Yields the paths of the images in a folder and in those below it."""
    return _images(folder, _Unused(Paths(), [], [], []))


class _Unused(NamedTuple):
    """What lies in folders of classes beside images.

    `others` are files of other kinds, `runs` folders of runs, and `empty`
    folders without images. `splits` are folders in that of a class with the
    name of a split.
    """

    others: Paths
    runs: list
    splits: list
    empty: list


def _images(folder, unused, above=()):
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
            unused.others.append(path)
        elif name not in folders:
            yield path
        elif _is_run(path):
            unused.runs.append(path)
        # A link to where it lies would lead round and round.
        elif not _is_one_of(path, above):
            if len(above) == 1 and name.lower() in SPLIT_FOLDERS:
                unused.splits.append(pathlib.Path(path))
            yield from _images(path, unused, above)


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
    """Returns {split: folder of its classes}, ordered as `SPLIT_FOLDERS`."""
    found = {}
    for folder in subfolders(root):
        split = SPLIT_FOLDERS.get(folder.name.lower())
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
    return {
        split: found[split]
        for split in SPLIT_FOLDERS.values()
        if split in found
    }


def _unused_folders(root, used):
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
        f"{first_few(names)} in {root} {verb} used for nothing: what holds "
        f"folders of classes, and is called {', '.join(SPLIT_FOLDERS)}, is read"
    ]


def _outside_of_classes(levels, unused):
    """Returns warnings of runs, and of images beside the folders of classes.

    Args:
      levels: {folder: its `_Level`}.
      unused: an `_Unused`.
    """
    runs = [run for level in levels.values() for run in level.runs]
    runs = [*dict.fromkeys(map(str, [*runs, *unused.runs]))]
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


def _below_classes(root, unused, class_names):
    """Returns warnings of what folders of classes hold beside images."""
    warnings, empty = [], unused.empty
    if empty:
        verb = "holds" if len(empty) == 1 else "hold"
        warnings.append(f"{first_few(empty)} {verb} no images")
    if unused.others:
        # There may be as many as images.
        few = [path for path, _ in zip(unused.others, range(5), strict=False)]
        names = [os.path.relpath(path, root) for path in few]
        names += [""] * (len(unused.others) - len(few))
        warnings.append(
            f"{len(unused.others)} files in {root} are skipped: they are none "
            f"of {', '.join(IMAGE_SUFFIXES)}: {first_few(names)}"
            f"{heif_advice(unused.others)}"
        )
    inner = dict.fromkeys(path.parent for path in unused.splits)
    data_sets = [path for path in inner if _split_folders(path)]
    if data_sets and len(class_names) > 1:
        verb = "looks" if len(data_sets) == 1 else "look"
        warnings.append(
            f"{first_few(data_sets)} {verb} like a data set, and not like a "
            f"class. If so, pass --dataset={data_sets[0]}"
        )
    splits = [p for p in unused.splits if p.parent not in data_sets]
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
        level = _list_folder(folder)
        if _split_folders(folder) or len(level.folders) > 1:
            return f"{folder} looks like the data set: pass --dataset={folder}"
        if level.images or not level.folders:
            break
        [folder] = level.folders
    return ""


def _above(root):
    """Returns a hint at a data set above a folder without folders."""
    if not _list_folder(root).images:
        return ""
    root = root.absolute()
    is_split = root.parent.name.lower() in SPLIT_FOLDERS
    folder = root.parent.parent if is_split else root.parent
    return f", but images. If these are one class, pass --dataset={folder}"


def _read_csv(text):
    """Returns [(number of its last line, values)] of the rows of a table."""
    head = text.lstrip("\n").partition("\n")[0]
    delimiter = next(
        (
            each
            for each in CSV_DELIMITERS
            for columns in csv.reader([head], delimiter=each)
            if _fits(_kinds(columns))
        ),
        CSV_DELIMITERS[0],
    )
    # Unlike `str.splitlines`, it splits at the ends of lines only.
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    return [
        (lines.line_num, [value.strip() for value in line])
        for line in lines
        if line
    ]


def _kinds(columns):
    """Returns what each column holds, by its name; None of an unknown one."""
    kind_of = {
        name: kind for kind, names in CSV_COLUMNS.items() for name in names
    }
    return [
        kind_of.get(re.sub("[ -]", "_", column.strip().lower()))
        for column in columns
    ]


def _fits(kinds):
    """Whether there is one column for images, one for labels, and no other."""
    known = [kind for kind in kinds if kind not in ("index", "split")]
    return sorted(map(str, known)) == ["image", "label"] and (
        kinds.count("split") < 2
    )
