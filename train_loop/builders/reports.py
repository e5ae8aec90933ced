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

# Charts, and curves of the classes with the most examples.
TENSORBOARD_CHARTS = ("confusion_matrix", "confident_mistakes")
MOST_PR_CURVES = 20


@contextlib.contextmanager
def open_reports(run, evaluation_is_pending, was_finished):
    """Yields a function of (step, split, metrics) that reports them.

    At the beginning it shows the run in TensorBoard, at the end its
    predictions. Only the chief reports anything.

    Args:
      run: a `Run`.
      evaluation_is_pending: whether that of the step it resumes from is.
      was_finished: whether nothing is left to train.
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
    every = (
        tensorboard,
        reports.ConsoleReport(run.steps),
        # Last: what stands there has been reported everywhere.
        reports.JsonLinesReport(run.workdir.metrics, start),
    )
    with contextlib.closing(tensorboard):
        if start == 0:
            show_beginning(tensorboard, run)

        def report(step, split, metrics):
            metrics = _in_images(metrics, step, run)
            for each in every:
                with _outlasting_full_disks(step):
                    each(step, split, metrics)

        yield report
        if (
            not was_finished
            and run.settings.show_predictions
            and run.data.evaluation is not None
            # The others have gone by then.
            and run.trainer.workers.count == 1
        ):
            show_predictions(tensorboard, run)
        tensorboard.write_end()


def _in_images(metrics, step, run):
    """Returns metrics with speed and progress counted in images."""
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
def _outlasting_full_disks(step):
    """Lets training continue where there is no room for a report."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not is_full_disk(error):
            raise
        tqdm.tqdm.write(
            f"warning: the disk is full: the report of step {step} is not "
            "written"
        )


def show_beginning(tensorboard, run):
    """Shows flags, training images and the graph.

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
    """Shows what the trained model makes of the evaluation split.

    With the averages of its weights, where there are some.

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
        picture = charts.chart_pixels(name, results)
        if picture is not None:
            tensorboard.write_image(name, picture, step, "eval")
    for label in np.argsort(-results.examples)[:MOST_PR_CURVES]:
        [logarithms] = predictions.log_probabilities(slice(label, label + 1))
        tensorboard.write_pr_curve(
            predictions.class_names[label],
            predictions.labels == label,
            np.exp(logarithms),
            step,
        )
