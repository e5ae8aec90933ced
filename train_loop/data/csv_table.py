"""Tables of images and their labels, as CSV files."""

import csv
import functools
import io
import os
import pathlib
import re

from train_loop.data.folder import SPLITS
from train_loop.data.image_files import store_files
from train_loop.errors import UserError

SUFFIXES = (".csv", ".tsv")
DELIMITERS = (",", ";", "\t")
# What a column holds -> what it may be called, in any capitals, with blanks or
# hyphens for underscores.
COLUMNS = {
    "image": (
        *("image", "image_path", "image_name", "path", "file"),
        *("file_path", "file_name", "filepath", "filename"),
    ),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split",),
    # Of pandas; skipped.
    "index": ("", "index", "unnamed:_0"),
}


def open_csv(path):
    """Returns the images that a CSV file lists.

    Args:
      path: of a file in UTF-8 with two columns by names in `COLUMNS`: paths,
        relative to the folder of the file, and names of classes. A third one
        may name the split of each image, as in `folder.SPLITS`. Commas,
        semicolons or tabs are between them.

    Returns:
      A `Stored`.

    Raises:
      UserError: the file cannot be read, or has other columns, an image
        twice, a line without image or label, or no line.
    """
    path = pathlib.Path(path).expanduser()
    try:
        # Spreadsheets begin such files with a mark.
        text = path.read_text(encoding="utf-8-sig")
        rows = _read(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a table in UTF-8 with commas ({error})"
        ) from error
    columns = rows[0][1] if rows else []
    kinds = _kinds(columns)
    if not _fits(kinds):
        raise UserError(
            f"{path} has the columns {', '.join(columns) or 'of no table'}; it "
            "takes image and label, or other names for them "
            f"({', '.join([*COLUMNS['image'][1:], *COLUMNS['label'][1:]])}), "
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
        split = SPLITS.get(values.get("split", "train").lower())
        if split is None:
            raise UserError(
                f"line {number} of {path} has the split "
                f"{values['split'] or 'of no name'}; must be one of "
                f"{', '.join(SPLITS)}"
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
    stored = store_files(path.parent, class_names, files)
    # Runs that began with one image in two spellings stay readable.
    return stored._replace(fault=fault)


def _read(text):
    """Returns [(number of its last line, values)] of the rows of a table."""
    head = text.lstrip("\n").partition("\n")[0]
    delimiter = next(
        (
            each
            for each in DELIMITERS
            for columns in csv.reader([head], delimiter=each)
            if _fits(_kinds(columns))
        ),
        DELIMITERS[0],
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
    kind_of = {name: kind for kind, names in COLUMNS.items() for name in names}
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
