"""The reports of a run: console, `metrics.jsonl` and TensorBoard."""

import contextlib

import numpy as np
import tensorflow as tf
import tqdm

from train_loop.builders.data import make_batching
from train_loop.builders.evaluation import predict_split
from train_loop.data import batches
from train_loop.errors import is_full_disk
from train_loop.evaluation import charts
from train_loop.evaluation.results import Results
from train_loop.training import reports

TENSORBOARD_CHARTS = ("confusion_matrix", "confident_mistakes")
# Precision-recall curves are shown for the classes with the most examples.
MAX_PR_CURVES = 20


@contextlib.contextmanager
def open_reports(run, evaluation_is_pending, was_finished):
    """Yields a function that reports (step, split, metrics).

    Writes settings and training images to TensorBoard at the start, and
    predictions at the end. Only the chief reports.

    Args:
      run: a `Run`.
      evaluation_is_pending: whether the step that it resumes from is not
        evaluated yet.
      was_finished: whether the run was finished before.
    """
    if not run.trainer.workers.is_chief:
        yield lambda *_: None
        return
    start = run.trainer.step
    tensorboard = reports.TensorBoardReport(
        run.workdir.path,
        {"train": start, "eval": start - evaluation_is_pending},
        run.classifier.model if run.settings.histograms else None,
    )
    outputs = (
        tensorboard,
        reports.ConsoleReport(run.steps),
        # Last: an entry there means that it was reported everywhere.
        reports.JsonLinesReport(run.workdir.metrics, start),
    )
    with contextlib.closing(tensorboard):
        if start == 0:
            show_beginning(tensorboard, run)

        def report(step, split, metrics):
            metrics = _with_images_and_epochs(metrics, step, run)
            for output in outputs:
                with _tolerating_full_disk(step):
                    output(step, split, metrics)

        yield report
        if (
            not was_finished
            and run.settings.show_predictions
            and run.data.evaluation is not None
            # Other workers have ended by then.
            and run.trainer.workers.count == 1
        ):
            show_predictions(tensorboard, run)
        tensorboard.write_end()


def _with_images_and_epochs(metrics, step, run):
    """Returns metrics with images per second and the epoch."""
    speeds = {"steps_per_second": "images_per_second"}
    metrics = {
        speeds.get(name, name): value * run.batch_size
        if name in speeds
        else value
        for name, value in metrics.items()
    }
    epoch = step * run.batch_size / run.data.train.num_examples
    return {**metrics, "epoch": epoch}


@contextlib.contextmanager
def _tolerating_full_disk(step):
    """Lets training continue if the disk is too full for a report."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not is_full_disk(error):
            raise
        tqdm.tqdm.write(
            f"warning: disk full: the report of step {step} is not written. "
            "Free some space."
        )


def show_beginning(tensorboard, run):
    """Writes flags, training images and the graph to TensorBoard.

    Args:
      tensorboard: a `TensorBoardReport`.
      run: a `Run`.
    """
    tensorboard.write_settings(run.settings.texts())
    images, _ = batches.training_sample(
        run.data, run.transforms, make_batching(run.settings)
    )
    tensorboard.write_images("training_images", images)
    size = run.settings.image_size
    tensorboard.write_graph(
        run.classifier.model,
        (run.batch_size, size, size, run.settings.channels),
    )


def show_predictions(tensorboard, run):
    """Writes charts of the predictions for the evaluation split.

    Uses the averaged weights if the run has them.

    Args:
      tensorboard: a `TensorBoardReport`.
      run: a `Run` with an evaluation split.
    """
    average, step = run.trainer.update.average, run.trainer.step
    with average.in_place() if average else contextlib.nullcontext():
        predictions = predict_split(
            run.classifier,
            run.data.evaluation,
            run.trainer.strategy,
            run.batch_size,
        )
    results = Results.of(predictions)
    for name in TENSORBOARD_CHARTS:
        figure = charts.chart_pixels(name, results)
        if figure is not None:
            tensorboard.write_image(name, figure, step, "eval")
    for label in np.argsort(-results.examples)[:MAX_PR_CURVES]:
        [log_probabilities] = predictions.log_probabilities(
            slice(label, label + 1)
        )
        tensorboard.write_pr_curve(
            predictions.class_names[label],
            predictions.labels == label,
            np.exp(log_probabilities),
            step,
        )
