"""Where the numbers of a run go: console, `metrics.jsonl`, TensorBoard.

A report is called with (step, split, metrics): the step they were measured at,
"train" or "eval", and {name: number}.
"""

import json
import os

import tensorflow as tf
import tqdm
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from train_loop.workdir import read_json_lines, write_text


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
        self._file = path.open("a", buffering=1)  # noqa: SIM115

    def __call__(self, step, split, metrics):
        record = {"step": step, "split": split, **metrics}
        self._file.write(json.dumps(record) + "\n")

    def close(self):
        self._file.close()


class TensorBoardReport:
    """Writes event files into `train/` and `eval/` below a folder.

    Args:
      directory: the run's folder.
      start: the step that this process starts from. TensorBoard is told to
        forget what an earlier process wrote after it.
    """

    def __init__(self, directory, start):
        self._writers = {}
        for split in ("train", "eval"):
            folder = os.path.join(directory, split)
            _write_session_start(folder, start)
            self._writers[split] = tf.summary.create_file_writer(folder)

    def __call__(self, step, split, metrics):
        with self._writers[split].as_default(step):
            for name, value in metrics.items():
                tf.summary.scalar(name, value)
        self._writers[split].flush()

    def write_flags(self, flags):
        """Shows {name: value} as a table."""
        rows = [f"| {name} | `{value}` |" for name, value in flags.items()]
        table = "\n".join(["| flag | value |", "|---|---|", *rows])
        with self._writers["train"].as_default(0):
            tf.summary.text("flags", table)

    def write_images(self, name, images):
        """Shows a square grid of images, float32 [n * n, h, w, 3] in 0..1."""
        with self._writers["train"].as_default(0):
            tf.summary.image(name, grid(images)[tf.newaxis])

    def write_graph(self, model, input_shape):
        """Shows the graph of a model's forward pass."""
        spec = tf.TensorSpec(input_shape, tf.float32)
        function = tf.function(lambda images: model(images, training=False))
        with self._writers["train"].as_default(0):
            tf.summary.graph(function.get_concrete_function(spec).graph)

    def close(self):
        for writer in self._writers.values():
            writer.close()


def _write_session_start(folder, start):
    # The file's name sorts before that of the writer opened next.
    writer = EventFileWriter(folder, filename_suffix=".start")
    session_log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    writer.add_event(event_pb2.Event(step=start + 1, session_log=session_log))
    writer.close()


def grid(images):
    """Lays out [n * n, height, width, channels] as one image."""
    count, height, width, channels = images.shape
    side = round(count**0.5)
    rows = tf.reshape(images, [side, side, height, width, channels])
    rows = tf.transpose(rows, [0, 2, 1, 3, 4])
    return tf.reshape(rows, [side * height, side * width, channels])


def format_metric(name, value):
    """Returns a number as people like to read it."""
    formats = {
        "accuracy": "{:.2%}",
        "learning_rate": "{:.3g}",
        "images_per_second": "{:,.0f}",
        "input_wait": "{:.1%}",
        "epoch": "{:.1f}",
    }
    return formats.get(name, "{:.4f}").format(value)


def table(rows):
    """Returns rows of strings as aligned text; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
