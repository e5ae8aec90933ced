"""What happens between the steps: reports, evaluations, checkpoints."""

import math
import time
from typing import NamedTuple

import tensorflow as tf

from train_loop.errors import UserError
from train_loop.progress import passing_bar, progress_bar

# The devices are left alone for about this long before the progress bar moves.
SECONDS_PER_CALL = 1.0


class Cadence(NamedTuple):
    """After how many steps things happen; 0 for never."""

    report: int
    evaluate: int
    save: int

    def stops(self, step, last):
        """Yields the `Stop`s from a step on, up to the last one."""
        while step < last:
            # Numbers are always reported before a save, so that no
            # half-counted average has to survive a restart.
            nexts = ((step // each + 1) * each for each in self if each)
            step = min(last, *nexts)
            yield self.stop(step, last)

    def stop(self, step, last):
        """Returns the `Stop` at a step of a run that ends at `last`."""
        return Stop(
            step,
            saves=_is_due(step, self.save, last),
            evaluates=_is_due(step, self.evaluate, last),
        )


class Stop(NamedTuple):
    """A step at which training is reported, and what else happens there."""

    step: int
    saves: bool
    evaluates: bool


class DivergedError(Exception):
    """Numbers that are not finite, at a step."""

    def __init__(self, step):
        super().__init__(step)
        self.step = step


def train(run, report):
    """Trains a run to its last step.

    At every stop: train, report; save; evaluate, report.

    Args:
      run: has `trainer`, a `Trainer` at the step to go on from; `steps`, the
        last one; `cadence`; `batch_size`; `training_batches()`, from the
        trainer's step on; `profile`, a `Profile`; `evaluate()`, which returns
        {metric: number}; `owes_evaluation`, whether that of its step is to be
        made yet; `save()`; `discard()`, which takes the last save back and
        returns the step of the one before; and `explain(error)`, which returns
        the error to raise where a batch could not be read.
      report: called with (step, split, metrics).

    Raises:
      UserError: the loss or the gradients are not finite any more.
    """
    trainer, saved = run.trainer, run.trainer.step
    batches = iter(run.training_batches())
    with progress_bar(run.steps, initial=saved) as bar:
        try:
            if run.owes_evaluation:
                report(saved, "eval", _evaluate(run))
            for stop in run.cadence.stops(saved, run.steps):
                metrics = _train_until(stop.step, run, batches, bar)
                report(stop.step, "train", metrics)
                trainer.average_statistics()
                # First: an evaluation may take long, and be stopped.
                if stop.saves:
                    saved = _save(run)
                if stop.evaluates:
                    report(stop.step, "eval", _evaluate(run))
        except DivergedError as error:
            if saved == error.step:
                saved = run.discard()
            raise UserError(_diverged(error.step, run.steps, saved)) from None
        except UserError:
            _keep(run, saved)
            raise
        except tf.errors.OpError as error:
            _keep(run, saved)
            raise run.explain(error) from error


def _is_due(step, every, last):
    return every > 0 and (step % every == 0 or step == last)


def _train_until(stop, run, batches, bar):
    """Trains up to a step; returns what was measured on the way."""
    trainer = run.trainer
    start, began, waited = trainer.step, time.perf_counter(), 0.0
    for section, recording in run.profile.sections(start, stop):
        with recording:
            for num_steps in _pieces(section, bar):
                broken_step, waiting = trainer.train(batches, num_steps)
                waited += float(waiting)
                if broken_step >= 0:
                    raise DivergedError(int(broken_step))
                loss = float(trainer.loss.result())
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    seconds = time.perf_counter() - began
    return {
        **trainer.results("train"),
        "images_per_second": (stop - start) * run.batch_size / seconds,
        "input_wait": waited / seconds,
    }


def _evaluate(run):
    metrics = run.evaluate()
    if not math.isfinite(metrics["loss"]):
        raise DivergedError(run.trainer.step)
    return metrics


def _save(run):
    """Saves the run, unless the last update broke it; returns its step."""
    # The loss before that update told nothing of it.
    if not run.trainer.is_finite():
        raise DivergedError(run.trainer.step)
    run.save()
    return run.trainer.step


def _keep(run, saved):
    """Saves what was learned before something that cannot be read."""
    run.trainer.average_statistics()
    if run.trainer.step > saved and run.trainer.is_finite():
        run.save()


def _diverged(step, steps, saved):
    kept = f"the checkpoint of step {saved} is kept"
    if saved == 0:
        kept = "there is no checkpoint yet"
    return (
        f"the loss is not finite at step {step} of {steps}; {kept}. Try a "
        "lower --learning_rate or a longer --warmup_epochs"
    )


def evaluate(trainer, batches, num_steps):
    """Measures the model on every example of a split, once.

    Args:
      trainer: a `Trainer`.
      batches: the distributed evaluation batches.
      num_steps: how many batches there are.

    Returns:
      {metric: number}.
    """
    iterator = iter(batches)
    with passing_bar(num_steps, "batch") as bar:
        for piece in _pieces(num_steps, bar):
            trainer.evaluate(iterator, piece)
    return trainer.results("eval")


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
