"""What happens between the steps: reports, evaluations, checkpoints."""

import math
import time
from signal import SIGTERM
from typing import NamedTuple

import tensorflow as tf
import tqdm

from train_loop import process
from train_loop.console import progress_bar, transient_bar
from train_loop.errors import UserError
from train_loop.training.reports import NO_PROFILE, Profile
from train_loop.training.workers import (
    LOST_WORKER_ERRORS,
    SharedError,
    unshared,
)

# The devices are left alone for about this long before the progress bar moves.
SECONDS_PER_CALL = 1.0
# Nats. A label whose probability is exp(-10,000) was not learned any more.
LARGEST_LOSS = 1e4
NOT_FINITE = "the {} is not finite"


class Cadence(NamedTuple):
    """At which steps things happen.

    `report`, `evaluate` and `save` are numbers of steps between two of these;
    0 for never. `steps` is the last step of the run, `phase_end` the last of a
    phase of it, if it has several. With `keep_evaluated`, what is evaluated is
    saved too. `profile` has the steps that are recorded.
    """

    steps: int
    report: int
    evaluate: int
    save: int
    keep_evaluated: bool = False
    phase_end: int | None = None
    profile: Profile = NO_PROFILE

    @property
    def end(self):
        """The last step to train."""
        return self.phase_end or self.steps

    def stops(self, step):
        """Yields the `Stop`s after a step, up to the last one."""
        # Numbers are always reported before a save, so that no half-counted
        # average has to survive a restart.
        cycles = [n for n in (self.report, self.evaluate, self.save) if n]
        while step < self.end:
            nearest = min((step // each + 1) * each for each in cycles)
            step = min(nearest, self.end)
            yield self.stop(step)

    def stop(self, step):
        """Returns the `Stop` at a step."""
        evaluates = self._is_due(step, self.evaluate)
        saves = self._is_due(step, self.save)
        return Stop(
            step, saves or (self.keep_evaluated and evaluates), evaluates
        )

    def _is_due(self, step, every):
        return every > 0 and (step % every == 0 or step == self.end)


class Stop(NamedTuple):
    """A step at which training is reported, and what else happens there."""

    step: int
    saves: bool
    evaluates: bool


class DivergedError(UserError):
    """Training came to numbers that are not finite, or too large.

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


class BatchError(Exception):
    """A training batch could not be read; its cause says why."""


class _NotFiniteError(Exception):
    """What is not finite, or too large, and at which step."""


@unshared()
def train(
    trainer, batches, cadence, checkpoints, evaluate, evaluations, report
):
    """Trains to the last step of a cadence.

    At every stop: train, report; save; evaluate, report; remove old.

    Args:
      trainer: a `Trainer` at the step to resume from.
      batches: the distributed training batches from that step on.
      cadence: a `Cadence`.
      checkpoints: a `Checkpoints` of the trainer.
      evaluate: returns {metric: number} of the evaluation split.
      evaluations: an `Evaluations` of what was reported.
      report: called with (step, split, metrics).

    Raises:
      DivergedError: the loss, the gradients or the weights are not finite, or
        too large.
      StoppedError: a signal asked to stop; everything learned is saved.
      BatchError: a batch cannot be read; the same holds.
    """
    saved, traces, agreeing = trainer.step, 1, trainer.workers.agreeing
    batches = iter(batches)
    with progress_bar(cadence.steps, initial=saved) as bar:
        try:
            if evaluation_is_pending(trainer, cadence, evaluations):
                metrics = _evaluate(trainer, evaluate)
                with agreeing():
                    report(saved, "eval", metrics)
                checkpoints.remove_old()
            for stop in cadence.stops(saved):
                if _has_stopped_improving(trainer, evaluations):
                    break
                sections = cadence.profile.sections(trainer.step, stop.step)
                metrics = _train_sections(sections, trainer, batches, bar)
                traces = _warn_of_traces(trainer, traces)
                with agreeing():
                    report(stop.step, "train", metrics)
                trainer.average_statistics()
                # First: an evaluation may take long, and be stopped.
                if stop.saves:
                    saved = _save(trainer, checkpoints, cadence, saved)
                if stop.evaluates:
                    metrics = _evaluate(trainer, evaluate)
                    with agreeing():
                        report(stop.step, "eval", metrics)
                if stop.saves:
                    checkpoints.remove_old()
        except _NotFiniteError as error:
            step, what = error.args
            if saved == step:
                saved = checkpoints.discard()
            raise DivergedError(step, cadence.steps, saved, what) from None
        # What all workers know of, at the same place: they can still save.
        except process.StoppedError:
            _keep(trainer, checkpoints, saved)
            raise
        except SharedError as failure:
            # To save what was learned takes memory and disk as well.
            if not failure.is_shortage:
                _keep(trainer, checkpoints, saved)
            raise
        # And what the others do not know of.
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError as error:
            if trainer.workers.count == 1:
                _keep(trainer, checkpoints, saved)
            elif isinstance(error, LOST_WORKER_ERRORS):
                raise _lost(trainer, saved) from error
            else:
                # To save would take all workers. The others wait in a step.
                trainer.workers.abort()
            raise BatchError from error


def is_finished(trainer, cadence, evaluations):
    """Tells whether nothing is left to do up to the end of a cadence."""
    is_over = trainer.step >= cadence.end or _has_stopped_improving(
        trainer, evaluations
    )
    return is_over and not evaluation_is_pending(trainer, cadence, evaluations)


def evaluation_is_pending(trainer, cadence, evaluations):
    """Tells whether the run was stopped between a save and its evaluation."""
    step = trainer.step
    is_pending = (
        step > 0 and cadence.stop(step).evaluates and not evaluations.has(step)
    )
    return bool(trainer.workers.from_chief(is_pending))


def _has_stopped_improving(trainer, evaluations):
    """Tells whether evaluations say that it is enough."""
    if evaluations.patience is None:
        return False
    has_stopped = evaluations.have_stopped_improving(trainer.step)
    # The chief has written the last of them.
    return bool(trainer.workers.from_chief(has_stopped))


@unshared()
def roll_back(error, skipped, batch_of, checkpoints, trainer):
    """Returns to the last checkpoint, and skips the batches that diverged.

    These are the batch at which it showed, and the one before, which made the
    weights that showed it.

    Args:
      error: the `DivergedError`.
      skipped: a `SkippedBatches`, to which they are added.
      batch_of: maps a step, from 0, to the number of its batch.
      checkpoints: a `Checkpoints` of the trainer.
      trainer: the `Trainer` that diverged.

    Raises:
      DivergedError: rolling back is not wanted, or not possible.
      UserError: it was in vain too often.
    """
    before = len(skipped.records())
    if not skipped.limit or error.saved == 0:
        raise error
    if before >= skipped.limit:
        raise UserError(
            f"{error}. It was gone back {before} times already "
            "(--max_rollbacks)"
        ) from error
    steps = [s for s in (error.step - 1, error.step) if s > error.saved]
    numbers = [batch_of(step - 1) for step in steps]
    # All have read what was there before the chief writes more.
    trainer.workers.barrier()
    with trainer.workers.agreeing():
        if trainer.workers.is_chief:
            skipped.add(error.step, numbers)
    tqdm.tqdm.write(
        f"{error.what} at step {error.step}: going on from the checkpoint "
        f"of step {error.saved}, without the images of step "
        f"{' and '.join(map(str, steps))} (rollback {before + 1} of "
        f"{skipped.limit})"
    )
    trainer.results("train")
    checkpoints.resume(trainer)


def _lost(trainer, saved):
    """Returns the error of a worker that cannot continue without the others."""
    number, count = trainer.workers.number, trainer.workers.count
    return UserError(
        f"another worker is gone or does not answer, says worker {number} of "
        f"{count} at step {trainer.step}; start all of them again with the "
        f"same command: the run goes on from step {saved}"
    )


def _warn_of_traces(trainer, traces):
    if trainer.num_traces > traces:
        traces = trainer.num_traces
        tqdm.tqdm.write(
            f"warning: the training step was traced {traces} times by step "
            f"{trainer.step}, which takes long and memory; once is enough"
        )
    return traces


def _train_sections(sections, trainer, batches, bar):
    """Trains sections of steps, see `Profile`; returns what was measured."""
    start, began, waited = trainer.step, time.perf_counter(), 0.0

    def train_some(num_steps):
        broken_step, waiting = trainer.train(batches, num_steps)
        loss = float(trainer.loss.result())
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        return int(broken_step), float(waiting)

    for section, recording in sections:
        with recording:
            waited += _in_pieces(section, bar, trainer.workers, train_some)
    seconds = time.perf_counter() - began
    results, step = trainer.results("train"), trainer.step
    if results["loss"] > LARGEST_LOSS:
        raise _NotFiniteError(step, f"the loss is {results['loss']:.2g}")
    return {
        **results,
        "steps_per_second": (step - start) / seconds,
        "input_wait": waited / seconds,
    }


def _evaluate(trainer, evaluate):
    metrics = evaluate()
    for name, value in metrics.items():
        # An average of the weights has one of its own.
        if name.endswith("loss") and not math.isfinite(value):
            raise _NotFiniteError(trainer.step, NOT_FINITE.format(name))
    return metrics


def _save(trainer, checkpoints, cadence, saved):
    """Saves a checkpoint, unless the last update broke the weights.

    Where there is no room on the disk, training continues: there may be some
    the next time. Only the last step has no next time.

    Returns:
      The step of the last checkpoint.
    """
    # The loss before that update told nothing of it.
    if not trainer.workers.all(trainer.is_finite()):
        raise _NotFiniteError(
            trainer.step, "weights are beyond all reason or not finite"
        )
    try:
        checkpoints.save(trainer.step)
    except SharedError as failure:
        if not failure.is_full_disk or trainer.step >= cadence.steps:
            raise
        tqdm.tqdm.write(
            f"warning: the disk is full: step {trainer.step} is not saved; "
            f"the checkpoint of step {saved} is kept, and training goes on"
        )
        return saved
    return trainer.step


def _keep(trainer, checkpoints, saved):
    """Saves what was learned before training had to end."""
    # To resume as if it had not ended there, each replica needs its own.
    replica_state = trainer.replica_state()
    trainer.average_statistics()
    is_finite = trainer.workers.all(trainer.is_finite())
    if trainer.step > saved and is_finite:
        checkpoints.save(trainer.step, replica_state)


def evaluate(trainer, batches, num_steps, explain=None):
    """Measures the model on every example of a split, once.

    Args:
      trainer: a `Trainer`.
      batches: the distributed evaluation batches.
      num_steps: how many batches there are.
      explain: returns the error to raise in place of one of reading.

    Returns:
      {metric: number}.

    Raises:
      SharedError: a batch could not be read.
      StoppedError: a signal asked one of the workers to stop.
    """
    agreeing = trainer.workers.agreeing
    with agreeing(explain):
        iterator = iter(batches)
    with transient_bar(num_steps, "batch") as bar:

        def evaluate_some(piece):
            with agreeing(explain):
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
        signal = process.received()
        seconds, stops, breaks, broken_steps = workers.sums(
            seconds, signal is not None, broken_step >= 0, max(broken_step, 0)
        )
        if breaks:
            step = round(broken_steps / breaks)
            raise _NotFiniteError(step, NOT_FINITE.format("loss"))
        num_steps -= piece
        bar.update(piece)
        if stops:
            raise process.StoppedError(signal or SIGTERM)
        seconds /= workers.count
        if seconds < SECONDS_PER_CALL / 2:
            piece *= 2
        elif seconds > SECONDS_PER_CALL * 2:
            piece = max(piece // 2, 1)
    return waited
