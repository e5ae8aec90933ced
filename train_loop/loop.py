"""This file answers: what happens between the steps?"""

import math
import sys
import time
from typing import NamedTuple

import tensorflow as tf
import tqdm

from train_loop import UserError

# What a picture or a file that cannot be read raises. TensorFlow quotes bytes
# of it, which need not be text.
INPUT_ERRORS = (tf.errors.OpError, UnicodeDecodeError)
# The devices are left alone for about this long before the progress bar moves.
SECONDS_PER_CALL = 1.0


class Cadence(NamedTuple):
    """After how many steps things happen."""

    report: int
    evaluate: int
    save: int


def train(
    trainer,
    iterator,
    steps,
    batch_size,
    cadence,
    evaluate,
    save,
    report,
    explain,
    bar,
):
    """Trains up to `steps`: train, report, evaluate, report, save.

    Args:
      trainer: a `Trainer`; it goes on from the step it is at.
      iterator: over the distributed training batches from that step on.
      steps: the step to stop at.
      batch_size: examples per step.
      cadence: a `Cadence`.
      evaluate: returns {metric: number} for the evaluation split.
      save: called with the step, writes a checkpoint.
      report: called with (step, split, metrics).
      explain: called with (step, error) where the batch of a step cannot be
        read; raises an error that says why, where it finds out.
      bar: a `tqdm` progress bar that counts steps.

    Raises:
      UserError: the loss or the gradients are not finite any more.
    """
    step = saved = trainer.step
    while step < steps:
        # Numbers are always reported before a save, so that no half-counted
        # average has to survive a restart.
        stop = min(steps, *((step // every + 1) * every for every in cadence))
        began = time.perf_counter()
        waited = 0.0
        for num_steps in _pieces(stop - step, bar):
            try:
                broken_step, waiting = trainer.train(iterator, num_steps)
            except INPUT_ERRORS as error:
                _save_what_is_done(trainer, saved, save)
                explain(trainer.step, error)
                raise
            waited += float(waiting)
            if broken_step >= 0:
                raise _diverged(int(broken_step), steps, saved)
            loss = float(trainer.loss.result())
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        seconds = time.perf_counter() - began
        metrics = trainer.results("train")
        metrics["images_per_second"] = (stop - step) * batch_size / seconds
        metrics["input_wait"] = waited / seconds
        step = stop
        report(step, "train", metrics)

        trainer.average_statistics()
        if step % cadence.evaluate == 0 or step == steps:
            try:
                measured = evaluate()
            except UserError:
                _save_what_is_done(trainer, saved, save)
                raise
            if not math.isfinite(measured["loss"]):
                raise _diverged(step, steps, saved)
            report(step, "eval", measured)
        if step % cadence.save == 0 or step == steps:
            # The last update may have broken what the loss before it was
            # computed from.
            if not trainer.is_finite():
                raise _diverged(step, steps, saved)
            save(step)
            saved = step


def _save_what_is_done(trainer, saved, save):
    """Keeps the steps before one that has no batch."""
    trainer.average_statistics()
    if trainer.step > saved and trainer.is_finite():
        save(trainer.step)


def _diverged(step, steps, saved):
    kept = f"the checkpoint of step {saved} is kept"
    if saved == 0:
        kept = "there is no checkpoint yet"
    return UserError(
        f"the loss is not finite at step {step} of {steps}; {kept}. Try a "
        "lower --learning_rate or a longer --warmup_epochs"
    )


def evaluate(trainer, batches, num_steps, bar):
    """Measures the model on every example of a split, once.

    Args:
      trainer: a `Trainer`.
      batches: the distributed evaluation batches.
      num_steps: how many batches there are.
      bar: a `tqdm` progress bar that counts batches.

    Returns:
      {metric: number}.
    """
    iterator = iter(batches)
    for piece in _pieces(num_steps, bar):
        trainer.evaluate(iterator, piece)
    return trainer.results("eval")


def progress_bar(
    total, initial=0, unit="step", description="", leave=True, delay=0.0
):
    """Returns a progress bar with rate and time left, on standard error.

    Args:
      total: number of steps or batches altogether.
      initial: how many of them are done already.
      unit: what is counted.
      description: what stands in front of it.
      leave: whether the bar stays after the last step.
      delay: seconds to wait before the bar is shown at all.

    Returns:
      A `tqdm` progress bar.
    """
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        leave=leave,
        delay=delay,
        dynamic_ncols=True,
        # A log file wants fewer lines than a terminal.
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )


def _pieces(num_steps, bar):
    """Cuts steps into pieces that take about a second each.

    Args:
      num_steps: how many steps to take altogether.
      bar: a `tqdm` progress bar, moved after every piece.

    Yields:
      Numbers of steps, as scalar tensors.
    """
    piece = 1
    while num_steps > 0:
        piece = min(piece, num_steps)
        began = time.perf_counter()
        yield tf.constant(piece)
        seconds = time.perf_counter() - began
        num_steps -= piece
        bar.update(piece)
        if seconds < SECONDS_PER_CALL / 2:
            piece *= 2
        elif seconds > SECONDS_PER_CALL * 2:
            piece = max(piece // 2, 1)
