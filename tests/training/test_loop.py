"""The order of things between the steps."""

import dataclasses
import errno
import itertools
import os
import signal
import types

import pytest
import tensorflow as tf
from samples import ALONE, together

from train_loop import UserError
from train_loop.data.batches import Batching
from train_loop.process import StoppedError, recording_signals
from train_loop.training import loop
from train_loop.training.checkpoints import Evaluations, SkippedBatches
from train_loop.training.workers import SharedError, Workers
from train_loop.workdir import append_json_line

# Times that are exact in binary.
SECONDS_PER_STEP = 0.5
SECONDS_WAITED = 0.125
NAN = {"loss": float("nan")}


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock that only the fake trainer's steps advance."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        loop, "time", types.SimpleNamespace(perf_counter=lambda: clock.now)
    )
    return clock


@dataclasses.dataclass
class FakeTrainer:
    """Counts steps and records the order of calls."""

    log: list
    clock: types.SimpleNamespace
    step: int = 0
    breaks_at: int | None = None
    unreadable_at: int | None = None
    finite: bool = True
    train_loss: float = 1.0
    signalled_at: int | None = None
    num_traces: int = 1
    seconds_per_step: float = SECONDS_PER_STEP
    workers: Workers = ALONE

    def __post_init__(self):
        self.loss = tf.keras.metrics.Mean()

    def train(self, batches, num_steps):
        assert next(batches) == "batch"
        for _ in range(int(num_steps)):
            self.clock.now += self.seconds_per_step
            self.step += 1
            if self.step == self.breaks_at:
                return tf.constant(self.step), tf.constant(0.0)
            if self.step == self.signalled_at:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.step == self.unreadable_at:
                self.step -= 1
                raise tf.errors.InvalidArgumentError(None, None, "broken")
        return tf.constant(-1), tf.constant(SECONDS_WAITED * int(num_steps))

    def evaluate(self, batches, num_steps):
        for _ in range(int(num_steps)):
            self.log.append(next(batches))

    def results(self, split):
        return {"loss": self.train_loss, "split": split}

    def replica_state(self):
        return f"local of {self.step}"

    def is_finite(self):
        return self.finite

    def average_statistics(self):
        self.log.append(("average", self.step))


@dataclasses.dataclass
class FakeCheckpoints:
    """Records its calls in a log."""

    log: list
    workers: Workers = ALONE
    full_at: tuple = ()
    fails_at: int | None = None

    def save(self, step, *replica_state):
        with self.workers.agreeing():
            if step in self.full_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            if step == self.fails_at:
                raise PermissionError
        self.log.append(("save", step, *replica_state))
        self.step = step

    def remove_old(self):
        self.log.append(("remove old",))

    def discard(self):
        self.log.append(("discard",))
        return 0


CADENCE = loop.Cadence(steps=10, report=2, evaluate=4, save=5)


@pytest.fixture
def train(clock, tmp_path):
    """Returns a function that trains: options of a trainer -> (log, metrics).

    Evaluations are those in the file `train.path`, and those that it makes.
    """

    def train(
        cadence=CADENCE,
        eval_metrics=({"loss": 1.0, "ema_loss": 1.0},),
        full_at=(),
        patience=None,
        **options,
    ):
        log, metrics = train.log, []
        trainer = FakeTrainer(log, clock, **options)
        checkpoints = FakeCheckpoints(log, full_at=full_at)
        results = itertools.chain(
            eval_metrics, itertools.repeat(eval_metrics[-1])
        )

        def evaluate():
            log.append(("evaluate", trainer.step))
            result = next(results)
            with trainer.workers.agreeing():
                if isinstance(result, Exception):
                    raise result
            return result

        def report(step, split, numbers):
            log.append((f"report {split}", step))
            metrics.append(numbers)
            record = {**numbers, "step": step, "split": split}
            append_json_line(train.path, record)

        loop.train(
            trainer,
            iter(lambda: "batch", None),
            cadence,
            checkpoints,
            evaluate,
            Evaluations(train.path, "loss", patience),
            report,
        )
        return log, metrics

    train.log, train.path = [], tmp_path / "metrics.jsonl"
    return train


