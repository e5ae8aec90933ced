"""Where the numbers of a run go: the console, and `metrics.jsonl`.

A report is called with (step, split, metrics): the step they were measured at,
"train" or "eval", and {name: number}.
"""

import json
import math

import tqdm

from train_loop.console import printable
from train_loop.workdir import append_json_line, read_json_lines, write_text


class ConsoleReport:
    """Prints a line per call, above the progress bar.

    Args:
      steps: number of steps of the whole run.
    """

    def __init__(self, steps):
        self.steps = steps

    def close(self):
        """Has nothing to close, unlike other reports."""

    def __call__(self, step, split, metrics):
        width = len(str(self.steps))
        numbers = "  ".join(
            f"{name} {format_metric(name, value)}"
            for name, value in metrics.items()
        )
        tqdm.tqdm.write(f"{step:{width}}/{self.steps}  {split:5}  {numbers}")


class JsonLinesReport:
    """Appends a JSON object per call to a file.

    Args:
      path: the file. Lines of an earlier process that are incomplete, or later
        than the step it goes on from, are dropped.
      start: the step that this process starts from.
    """

    def __init__(self, path, start):
        kept = [
            json.dumps(record) + "\n"
            for record in read_json_lines(path)
            if record["step"] <= start
        ]
        write_text(path, "".join(kept))
        self.path = path

    def __call__(self, step, split, metrics):
        record = {"step": step, "split": split, **metrics}
        append_json_line(self.path, record)

    def close(self):
        """Has nothing to close, unlike other reports."""


def format_metric(name, value):
    """Returns a number as people like to read it."""
    formats = {
        "accuracy": "{:.2%}".format,
        "ema_accuracy": "{:.2%}".format,
        "swa_accuracy": "{:.2%}".format,
        "loss_scale": "{:g}".format,
        "skipped_steps": "{:g}".format,
        "learning_rate": "{:.3g}".format,
        "images_per_second": _with_three_digits,
        "input_wait": "{:.1%}".format,
        "epoch": _with_three_digits,
    }
    return formats.get(name, "{:.4f}".format)(value)


def _with_three_digits(value):
    """Returns a number with three digits that count, and all whole ones."""
    magnitude = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(2 - magnitude, 0)}f}"


def table(rows):
    """Returns rows of strings as aligned text; the first row is the header."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
