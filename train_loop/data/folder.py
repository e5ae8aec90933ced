"""Images in class folders, or listed in a CSV file."""

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

# Name of a split folder, in lower case -> split.
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
# Folders that systems add: metadata of macOS in archives, and thumbnails of a
# Synology NAS.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
# Maximum depth of the search for a nested data set.
MAX_DEPTH = 5
LAYOUT = (
    "Use the layout train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE."
)
CSV_SUFFIXES = (".csv", ".tsv")
CSV_DELIMITERS = (",", ";", "\t")
# Kind of column -> its accepted names, in any case, with blanks or hyphens in
# place of underscores.
CSV_COLUMNS = {
    "image": (
        *("image", "image_path", "image_name", "path", "file"),
        *("file_path", "file_name", "filepath", "filename"),
    ),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split",),
    # The index of pandas, which is ignored.
    "index": ("", "index", "unnamed:_0"),
}


def open_folder(root):
    """Opens a folder of images.

    Args:
      root: folder with the layout SPLIT/CLASS/IMAGE, as `tfds.ImageFolder`, or
        CLASS/IMAGE. `SPLIT_FOLDERS` lists the names of splits. Images can be in
        subfolders of their class. Files and folders can be links.

    Returns:
      A `Dataset`. Its warnings report skipped files and folders: unsupported
      formats, images outside of class folders, and folders that are neither a
      split nor a class.

    Raises:
      UserError: the folder has no class folders, two folders for one split, or
        no training images.
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
            f"{root}: no class folders found. {_parent_hint(root) or LAYOUT}"
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
    # The root contains the split folders.
    levels = {root: _list_folder(root)} | {
        folders[split]: level for split, level in levels.items()
    }
    warnings += _warnings_outside_classes(levels, unused)
    warnings += _warnings_inside_classes(root, unused, class_names)
    hint = ""
    if len(class_names) == 1:
        [folder, *_] = [of[class_names[0]] for of in classes.values() if of]
        hint = _subfolder_hint(folder)
    return stored._replace(warnings=tuple(warnings), hint=hint)


def open_csv(path):
    """Opens the images that a CSV file lists.

    Args:
      path: UTF-8 file with an image column (paths relative to the folder of
        the file), a label column (class names) and optionally a split column
        (names in `SPLIT_FOLDERS`). `CSV_COLUMNS` lists the names of columns.
        The delimiter is a comma, a semicolon or a tab.

    Returns:
      A `Dataset`.

    Raises:
      UserError: the file cannot be read, has other columns, lacks an image or
        a label in a line, or lists no images.
    """
    path = pathlib.Path(path).expanduser()
    try:
        # Spreadsheets start the file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
        rows = _read_csv(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: not readable as CSV ({error}). Save it as CSV in UTF-8."
        ) from error
    columns = rows[0][1] if rows else []
    kinds = _kinds(columns)
    if not _fits(kinds):
        synonyms = [*CSV_COLUMNS["image"][1:], *CSV_COLUMNS["label"][1:]]
        raise UserError(
            f"{path}: must have one image column, one label column and "
            f"optionally a split column, not {', '.join(columns) or 'none'}. "
            "Name them image, label and split, or use a synonym "
            f"({', '.join(synonyms)})."
        )
    line_of, examples, fault = {}, [], ""
    real_folder = functools.cache(os.path.realpath)
    for number, row in rows[1:]:
        values = dict(zip(kinds, row, strict=False))
        image, label = values.get("image"), values.get("label")
        if len(row) != len(kinds) or not image or not label or "\0" in image:
            raise UserError(
                f"{path}: line {number} must have an image and a label, not "
                f"{','.join(row)!r}. Complete or remove the line."
            )
        split = SPLIT_FOLDERS.get(values.get("split", "train").lower())
        if split is None:
            raise UserError(
                f"{path}: line {number} has the unknown split "
                f"{values['split']!r}. Use one of {', '.join(SPLIT_FOLDERS)}."
            )
        # a.png and ./a.png are the same image.
        folder, name = os.path.split(path.parent / image)
        key = real_folder(folder), name
        if key in line_of:
            fault = fault or (
                f"{path}: line {number} repeats {image} of line "
                f"{line_of[key]}. List each image once."
            )
        line_of.setdefault(key, number)
        examples.append((split, path.parent / image, label))
    class_names = sorted({label for *_, label in examples})
    if not class_names:
        raise UserError(
            f"{path}: no images listed. Add a line for each image below the "
            "names of the columns."
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    files = {split: [] for split, *_ in examples}
    for split, image, label in examples:
        files[split].append((image, numbers[label]))
    stored = open_image_files(path.parent, class_names, files)
    # Not an error here: existing runs with a repeated image stay readable.
    return stored._replace(fault=fault)


def subfolders(path):
    """Returns the subfolders of a folder, without run folders."""
    return _list_folder(path).folders


def is_skipped(name):
    """Whether a name is hidden or belongs to an operating system."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def images_below(folder):
    """Yields the paths of the images in a folder and its subfolders."""
    return _images(folder, _Unused(Paths(), [], [], []))


class _Level(NamedTuple):
    """The content of a folder: subfolders, run folders and images."""

    folders: list
    runs: list
    images: list


def _list_folder(path):
    """Returns the `_Level` of a folder, sorted, without hidden entries."""
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


class _Unused(NamedTuple):
    """Skipped and unusual entries of class folders.

    `others` are unsupported files, `runs` run folders, `splits` subfolders of
    a class with the name of a split, and `empty` classes without images.
    """

    others: Paths
    runs: list
    splits: list
    empty: list