@pytest.mark.parametrize(
    ("step", "last", "cadence", "stops"),
    [
        (
            0,
            10,
            (2, 4, 5),
            ["2", "4 evaluate", "5 save", "6", "8 evaluate"]
            + ["10 evaluate save"],
        ),
        # A resumed run stops at the same steps as an uninterrupted one.
        (7, 10, (2, 4, 5), ["8 evaluate", "10 evaluate save"]),
        (8, 10, (2, 4, 5), ["10 evaluate save"]),
        # All at once.
        (0, 6, (3, 3, 3), ["3 evaluate save", "6 evaluate save"]),
        # The last step is always reported, evaluated and saved.
        (0, 3, (100, 100, 100), ["3 evaluate save"]),
        (
            0,
            5,
            (100, 2, 3),
            ["2 evaluate", "3 save", "4 evaluate"] + ["5 evaluate save"],
        ),
        (0, 3, (1, 100, 100), ["1", "2", "3 evaluate save"]),
        # Evaluations are saved.
        (
            0,
            5,
            (100, 2, 3, True),
            ["2 evaluate save", "3 save", "4 evaluate save"]
            + ["5 evaluate save"],
        ),
        # Without evaluation images.
        (0, 5, (100, 0, 3), ["3 save", "5 save"]),
        # Done.
        (10, 10, (2, 4, 5), []),
        (12, 10, (2, 4, 5), []),
        (0, 0, (2, 4, 5), []),
    ],
)
def test_stops_are_the_steps_of_the_cadence(step, last, cadence, stops):
    found = loop.Cadence(last, *cadence).stops(step)
    texts = [
        f"{stop.step}{' evaluate' * stop.evaluates}{' save' * stop.saves}"
        for stop in found
    ]
    assert texts == stops


def test_train_report_save_evaluate_report(train):
    log, _ = train()
    assert log == [
        ("report train", 2),
        ("average", 2),
        ("report train", 4),
        ("average", 4),
        ("evaluate", 4),
        ("report eval", 4),
        ("report train", 5),
        ("average", 5),
        ("save", 5),
        ("remove old",),
        ("report train", 6),
        ("average", 6),
        ("report train", 8),
        ("average", 8),
        ("evaluate", 8),
        ("report eval", 8),
        ("report train", 10),
        ("average", 10),
        # A signal during a long evaluation loses nothing.
        ("save", 10),
        ("evaluate", 10),
        ("report eval", 10),
        # Until then, the newest checkpoint may be discarded.
        ("remove old",),
    ]


@pytest.mark.parametrize("step", [8, 10])
def test_pending_evaluation_comes_first(train, step):
    log, metrics = train(step=step)
    assert log[:3] == [
        ("evaluate", step),
        ("report eval", step),
        ("remove old",),
    ]
    assert log.count(("evaluate", step)) == 1
    assert metrics[0] == {"loss": 1.0, "ema_loss": 1.0}


def test_run_resumes_at_the_trainers_step(train):
    log, _ = train(step=7)
    assert log[0] == ("report train", 8)
    assert ("save", 5) not in log


def test_finished_run_does_nothing(train):
    append_json_line(train.path, {"step": 10, "split": "eval", "loss": 1.0})
    log, _ = train(step=10)
    assert log == []


def test_speed_and_waiting_are_measured(train):
    _, metrics = train(loop.Cadence(10, 5, 100, 100))
    for numbers in metrics[:2]:
        assert numbers == {
            "loss": 1.0,
            "split": "train",
            "steps_per_second": 1 / SECONDS_PER_STEP,
            "input_wait": SECONDS_WAITED / SECONDS_PER_STEP,
        }
    assert metrics[2:] == [{"loss": 1.0, "ema_loss": 1.0}]


@pytest.mark.parametrize(
    ("seconds_per_step", "calls"),
    [
        # The number doubles while a call takes less than half a second.
        (0.01, [1, 2, 4, 8, 16, 32, 37]),
        (0.25, [1, 2, *[2] * 48, 1]),
        (60.0, [1] * 100),
    ],
)
def test_calls_take_about_a_second(train, monkeypatch, seconds_per_step, calls):
    taken = []
    take = FakeTrainer.train

    def train_some(self, batches, num_steps):
        taken.append(int(num_steps))
        return take(self, batches, num_steps)

    monkeypatch.setattr(FakeTrainer, "train", train_some)
    cadence = loop.Cadence(100, 100, 100, 100)
    train(cadence, seconds_per_step=seconds_per_step)
    assert taken == calls


