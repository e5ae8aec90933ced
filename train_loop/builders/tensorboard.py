"""What a run shows in TensorBoard, at its beginning and at its end."""

import contextlib

import numpy as np

from train_loop.builders.data import make_batching
from train_loop.builders.evaluation import predict_split
from train_loop.data import samples
from train_loop.evaluation import charts
from train_loop.evaluation.findings import Findings

# Charts, and curves of the classes with the most examples.
CHARTS = ("confusion_matrix", "confident_mistakes")
MOST_PR_CURVES = 20


def show_beginning(tensorboard, run):
    """Shows flags, training images and the graph.

    Args:
      tensorboard: a `TensorBoardReport`.
      run: a `Run`.
    """
    tensorboard.write_settings(run.settings.texts())
    images, _ = samples.training_sample(
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
    findings = Findings.of(predictions)
    for name in CHARTS:
        picture = charts.draw_chart(name, findings)
        if picture is not None:
            tensorboard.write_picture(name, picture, step, "eval")
    for label in np.argsort(-findings.examples)[:MOST_PR_CURVES]:
        [logarithms] = predictions.log_probabilities(slice(label, label + 1))
        tensorboard.write_pr_curve(
            predictions.class_names[label],
            predictions.labels == label,
            np.exp(logarithms),
            step,
        )
