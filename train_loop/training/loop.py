"""What happens between the steps: reports, evaluations, checkpoints."""

import math
import time
from signal import SIGTERM
from typing import NamedTuple

import tensorflow as tf
import tqdm

from train_loop.console import passing_bar, progress_bar
from train_loop.errors import UserError
from train_loop.training import signals
from train_loop.training.workers import LOST, SharedError, unshared

# The devices are left alone for about this long before the progress bar moves.
SECONDS_PER_CALL = 1.0
# Nats. A label whose probability is exp(-10,000) was not learned any more.
LARGEST_LOSS = 1e4
NOT_FINITE = "the {} is not finite"


class Cadence(NamedTuple):
    """After how many steps things happen; 0 for never.

    With `keep_evaluated`, what is evaluated is saved too.
    """

    report: int
    evaluate: int
    save: int
    keep_evaluated: bool = False

    def stops(self, step, last):
        """Yields the `Stop`s from a step on, up to the last one."""
        # Numbers are always reported before a save, so that no half-counted
        # average has to survive a restart.
        cycles = [n for n in (self.report, self.evaluate, self.save) if n]
        while step < last:
            step = min(last, *((step // each + 1) * each for each in cycles))
            yield self.stop(step, last)

    def stop(self, step, last):
        """Returns the `Stop` at a step of a run that ends at `last`."""
        evaluates = _is_due(step, self.evaluate, last)
        saves = _is_due(step, self.save, last)
        return Stop(
            step, saves or (self.keep_evaluated and evaluates), evaluates
        )


class Stop(NamedTuple):
    """A step at which training is reported, and what else happens there."""

    step: int
    saves: bool
    evaluates: bool


class DivergedError(UserError):
    """Training came to numbers that are of no use.

    Args:
      step: at which that showed.
      steps: of the whole run.
      saved: the step of the last good checkpoint; 0 without one.
      what: is wrong.
    """

    def __init__(self, step, steps, saved, what):
        kept = f"the checkpoint of step {saved} is kept"
        if saved == 0:
            kept = "there is no checkpoint yet"
        super().__init__(
            f"{what} at step {step} of {steps}; {kept}. Try a lower "
            "--learning_rate, a longer --warmup_epochs, or a --clip_norm"
        )
        self.step = step
        self.saved = saved
        self.what = what


class _UselessError(Exception):
    """What is wrong with the numbers, and at which step."""


@unshared()
def train(run, report):
    """Trains a run to its last step.

    At every stop: train, report; save; evaluate, report; tidy.

    Args:
      run: has `trainer`, a `Trainer` at the step to go on from; `steps`, the
        last one, and `total_steps`, that of all phases; `cadence`;
        `batch_size`; `training_batches()`, from the trainer's step on;
        `profile`, a `Profile`; `measure()`, which evaluates and returns
        {metric: number}; `owes_evaluation`, whether that of its step is to be
        made yet; `has_stopped_improving`, whether evaluations say that it is
        enough; `save(local_state)`; `discard()`, which takes the last
        save back and returns the step of the one before; `tidy()`, which
        removes what is not to be kept; and `explain(error)`, which returns
        the error to raise where a batch could not be read.
      report: called with (step, split, metrics).

    Raises:
      DivergedError: the loss, the gradients or the weights are of no use any
        more.
      StoppedError: a signal asked to stop; everything learned is saved.
      UserError: an image cannot be read.
    """
    trainer, saved, traces = run.trainer, run.trainer.step, 1
    agreeing = trainer.workers.agreeing
    batches = iter(run.training_batches())
    with progress_bar(run.steps, initial=saved) as bar:
        try:
            if run.owes_evaluation:
                metrics = _evaluate(run)
                with agreeing():
                    report(saved, "eval", metrics)
                    run.tidy()
            for stop in run.cadence.stops(saved, run.steps):
                if run.has_stopped_improving:
                    break
                metrics = _train_until(stop.step, run, batches, bar)
                if trainer.num_traces > traces:
                    traces = trainer.num_traces
                    tqdm.tqdm.write(
                        f"warning: the training step was traced {traces} times "
                        f"by step {stop.step}, which takes long and memory; "
                        "once is enough"
                    )
                with agreeing():
                    report(stop.step, "train", metrics)
                trainer.average_statistics()
                # First: an evaluation may take long, and be stopped.
                if stop.saves:
                    saved = _save(run, saved)
                if stop.evaluates:
                    metrics = _evaluate(run)
                    with agreeing():
                        report(stop.step, "eval", metrics)
                if stop.saves:
                    with agreeing():
                        run.tidy()
        except _UselessError as error:
            step, what = error.args
            if saved == step:
                saved = run.discard()
            raise DivergedError(step, run.total_steps, saved, what) from None
        # What all workers know of, at the same place: they can still save.
        except signals.StoppedError:
            _keep(run, saved)
            raise
        except SharedError as failure:
            # To save what was learned takes memory and disk as well.
            if not failure.is_shortage:
                _keep(run, saved)
            raise
        # And what the others do not know of.
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError as error:
            if trainer.workers.count > 1:
                raise _lost(error, run, saved) from error
            _keep(run, saved)
            raise run.explain(error) from error


def _lost(error, run, saved):
    """Returns the error of a worker that cannot go on without the others."""
    if not isinstance(error, LOST):
        # To save what was learned would take all of them. They wait inside of
        # a step.
        run.trainer.workers.leave()
        return run.explain(error)
    number, count = run.trainer.workers.number, run.trainer.workers.count
    return UserError(
        f"another worker is gone or does not answer, says worker {number} of "
        f"{count} at step {run.trainer.step}; start all of them again with the "
        f"same command: the run goes on from step {saved}"
    )


def _is_due(step, every, last):
    return every > 0 and (step % every == 0 or step == last)


def _train_until(stop, run, batches, bar):
    """Trains up to a step; returns what was measured on the way."""
    trainer = run.trainer
    start, began, waited = trainer.step, time.perf_counter(), 0.0

    def train_some(num_steps):
        broken_step, waiting = trainer.train(batches, num_steps)
        loss = float(trainer.loss.result())
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        return int(broken_step), float(waiting)

    for section, recording in run.profile.sections(start, stop):
        with recording:
            waited += _in_pieces(section, bar, trainer.workers, train_some)
    seconds = time.perf_counter() - began
    results = trainer.results("train")
    if results["loss"] > LARGEST_LOSS:
        raise _UselessError(stop, f"the loss is {results['loss']:.2g}")
    return {
        **results,
        "images_per_second": (stop - start) * run.batch_size / seconds,
        "input_wait": waited / seconds,
    }


def _evaluate(run):
    metrics = run.measure()
    for name, value in metrics.items():
        # An average of the weights has one of its own.
        if name.endswith("loss") and not math.isfinite(value):
            raise _UselessError(run.trainer.step, NOT_FINITE.format(name))
    return metrics


def _save(run, saved):
    """Saves the run, unless the last update broke it.

    Where there is no room on the disk, training goes on: there may be some the
    next time. Only the last step has no next time.

    Returns:
      The step of the last checkpoint.
    """
    # The loss before that update told nothing of it.
    if not run.trainer.workers.all(run.trainer.is_sound()):
        raise _UselessError(
            run.trainer.step, "weights are beyond all reason or not finite"
        )
    try:
        run.save()
    except SharedError as failure:
        if not failure.is_full_disk or run.trainer.step >= run.total_steps:
            raise
        tqdm.tqdm.write(
            f"warning: the disk is full: step {run.trainer.step} is not saved; "
            f"the checkpoint of step {saved} is kept, and training goes on"
        )
        return saved
    return run.trainer.step


def _keep(run, saved):
    """Saves what was learned before training had to end."""
    # To go on as if it had not ended there, each replica needs its own.
    local_state = run.trainer.local_state()
    run.trainer.average_statistics()
    is_sound = run.trainer.workers.all(run.trainer.is_sound())
    if run.trainer.step > saved and is_sound:
        run.save(local_state)


def evaluate(trainer, batches, num_steps):
    """Measures the model on every example of a split, once.

    Args:
      trainer: a `Trainer`.
      batches: the distributed evaluation batches.
      num_steps: how many batches there are.

    Returns:
      {metric: number}.

    Raises:
      SharedError: a batch could not be read.
      StoppedError: a signal asked one of the workers to stop.
    """
    agreeing = trainer.workers.agreeing
    with agreeing():
        iterator = iter(batches)
    with passing_bar(num_steps, "batch") as bar:

        def evaluate_some(piece):
            with agreeing():
                trainer.evaluate(iterator, piece)
            return -1, 0.0

        _in_pieces(num_steps, bar, trainer.workers, evaluate_some)
    return trainer.results("eval")


def _in_pieces(num_steps, bar, workers, take):
    """Takes steps in pieces of about a second each.

    Args:
      num_steps: how many steps to take altogether.
      bar: a `tqdm` progress bar, moved after every piece.
      workers: a `Workers`; all take the same pieces.
      take: takes as many steps as a scalar tensor says; returns the first that
        broke, or -1, and the seconds that it waited for batches.

    Returns:
      The seconds of all pieces together.

    Raises:
      StoppedError: a signal asked one of the workers to stop.
    """
    piece, waited = 1, 0.0
    while num_steps > 0:
        piece = min(piece, num_steps)
        began = time.perf_counter()
        broken_step, waiting = take(tf.constant(piece))
        seconds = time.perf_counter() - began
        waited += waiting
        signal = signals.noted()
        seconds, stops, breaks, broken_steps = workers.sums(
            seconds, signal is not None, broken_step >= 0, max(broken_step, 0)
        )
        if breaks:
            step = round(broken_steps / breaks)
            raise _UselessError(step, NOT_FINITE.format("loss"))
        num_steps -= piece
        bar.update(piece)
        if stops:
            raise signals.StoppedError(signal or SIGTERM)
        seconds /= workers.count
        if seconds < SECONDS_PER_CALL / 2:
            piece *= 2
        elif seconds > SECONDS_PER_CALL * 2:
            piece = max(piece // 2, 1)
    return waited
