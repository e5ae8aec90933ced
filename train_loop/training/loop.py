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

# Approximate time of one call of the devices, after which the bar moves.
SECONDS_PER_CALL = 1.0
# In nats: a label of probability exp(-10,000) means divergence.
LARGEST_LOSS = 1e4
NOT_FINITE = "{} is not finite"


class Cadence(NamedTuple):
    """The steps of reports, evaluations and checkpoints.

    `report`, `evaluate` and `save` are the numbers of steps between two of
    them; 0 for never. `steps` is the last step of the run, `phase_end` that of
    the current phase, if there are several. With `keep_evaluated`, every
    evaluation is saved too. `profile` has the steps to profile.
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
        # Metrics are reported before every save, so that no partial mean has to
        # survive a restart.
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
    """A step with a report, and whether it saves and evaluates."""

    step: int
    saves: bool
    evaluates: bool


class DivergedError(UserError):
    """Training diverged: numbers are not finite, or too large.

    Args:
      step: step where it was detected.
      steps: steps of the whole run.
      saved: step of the last good checkpoint; 0 without one.
      what: description of the numbers.
    """

    def __init__(self, step, steps, saved, what):
        kept = f"The checkpoint of step {saved} is kept"
        if saved == 0:
            kept = "There is no checkpoint yet"
        super().__init__(
            f"training diverged at step {step} of {steps}: {what}. {kept}. "
            "Use a lower --learning_rate, a longer --warmup_epochs or "
            "--clip_norm."
        )
        self.step = step
        self.saved = saved
        self.what = what


class BatchError(Exception):
    """A training batch could not be read; its cause says why."""


class _NotFiniteError(Exception):
    """A number is not finite, or too large; with the step and a description."""


@unshared()
def train(
    trainer, batches, cadence, checkpoints, evaluate, evaluations, report
):
    """Trains to the last step of a cadence.

    At every stop: train, report; save; evaluate, report; remove checkpoints.

    Args:
      trainer: a `Trainer` at the step to resume from.
      batches: distributed training batches from that step on.
      cadence: a `Cadence`.
      checkpoints: a `Checkpoints` of the trainer.
      evaluate: returns {metric: number} of the evaluation split.
      evaluations: the `Evaluations` that were reported.
      report: called with (step, split, metrics).

    Raises:
      DivergedError: the loss, the gradients or the weights are not finite, or
        too large.
      StoppedError: a signal arrived; a checkpoint is saved.
      BatchError: a batch cannot be read; a checkpoint is saved.
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
                # First: an evaluation may take long, and be interrupted.
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
        # All workers have these errors at the same place: they can still save.
        except process.StoppedError:
            _keep(trainer, checkpoints, saved)
            raise
        except SharedError as failure:
            # A checkpoint needs memory and disk as well.
            if not failure.is_shortage:
                _keep(trainer, checkpoints, saved)
            raise
        # Errors that the other workers do not have.
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError as error:
            if trainer.workers.count == 1:
                _keep(trainer, checkpoints, saved)
            elif isinstance(error, LOST_WORKER_ERRORS):
                raise _lost(trainer, saved) from error
            else:
                # A checkpoint needs all workers; the others wait in a step.
                trainer.workers.abort()
            raise BatchError from error


def is_finished(trainer, cadence, evaluations):
    """Tells whether training has reached the end of a cadence."""
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
    """Tells whether evaluations have run out of patience."""
    if evaluations.patience is None:
        return False
    has_stopped = evaluations.have_stopped_improving(trainer.step)
    # The chief has written the last one.
    return bool(trainer.workers.from_chief(has_stopped))


@unshared()
def roll_back(error, skipped, batch_of, checkpoints, trainer):
    """Returns to the last checkpoint, and skips the batches that diverged.

    These are the batch where it was detected, and the one before it, which
    updated the weights.

    Args:
      error: the `DivergedError`.
      skipped: `SkippedBatches`, which get a record.
      batch_of: maps a step, from 0, to the number of its batch.
      checkpoints: a `Checkpoints` of the trainer.
      trainer: the `Trainer` that diverged.

    Raises:
      DivergedError: rollback is off, or there is no checkpoint.
      UserError: the limit of rollbacks is reached.
    """
    before = len(skipped.records())
    if not skipped.limit or error.saved == 0:
        raise error
    if before >= skipped.limit:
        raise UserError(
            f"{error} The run has rolled back {before} times already "
            "(--max_rollbacks)."
        ) from error
    steps = [s for s in (error.step - 1, error.step) if s > error.saved]
    numbers = [batch_of(step - 1) for step in steps]
    # All workers have read the records before the chief adds one.
    trainer.workers.barrier()
    with trainer.workers.agreeing():
        if trainer.workers.is_chief:
            skipped.add(error.step, numbers)
    tqdm.tqdm.write(
        f"rollback {before + 1} of {skipped.limit}: {error.what} at step "
        f"{error.step}. Resuming from the checkpoint of step {error.saved}, "
        f"without the images of step {' and '.join(map(str, steps))}."
    )
    trainer.results("train")
    checkpoints.resume(trainer)


