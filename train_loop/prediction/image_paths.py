"""Paths of images: from files, folders, globs, or a list."""

import glob
import os
import pathlib

from train_loop.data.folder import images_below
from train_loop.data.image_files import IMAGE_SUFFIXES, heif_advice
from train_loop.errors import UserError

# In place of a path: a list from another program.
FROM_STDIN = "-"


def find_images(text, lines):
    """Returns the paths of the images that a text lists, in its order.

    Args:
      text: files, folders and globs with commas between them, or `-` for a
        list. A path that exists may have a comma in it.
      lines: of the list, as bytes, a file or a folder each.

    Returns:
      A list of paths. A listed file may be missing.

    Raises:
      UserError: a folder holds no images, a glob matches nothing, or the text
        is empty.
    """
    if text == FROM_STDIN:
        names = [os.fsdecode(line.rstrip(b"\r\n")) for line in lines]
        found = [_of_path(name) for name in names if name]
    else:
        found = [_of_name(name) for name in split_names(text)]
    paths = [path for some in found for path in some]
    if not paths:
        raise UserError(
            f"--images={text} names nothing; it takes files, folders and globs "
            "with commas between them, or - for a list on standard input"
        )
    return paths


def split_names(text):
    """Returns the paths between the commas of a text.

    As many parts stay together as make the path of an existing file.
    """
    parts, names = text.split(","), []
    while parts:
        count = next(
            (
                count
                for count in range(len(parts), 1, -1)
                if _matches(",".join(parts[:count]))
            ),
            1,
        )
        names.append(",".join(parts[:count]))
        parts = parts[count:]
    return [name for name in names if name]


def _matches(name):
    path = os.path.expanduser(name)
    return os.path.exists(path) or any(_glob(path))


def _glob(path):
    """Yields what matches; an existing folder is not a pattern."""
    folder, names = path, []
    while glob.has_magic(folder) and not os.path.exists(folder):
        folder, name = os.path.split(folder)
        names.insert(0, name)
    pattern = os.path.join(glob.escape(folder), *names)
    return glob.iglob(pattern, recursive=True)


def _of_name(name):
    path = os.path.expanduser(name)
    if os.path.exists(path) or not glob.has_magic(path):
        return _of_path(path)
    matches = sorted(_glob(path))
    # A folder's own files match `**` as well.
    files = [match for match in matches if os.path.isfile(match)]
    if files:
        return files
    if matches:
        return [path for match in matches for path in _of_path(match)]
    raise UserError(f"--images={name} matches no file")


def _of_path(path):
    """Returns the file, or the images in a folder and those below it."""
    if not os.path.isdir(path):
        return [path]
    # Without a slash at its end.
    found = list(images_below(str(pathlib.Path(path))))
    if not found:
        names = [name for _, _, names in os.walk(path) for name in names]
        raise UserError(
            f"--images={path} holds no images: no file in it ends in "
            f"{', '.join(IMAGE_SUFFIXES)}{heif_advice(names)}"
        )
    return sorted(found)
