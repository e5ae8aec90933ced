"""Training: from the settings, or the last checkpoint, to the last step."""

import math
import shlex
import time

from train_loop import console
from train_loop.builders.data import check_outside_of_images
from train_loop.builders.training import highest_rate, unfrozen_learning_rate
from train_loop.console import format_metric, text_table
from train_loop.evaluation.curves import trailing_means
from train_loop.process import StoppedError
from train_loop.recipes import RECIPES
from train_loop.resolve import check_run_or_new
from train_loop.run import Run
from train_loop.settings import Settings
from train_loop.workdir import Workdir, read_json_lines


@console.outliving_streams()
def train(settings):
    """Trains until the last step, from the last checkpoint where one is.

    Also where nobody sees what it prints any more: its files are what counts.
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
    was_finished, began = run.is_finished, time.perf_counter()
    describe(run)
    try:
        run.train()
    except StoppedError as error:
        hint = _resume_hint(run.workdir)
        raise StoppedError(error.signal, hint) from None
    print(final_table(run))
    if was_finished:
        print(
            f"Nothing was left to do: the run is at step {run.trainer.step} of "
            f"{run.steps}."
        )
    else:
        print(f"Trained for {time.perf_counter() - began:.0f} s.")
    print(
        f"The run's files are in {run.workdir}; look at them with: "
        f"tensorboard --logdir={shlex.quote(str(run.workdir))}"
    )


def _has_workers(settings, workdir):
    """Whether others may be there already, to train together."""
    settings = settings.over(Settings.read(workdir.flags))
    return settings.strategy == "multi_worker"


def _resume_hint(workdir):
    """Tells how to go on with a run that was stopped."""
    if not workdir.has_checkpoint:
        return "there is no checkpoint yet"
    quoted = shlex.quote(str(workdir))
    return f"--workdir={quoted} goes on from the last checkpoint"


def describe(run):
    """Prints what is about to happen."""
    settings, data = run.settings, run.data
    held_out = "none"
    if data.evaluation is not None:
        held_out = f"{data.evaluation.num_examples:,}"
    parameters = sum(
        variable.shape.num_elements()
        for variable in run.classifier.model.trainable_variables
    )
    print(
        f"{settings.model}, {parameters:,} parameters, on {settings.dataset}: "
        f"{data.train.num_examples:,} images to train on, "
        f"{held_out} to evaluate on, "
        f"{len(data.class_names)} classes"
    )
    print(
        f"{run.steps:,} steps of {run.batch_size} images on "
        f"{run.trainer.strategy.num_replicas_in_sync} replica(s), "
        f"{settings.precision}, from step {run.trainer.step:,}"
    )
    if run.last_frozen_step is not None:
        print(
            f"--freeze={settings.freeze} until step "
            f"{run.last_frozen_step:,}, then that is trained as well, at a "
            "learning rate of at most "
            f"{highest_rate(settings, unfrozen_learning_rate(settings)):g}"
        )
    if run.changes:
        changes = ", ".join(
            f"--{name} is {_shown(now)} (was {_shown(before)})"
            for name, (before, now) in run.changes.items()
        )
        print(f"From here on: {changes}")
    recipe = RECIPES[settings.recipe]
    excluded = f" Excluded: {recipe.excluded}" * bool(recipe.excluded)
    print(
        f"Recipe {settings.recipe}, unchanged: {recipe.result} "
        f"Source: {recipe.source}{excluded}"
    )


def _shown(text):
    return "not given" if text is None else text or "empty"


def final_table(run):
    """Returns the last numbers of every split as text.

    Those of training are means over the last epoch: its last report may be of
    a single batch.
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
