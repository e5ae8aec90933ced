"""Reports: the console, `metrics.jsonl`, TensorBoard, and its profiles.

A report is called with (step, split, metrics).
"""

import contextlib
import itertools
import json
import os
import re
from typing import NamedTuple

import tensorflow as tf
import tqdm
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import api, api_pb2
from tensorboard.plugins.hparams.summary import session_end_pb
from tensorboard.plugins.pr_curve import summary as pr_curve
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from train_loop.console import format_metric
from train_loop.workdir import append_json_line, read_json_lines, write_text


class ConsoleReport:
    """Prints a line per call, above the progress bar.

    Args:
      steps: number of steps of the whole run.
    """

    def __init__(self, steps):
        self.steps = steps

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
        than `start`, are dropped.
      start: the step that this process resumes from.
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


# Metric -> tag of its curve, the same in training and evaluation, so that
# TensorBoard overlays the two. The epoch, a straight line, has none.
TAGS = {
    "loss": "quality/loss",
    "accuracy": "quality/accuracy",
    "ema_loss": "quality/ema_loss",
    "ema_accuracy": "quality/ema_accuracy",
    "swa_loss": "quality/swa_loss",
    "swa_accuracy": "quality/swa_accuracy",
    "learning_rate": "optimizer/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "loss_scale": "optimizer/loss_scale",
    "skipped_steps": "optimizer/skipped_steps",
    "images_per_second": "speed/images_per_second",
    "input_wait": "speed/input_wait",
}
# The metrics by which TensorBoard compares runs.
COMPARED_METRICS = ("accuracy", "loss")


class TensorBoardReport:
    """Writes event files into `train/` and `eval/` below a folder.

    Args:
      directory: the run's folder.
      kept: {split: last step of an earlier process to keep}. TensorBoard drops
        its later steps.
      model: model whose weights are written as histograms at every evaluation;
        None for no histograms.
    """

    def __init__(self, directory, kept, model=None):
        self.model = model
        self._writers = {}
        for split, step in kept.items():
            folder = os.path.join(directory, split)
            _write_session_start(folder, step)
            self._writers[split] = tf.summary.create_file_writer(folder)

    def __call__(self, step, split, metrics):
        with self._writers[split].as_default(step):
            for name, value in metrics.items():
                if name in TAGS:
                    tf.summary.scalar(TAGS[name], value)
            if split == "eval" and self.model is not None:
                for variable in self.model.variables:
                    tf.summary.histogram(variable.path, variable.value)
        self._writers[split].flush()

    def write_settings(self, settings):
        """Writes {name: value} as a table, and as hyperparameters."""
        rows = [f"| {name} | `{value}` |" for name, value in settings.items()]
        table = "\n".join(["| flag | value |", "|---|---|", *rows])
        with self._writers["train"].as_default(0):
            tf.summary.text("flags", table)
        metrics = [
            api.Metric(TAGS[name], display_name=name)
            for name in COMPARED_METRICS
        ]
        with self._writers["eval"].as_default(0):
            columns = [api.HParam(name) for name in settings]
            api.hparams_config(columns, metrics)
            api.hparams({name: str(value) for name, value in settings.items()})

    def write_end(self):
        """Marks the run as finished."""
        summary = session_end_pb(api_pb2.STATUS_SUCCESS)
        with self._writers["eval"].as_default(0):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

    def write_images(self, name, images, step=0, split="train"):
        """Writes a square grid of images, float32 [n * n, h, w, 3] in 0..1."""
        self.write_image(name, image_grid(images), step, split)

    def write_image(self, name, image, step, split):
        """Writes one image, [height, width, 3], uint8 or float in 0..1."""
        with self._writers[split].as_default(step):
            tf.summary.image(name, image[tf.newaxis])

    def write_pr_curve(self, name, is_class, probabilities, step):
        """Writes a precision-recall curve of an evaluation.

        Args:
          name: name of the curve.
          is_class: bool [n], whether an example belongs to the class.
          probabilities: float [n], probabilities of the class.
          step: step of the model.
        """
        summary = pr_curve.pb(name, is_class, probabilities)
        # The plugin's own op writes nothing in TensorFlow 2.
        with self._writers["eval"].as_default(step):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

    def write_graph(self, model, input_shape):
        """Writes the graph of a model's forward pass."""
        spec = tf.TensorSpec(input_shape, tf.float32)
        function = tf.function(
            lambda images: model(images, training=False), autograph=False
        )
        graph = function.get_concrete_function(spec).graph.as_graph_def()
        for node in graph.node:
            node.name = _without_counters(node.name)
            node.input[:] = map(_without_counters, node.input)
        with self._writers["train"].as_default(0):
            tf.summary.graph(graph)

    def close(self):
        for writer in self._writers.values():
            writer.close()


def _write_session_start(folder, kept):
    # The file's name sorts before that of the writer opened next.
    writer = EventFileWriter(folder, filename_suffix=".start")
    session_log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    writer.add_event(event_pb2.Event(step=kept + 1, session_log=session_log))
    writer.close()


def _without_counters(name):
    # Keras enters a layer's scope twice, and TensorFlow counts: "stem_1/bn1_1".
    return re.sub(r"_1/", "/", name)


def image_grid(images):
    """Lays out [n * n, height, width, channels] as one image."""
    count, height, width, channels = images.shape
    side = round(count**0.5)
    rows = tf.reshape(images, [side, side, height, width, channels])
    rows = tf.transpose(rows, [0, 2, 1, 3, 4])
    return tf.reshape(rows, [side * height, side * width, channels])


class Profile(NamedTuple):
    """The steps from `first` to `last`, profiled into `folder`."""

    first: int
    last: int
    folder: str | os.PathLike

    def sections(self, start, stop):
        """Splits steps where the profile begins and ends.

        Args:
          start: the last step taken.
          stop: the last step to take.

        Yields:
          (number of steps, a context that profiles them or does nothing).
        """
        begin, end = self.first - 1, self.last
        cuts = {cut for cut in (begin, end) if start < cut < stop}
        for left, right in itertools.pairwise(sorted({start, stop, *cuts})):
            context = contextlib.nullcontext()
            if begin <= left and right <= end:
                context = tf.profiler.experimental.Profile(str(self.folder))
            yield right - left, context


# A profile of no steps.
NO_PROFILE = Profile(1, 0, os.devnull)