def _lost(trainer, saved):
    """Returns the error of a worker that cannot continue without the others."""
    number, count = trainer.workers.number, trainer.workers.count
    return UserError(
        f"worker {number} of {count}: another worker has stopped or does not "
        f"respond at step {trainer.step}. Start all workers again with the "
        f"same command; the run resumes from step {saved}."
    )


def _warn_of_traces(trainer, traces):
    if trainer.num_traces > traces:
        traces = trainer.num_traces
        tqdm.tqdm.write(
            f"warning: the training step was traced {traces} times up to step "
            f"{trainer.step}, which costs time and memory. Once is enough."
        )
    return traces


def _train_sections(sections, trainer, batches, bar):
    """Trains sections of steps, see `Profile`; returns the metrics."""
    start, began, waited = trainer.step, time.perf_counter(), 0.0

    def train_some(num_steps):
        broken_step, waiting = trainer.train(batches, num_steps)
        loss = float(trainer.loss.result())
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        return int(broken_step), float(waiting)

    for section, recording in sections:
        with recording:
            waited += _in_calls(section, bar, trainer.workers, train_some)
    seconds = time.perf_counter() - began
    results, step = trainer.results("train"), trainer.step
    if results["loss"] > LARGEST_LOSS:
        raise _NotFiniteError(step, f"loss is {results['loss']:.2g}")
    return {
        **results,
        "steps_per_second": (step - start) / seconds,
        "input_wait": waited / seconds,
    }


def _evaluate(trainer, evaluate):
    metrics = evaluate()
    for name, value in metrics.items():
        # Averaged weights have their own loss.
        if name.endswith("loss") and not math.isfinite(value):
            raise _NotFiniteError(trainer.step, NOT_FINITE.format(name))
    return metrics


def _save(trainer, checkpoints, cadence, saved):
    """Saves a checkpoint, unless the last update made weights diverge.

    If the disk is full, training continues: there may be room for the next
    checkpoint. Only the last step has no next one.

    Returns:
      The step of the last checkpoint.
    """
    # The loss was computed before that update.
    if not trainer.workers.all(trainer.is_finite()):
        raise _NotFiniteError(
            trainer.step, "weights are not finite or too large"
        )
    try:
        checkpoints.save(trainer.step)
    except SharedError as failure:
        if not failure.is_full_disk or trainer.step >= cadence.steps:
            raise
        tqdm.tqdm.write(
            f"warning: disk full: step {trainer.step} is not saved. The "
            f"checkpoint of step {saved} is kept, and training continues."
        )
        return saved
    return trainer.step


def _keep(trainer, checkpoints, saved):
    """Saves a checkpoint before training ends early."""
    # To resume bitwise identically, each replica needs its own state.
    replica_state = trainer.replica_state()
    trainer.average_statistics()
    is_finite = trainer.workers.all(trainer.is_finite())
    if trainer.step > saved and is_finite:
        checkpoints.save(trainer.step, replica_state)


def evaluate(trainer, batches, num_steps, explain=None):
    """Evaluates the model on every example of a split, once.

    Args:
      trainer: a `Trainer`.
      batches: distributed evaluation batches.
      num_steps: number of batches.
      explain: maps an error of reading to the error to raise instead.

    Returns:
      {metric: number}.

    Raises:
      SharedError: a batch could not be read.
      StoppedError: a signal reached one of the workers.
    """
    agreeing = trainer.workers.agreeing
    with agreeing(explain):
        iterator = iter(batches)
    with transient_bar(num_steps, "batch") as bar:

        def evaluate_some(num_steps):
            with agreeing(explain):
                trainer.evaluate(iterator, num_steps)
            return -1, 0.0

        _in_calls(num_steps, bar, trainer.workers, evaluate_some)
    return trainer.results("eval")


def _in_calls(num_steps, bar, workers, take):
    """Takes steps in calls of about a second each.

    Args:
      num_steps: number of steps in all calls together.
      bar: a `tqdm` progress bar, moved after every call.
      workers: the `Workers`; all make the same calls.
      take: takes a scalar tensor of steps; returns the first step that
        diverged, or -1, and the seconds spent waiting for batches.

    Returns:
      The seconds spent waiting in all calls together.

    Raises:
      StoppedError: a signal reached one of the workers.
    """
    size, waited = 1, 0.0
    while num_steps > 0:
        size = min(size, num_steps)
        began = time.perf_counter()
        broken_step, waiting = take(tf.constant(size))
        seconds = time.perf_counter() - began
        waited += waiting
        signal = process.received()
        seconds, stops, breaks, broken_steps = workers.sums(
            seconds, signal is not None, broken_step >= 0, max(broken_step, 0)
        )
        if breaks:
            step = round(broken_steps / breaks)
            raise _NotFiniteError(step, NOT_FINITE.format("loss"))
        num_steps -= size
        bar.update(size)
        if stops:
            raise process.StoppedError(signal or SIGTERM)
        seconds /= workers.count
        if seconds < SECONDS_PER_CALL / 2:
            size *= 2
        elif seconds > SECONDS_PER_CALL * 2:
            size = max(size // 2, 1)
    return waited
