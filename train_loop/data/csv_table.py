"""Tables of images and their labels, as CSV files."""

import csv
import pathlib

from train_loop.data.image_files import store_files
from train_loop.errors import UserError

SUFFIXES = (".csv",)
COLUMNS = ("image", "label")


def open_csv(path):
    """Returns the images that a CSV file lists.

    Args:
      path: of a file in UTF-8 with the columns `image` and `label`: paths,
        relative to the folder of the file, and names of classes.

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
        lines = csv.reader(text.splitlines(keepends=True), strict=True)
        columns, *rows = [line for line in lines if line] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a table in UTF-8 with commas ({error})"
        ) from error
    columns = [column.strip() for column in columns]
    if sorted(columns) != sorted(COLUMNS):
        raise UserError(
            f"{path} has the columns {', '.join(columns) or 'of no table'}; it "
            f"takes {' and '.join(COLUMNS)}, one label for each image"
        )
    label_of = {}
    for number, row in enumerate(rows, start=2):
        values = dict(zip(columns, map(str.strip, row), strict=False))
        image, label = map(values.get, COLUMNS)
        if len(row) != len(columns) or not image or not label:
            raise UserError(
                f"line {number} of {path} is no image with a label: "
                f"{','.join(row)}"
            )
        if image in label_of:
            raise UserError(
                f"line {number} of {path} has {image} again; each image has "
                "one line and one label"
            )
        label_of[image] = label
    class_names = sorted({*label_of.values()})
    if not class_names:
        raise UserError(
            f"{path} lists no image; it takes a line for each, below the names "
            "of the columns"
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    files = [(path.parent / p, numbers[name]) for p, name in label_of.items()]
    return store_files(path.parent, class_names, {"train": files})
