"""Training from the start, or from the last checkpoint, to the last step."""

import io
import math
import os
import shlex
import time
from typing import Any

import matplotlib

from train_loop import console
from train_loop.builders.data import check_outside_of_images
from train_loop.builders.model import load_classifier
from train_loop.builders.training import (
    scale_to_batch_size,
    unfrozen_learning_rate,
)
from train_loop.console import format_metric, text_table
from train_loop.evaluation.chart_style import STYLE
from train_loop.evaluation.curves import draw_learning_curves, trailing_means
from train_loop.prediction.classifier import Classifier
from train_loop.process import StoppedError
from train_loop.recipes import RECIPES
from train_loop.resolve import check_run_or_new
from train_loop.run import Run
from train_loop.settings import Settings, to_text
from train_loop.workdir import Workdir, read_json_lines


@console.outliving_streams()
def train(settings):
    """Trains a new run, or resumes an existing one, to the last step.

    Continues if its output is closed: the files of the run are the result.

    Args:
      settings: explicit `Settings`.

    Raises:
      UserError: see `Run.create` and `Run.train`.
      StoppedError: a signal requested a stop.
    """
    if settings.workdir is not None:
        # Before the images are prepared, which may take hours.
        workdir = Workdir.of(settings.workdir)
        workdir.check_writable()
        check_run_or_new(settings)
        check_outside_of_images(workdir, settings.dataset)
        if not _has_workers(settings, workdir):
            workdir.check_free()
    run = Run.create(settings)
    was_finished, start = run.is_finished, time.perf_counter()
    describe(run)
    try:
        run.train()
    except StoppedError as error:
        hint = _resume_hint(run.workdir)
        raise StoppedError(error.signal, hint) from None
    print(final_table(run))
    if was_finished:
        print(
            f"The run is already finished, at step {run.trainer.step} of "
            f"{run.steps}."
        )
    else:
        print(f"Trained for {time.perf_counter() - start:.0f} s.")
    print(
        f"The run's files are in {run.workdir}. To view them, run: "
        f"tensorboard --logdir={shlex.quote(str(run.workdir))}"
    )


def fit(dataset: str | os.PathLike[str], **settings: Any) -> Classifier:
    """Trains a classifier on images, and returns it.

    It does what `python -m train_loop.main` does, and prints the same. In a
    notebook, it draws the learning curves at the end. Call it again with the
    same `workdir` to resume.

    Args:
      dataset: a folder with a folder of images for each class, or another
        value of `--dataset`.
      **settings: flags of the command line, as for `Settings`: `weights`,
        `epochs`, `workdir` and so on.

    Returns:
      The `Classifier`: of the best evaluation with `keep_best`, or else of the
      last step; with averaged weights if the run has them.

    Raises:
      UserError: see `Run.create` and `Run.train`.
      StoppedError: a signal requested a stop.

    Example:
      ```python
      from train_loop import fit

      classifier = fit("photos", weights="imagenet", workdir="runs/photos")
      classifier.predict_one("cat.jpg")  # [("cat", 0.93), ("dog", 0.07)]
      ```
    """
    run = Run.create(Settings(dataset=os.fspath(dataset), **settings))
    describe(run)
    run.train()
    print(final_table(run))
    if console.in_notebook():
        show_learning_curves(run)
    keeps_best = run.settings.keep_best != "none"
    return load_classifier(
        run.workdir.path, step="best" if keeps_best else None
    )


def show_learning_curves(run):
    """Shows the learning curves of a run in a notebook."""
    from IPython.display import Image, display

    png = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = draw_learning_curves(read_json_lines(run.workdir.metrics))
        figure.savefig(png, format="png", bbox_inches="tight")
    display(Image(png.getvalue()))


def _has_workers(settings, workdir):
    """Whether other workers may already use the folder to train together."""
    settings = settings.over(Settings.read(workdir.flags))
    return settings.strategy == "multi_worker"


def _resume_hint(workdir):
    """Returns how to resume a run that was stopped."""
    if not workdir.has_checkpoint:
        return "there is no checkpoint yet"
    quoted = shlex.quote(str(workdir))
    return f"--workdir={quoted} resumes from the last checkpoint"


def describe(run):
    """Prints a summary of the run before it starts."""
    settings, data = run.settings, run.data
    num_evaluation = "no"
    if data.evaluation is not None:
        num_evaluation = f"{data.evaluation.num_examples:,}"
    parameters = sum(
        variable.shape.num_elements()
        for variable in run.classifier.model.trainable_variables
    )
    print(
        f"{settings.model}, {parameters:,} trainable parameters, on "
        f"{settings.dataset}: {data.train.num_examples:,} training images, "
        f"{num_evaluation} evaluation images, "
        f"{len(data.class_names)} classes"
    )
    print(
        f"{run.steps:,} steps with batch size {run.batch_size} on "
        f"{run.trainer.strategy.num_replicas_in_sync} replica(s), "
        f"{settings.precision}, from step {run.trainer.step:,}"
    )
    if run.last_frozen_step is not None:
        unfrozen = unfrozen_learning_rate(settings)
        print(
            f"--freeze={settings.freeze} until step "
            f"{run.last_frozen_step:,}, then all layers are trained, with a "
            "peak learning rate of "
            f"{scale_to_batch_size(settings, unfrozen):g}"
        )
    if run.changes:
        changes = ", ".join(
            f"--{name} is {_shown(now)} (was {_shown(before)})"
            for name, (before, now) in run.changes.items()
        )
        print(f"Changed settings: {changes}")
    recipe = RECIPES[settings.recipe]
    if recipe.by_size:
        names = recipe.values | recipe.for_size(data.train.num_examples)
        flags = (
            f"--{name}={to_text(getattr(settings, name))}" for name in names
        )
        print(
            f"Recipe {settings.recipe}, for {data.train.num_examples:,} "
            f"training images: {' '.join(flags)}"
        )
    excluded = f" Excluded: {recipe.excluded}" * bool(recipe.excluded)
    print(
        f"Recipe {settings.recipe}, unchanged: {recipe.result} "
        f"Source: {recipe.source}{excluded}"
    )


def _shown(text):
    return "not set" if text is None else text or "empty"


def final_table(run):
    """Returns a table of the last metrics of every split.

    Training metrics are means over the last epoch, because the last report may
    cover a single batch.
    """
    records = read_json_lines(run.workdir.metrics)
    last = {record["split"]: record for record in records}
    images = {name: run.data.splits[name].num_examples for name in last}
    names = ["loss", "accuracy"]
    training = [record for record in records if record["split"] == "train"]
    if training:
        means, steps = trailing_means(
            [record["step"] for record in training],
            [[record[name] for name in names] for record in training],
            math.ceil(images["train"] / run.batch_size),
        )
        last["train"] |= dict(zip(names, means[-1], strict=True))
        images["train"] = steps[-1] * run.batch_size
    if run.trainer.update.average is not None:
        names += [f"{run.settings.weight_average}_{name}" for name in names]
    rows = [["split", "step", *names, "images"]]
    rows += [
        [
            split,
            str(record["step"]),
            *(
                format_metric(name, record[name]) if name in record else ""
                for name in names
            ),
            f"{images[split]:,}",
        ]
        for split, record in last.items()
    ]
    return text_table(rows)
