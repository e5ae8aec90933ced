"""Folders of reports: they appear whole, in the place of earlier ones only."""

import contextlib
import json
import os
import pathlib
import tempfile

import numpy as np

from train_loop.errors import UserError
from train_loop.workdir import written_aside


@contextlib.contextmanager
def replacing(folder, result):
    """Lets a folder appear when it is complete, in place of an earlier one.

    Args:
      folder: its path.
      result: the name of a file that every such folder holds.

    Yields:
      The `pathlib.Path` of a folder to write to.

    Raises:
      UserError: as `check_folder` does.
    """
    check_folder(folder, result)
    try:
        with written_aside(folder) as unfinished:
            unfinished.mkdir()
            yield unfinished
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from error


def check_folder(folder, result):
    """Finds out before any long work whether a report can be written.

    Args:
      folder: its path.
      result: the name of a file that every such folder holds.

    Raises:
      UserError: it cannot be written, or holds something else.
    """
    folder = pathlib.Path(folder)
    parents = (path for path in folder.absolute().parents if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=next(parents, folder)).cleanup()
        foreign = folder.exists() and not (folder / result).exists()
        if foreign and (not folder.is_dir() or os.listdir(folder)):
            raise UserError(
                f"{folder} holds something else than an earlier report (there "
                f"is no {result}), and would be replaced; name a new folder"
            )
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from error


def write_json(path, value):
    """Writes a value for people and programs."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def number(value):
    """Returns a number for JSON, which has no nan."""
    return float(value) if np.isfinite(value) else None


def _not_writable(folder, error):
    return (
        f"{folder} cannot be written ({error.strerror}); name a folder that "
        "can be"
    )