@pytest.mark.parametrize(
    ("options", "step", "kept"),
    [
        ({"breaks_at": 3}, 3, "There is no checkpoint yet"),
        ({"breaks_at": 7}, 7, "The checkpoint of step 5 is kept"),
        ({"breaks_at": 7, "step": 6}, 7, "The checkpoint of step 6 is kept"),
        ({"eval_metrics": [NAN]}, 4, "There is no checkpoint yet"),
        ({"finite": False}, 5, "There is no checkpoint yet"),
    ],
)
def test_diverged_weights_are_never_saved(train, options, step, kept):
    with pytest.raises(UserError, match=f"at step {step} of 10: .* {kept}"):
        train(**options)
    assert not {("save", n) for n in range(step, 11)} & {*train.log}


@pytest.mark.parametrize(("start", "step"), [(9, 10), (10, 10), (8, 8)])
def test_checkpoint_whose_evaluation_is_not_finite_is_discarded(
    train, start, step
):
    """Also if the evaluation was pending."""
    kept = "There is no checkpoint yet"
    with pytest.raises(UserError, match=f"at step {step} of 10: .* {kept}"):
        train(eval_metrics=[NAN], step=start)
    assert train.log[-1] == ("discard",)


def test_average_that_is_not_finite_is_discarded_too(train):
    with pytest.raises(
        UserError, match="at step 4 of 10: ema_loss is not finite"
    ):
        train(eval_metrics=[{"loss": 1.0, "ema_loss": float("inf")}])


def test_error_in_the_first_phase_reports_the_last_step_of_the_run(train):
    cadence = CADENCE._replace(steps=30, phase_end=10)
    with pytest.raises(UserError, match="at step 7 of 30: loss is not finite"):
        train(cadence, breaks_at=7)


def test_steps_before_a_broken_image_are_saved(train):
    with pytest.raises(loop.BatchError):
        train(unreadable_at=8)
    assert train.log[-2:] == [("average", 7), ("save", 7, "local of 7")]


def test_steps_before_a_broken_image_of_the_evaluation_are_saved(train):
    with pytest.raises(UserError, match="eval.png"):
        train(eval_metrics=[UserError("eval.png is broken")])
    assert train.log[-2:] == [("average", 4), ("save", 4, "local of 4")]


def test_signal_stops_training_after_the_step(train, default_signals):
    with pytest.raises(StoppedError), recording_signals():
        train(signalled_at=7)
    # With the state of each replica, not their mean.
    assert train.log[-2:] == [("average", 7), ("save", 7, "local of 7")]


def test_evaluation_is_stopped_between_batches(clock, default_signals):
    trainer = FakeTrainer([], clock, seconds_per_step=60)
    with recording_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError):
            loop.evaluate(trainer, range(11), 11)
    assert trainer.log == [0]


def test_run_ends_without_improvement(train):
    losses = [{"loss": loss} for loss in (3.0, 2.0, 2.5, 2.1, 1.0)]
    cadence = loop.Cadence(100, 2, 2, 2)
    log, _ = train(cadence, losses, patience=2)
    assert log[-2:] == [("report eval", 8), ("remove old",)]
    # Also after a restart; with more patience it continues.
    log.clear()
    train(cadence, patience=2, step=8)
    assert log == []
    train(cadence, losses[4:], patience=3, step=8)
    assert log[-2] == ("report eval", 16)


@pytest.fixture
def roll_back(clock, tmp_path):
    """Returns a function that rolls back from (step, saved)."""
    batching = Batching(4)

    def roll_back(step, saved, limit=2):
        skipped = SkippedBatches(tmp_path / "skipped.jsonl", limit)
        trainer = FakeTrainer([], clock, step)
        checkpoints = types.SimpleNamespace(resume=trainer.log.append)
        error = loop.DivergedError(step, 10, saved, "loss is not finite")
        batch_of = batching._replace(skipped=skipped.numbers).batch_of
        loop.roll_back(error, skipped, batch_of, checkpoints, trainer)
        assert trainer.log == [trainer]
        return skipped.records()

    return roll_back