def _images(folder, unused, parents=()):
    """Yields the images in a folder and its subfolders, sorted by name."""
    status = os.stat(folder)
    parents = (*parents, (status.st_dev, status.st_ino))
    # To save memory, only the names in the current folder are kept.
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
        # A link to a parent folder would recurse forever.
        elif not _is_one_of(path, parents):
            if len(parents) == 1 and name.lower() in SPLIT_FOLDERS:
                unused.splits.append(pathlib.Path(path))
            yield from _images(path, unused, parents)


def _is_one_of(path, folders):
    status = os.stat(path)
    return (status.st_dev, status.st_ino) in folders


def _is_run(folder):
    """Whether a folder is a run folder and not a class."""
    workdir = Workdir(pathlib.Path(folder))
    return workdir.is_run and (
        workdir.data.exists() or workdir.checkpoints.exists()
    )


def _split_folders(root):
    """Returns {split: its folder}, in the order of `SPLIT_FOLDERS`."""
    found = {}
    for folder in subfolders(root):
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split is None or not subfolders(folder):
            continue
        # A link to the same folder is not a second one. Lower case sorts last
        # and is kept.
        if split in found and not folder.samefile(found[split]):
            raise UserError(
                f"{found[split]} and {folder}: both are the split {split}. "
                "Merge the folders, or rename one of them."
            )
        found[split] = folder
    return {
        split: found[split]
        for split in SPLIT_FOLDERS.values()
        if split in found
    }


def _unused_folders(root, used):
    """Returns a warning about folders beside the split folders."""
    names = [
        folder.name
        for folder in subfolders(root)
        if not any(folder.samefile(other) for other in used)
    ]
    if not names:
        return []
    return [
        f"{root}: skipped {first_few(names)}. To use a folder as a split, put "
        f"class folders into it and name it {', '.join(SPLIT_FOLDERS)}."
    ]


def _warnings_outside_classes(levels, unused):
    """Returns warnings about run folders and images beside class folders.

    Args:
      levels: {folder: its `_Level`}.
      unused: an `_Unused`.
    """
    runs = [run for level in levels.values() for run in level.runs]
    runs = [*dict.fromkeys(map(str, [*runs, *unused.runs]))]
    kind = "a run folder" if len(runs) == 1 else "run folders"
    warnings = [f"{first_few(runs)}: skipped as {kind}."] if runs else []
    for folder, level in levels.items():
        names = [image.name for image in level.images]
        if names:
            warnings.append(
                f"{folder}: skipped {len(names):,} images outside of class "
                f"folders: {first_few(names)}. Move them into class folders."
            )
    return warnings


def _warnings_inside_classes(root, unused, class_names):
    """Returns warnings about the content of class folders beside images."""
    warnings = []
    if unused.empty:
        warnings.append(
            f"{first_few(unused.empty)}: no images found. Add some, unless "
            "this is intended."
        )
    if unused.others:
        # Possibly as many as images, so that few become strings.
        few = [path for path, _ in zip(unused.others, range(5), strict=False)]
        names = [os.path.relpath(path, root) for path in few]
        names += [""] * (len(unused.others) - len(few))
        warnings.append(
            f"{root}: skipped {len(unused.others):,} files in unsupported "
            f"formats: {first_few(names)}. Supported are "
            f"{', '.join(IMAGE_SUFFIXES)}.{heif_advice(unused.others)}"
        )
    inner = dict.fromkeys(path.parent for path in unused.splits)
    data_sets = [path for path in inner if _split_folders(path)]
    if data_sets and len(class_names) > 1:
        warnings.append(
            f"{first_few(data_sets)}: read as a class, but has the layout of a "
            f"data set. If it is one, pass --dataset={data_sets[0]}."
        )
    splits = [p for p in unused.splits if p.parent not in data_sets]
    if splits:
        warnings.append(
            f"{first_few(splits)}: read as part of a class, not as a split. "
            "For splits, use train/CLASS/IMAGE and test/CLASS/IMAGE."
        )
    return warnings


def _subfolder_hint(folder):
    """Returns a hint to a data set nested in the only class, or ""."""
    for _ in range(MAX_DEPTH):
        level = _list_folder(folder)
        if _split_folders(folder) or len(level.folders) > 1:
            return f"If {folder} is the data set, pass --dataset={folder}."
        if level.images or not level.folders:
            break
        [folder] = level.folders
    return ""


def _parent_hint(root):
    """Returns a hint to the data set above a single class, or ""."""
    if not _list_folder(root).images:
        return ""
    root = root.absolute()
    is_split = root.parent.name.lower() in SPLIT_FOLDERS
    folder = root.parent.parent if is_split else root.parent
    return f"If its images are one class, pass --dataset={folder}."


def _read_csv(text):
    """Returns [(number of its last line, values)] for each row."""
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
    # Unlike `str.splitlines`, `StringIO` splits at line ends only.
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    return [
        (lines.line_num, [value.strip() for value in line])
        for line in lines
        if line
    ]


def _kinds(columns):
    """Returns the kind of each column by its name; None if unknown."""
    kind_of = {
        name: kind for kind, names in CSV_COLUMNS.items() for name in names
    }
    return [
        kind_of.get(re.sub("[ -]", "_", column.strip().lower()))
        for column in columns
    ]


def _fits(kinds):
    """Whether there are one image and one label column, and no unknown ones."""
    known = [kind for kind in kinds if kind not in ("index", "split")]
    return sorted(map(str, known)) == ["image", "label"] and (
        kinds.count("split") < 2
    )