def test_rollback_skips_the_last_two_batches(roll_back, capsys):
    assert roll_back(3, 2) == [{"step": 3, "batches": [2]}]
    [_, record] = roll_back(6, 4)
    # The fifth and sixth step; an earlier batch was skipped before.
    assert record == {"step": 6, "batches": [5, 6]}
    assert "without the images of step 5 and 6." in (capsys.readouterr().out)
    with pytest.raises(UserError, match="rolled back 2 times already"):
        roll_back(7, 4)


@pytest.mark.parametrize(("saved", "limit"), [(0, 2), (4, 0)])
def test_rollback_requires_a_checkpoint_and_a_limit(roll_back, saved, limit):
    with pytest.raises(loop.DivergedError):
        roll_back(5, saved, limit)


def test_training_continues_while_the_disk_is_full(train, capsys):
    cadence = loop.Cadence(11, 1, 0, 5)
    train(cadence, full_at=(5,))
    assert [each for each in train.log if each[0] == "save"] == [
        ("save", 10),
        ("save", 11),
    ]
    assert (
        "disk full: step 5 is not saved. The checkpoint of step 0 is "
        "kept" in capsys.readouterr().out
    )
    with pytest.raises(OSError, match="No space left"):
        train(cadence._replace(steps=10), full_at=(5, 10))


@pytest.mark.parametrize("is_full", [True, False])
def test_workers_continue_together_if_one_disk_is_full(clock, is_full):
    """From the same checkpoint, or all end."""

    def save(workers):
        trainer = FakeTrainer([], clock, 5, workers=workers)
        checkpoints = FakeCheckpoints([], workers)
        if workers.is_chief:
            checkpoints.full_at = (5,)
        elif not is_full:
            checkpoints.fails_at = 5
        return loop._save(trainer, checkpoints, CADENCE, 3)

    if is_full:
        assert together(save) == [3, 3]
    else:
        with pytest.raises(SharedError):
            together(save)


@pytest.mark.parametrize("number", [0, 1])
def test_unreadable_batch_of_one_worker_ends_all_evaluations(
    clock, tmp_path, number
):
    """Between two batches; then all save a checkpoint."""

    def broken():
        yield "batch"
        raise ValueError("broken")

    def log_of(workers):
        is_broken = workers.number == number
        batches = broken() if is_broken else ["batch"] * 9
        trainer = FakeTrainer([], clock, workers=workers)
        kind = ValueError if is_broken else UserError
        with pytest.raises(kind, match=r"broken|another worker failed"):
            loop.train(
                trainer,
                iter(lambda: "batch", None),
                CADENCE,
                FakeCheckpoints(trainer.log, workers),
                lambda: loop.evaluate(trainer, batches, 9),
                Evaluations(tmp_path / "none.jsonl"),
                lambda *_: None,
            )
        return trainer.log

    for log in together(log_of):
        assert log[-2:] == [("average", 4), ("save", 4, "local of 4")]


def test_repeated_tracing_warns_once(train, capsys):
    train(num_traces=3)
    [line] = capsys.readouterr().out.splitlines()
    assert "was traced 3 times up to step 2" in line


@pytest.mark.parametrize("loss", [1.1e4, float("inf")])
def test_diverged_loss_is_never_saved(train, loss):
    with pytest.raises(loop.DivergedError, match="at step 6 of 10") as error:
        train(train_loss=loss, step=5)
    assert (error.value.step, error.value.saved) == (6, 5)
    assert train.log == []


def test_nothing_is_saved_without_memory_or_disk(train):
    full = tf.errors.ResourceExhaustedError(None, None, "No space left")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(eval_metrics=[full])
    assert train.log[-1] == ("evaluate", 4)


@pytest.mark.parametrize("options", [{"step": 7}, {"finite": False}])
def test_error_saves_only_new_finite_weights(train, options):
    with pytest.raises(loop.BatchError):
        train(unreadable_at=options.get("step", 1) + 1, **options)
    assert "save" not in [name for name, *_ in train.log]


def test_evaluation_uses_every_batch(clock):
    trainer = FakeTrainer([], clock)
    metrics = loop.evaluate(trainer, range(11), 11)
    assert trainer.log == list(range(11))
    assert metrics == {"loss": 1.0, "split": "eval"}
