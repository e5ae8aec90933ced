"""The order of things between the steps."""

import dataclasses
import errno
import os
import signal
import types

import pytest
import tensorflow as tf
from samples import ALONE, together

from train_loop import UserError
from train_loop.training import loop
from train_loop.training.reports import NO_PROFILE, Profile
from train_loop.training.signals import StoppedError, noting_signals
from train_loop.training.workers import SharedError, Workers

# Numbers of the devices' clocks, exact in binary.
SECONDS_PER_STEP = 0.5
SECONDS_WAITED = 0.125
BATCH_SIZE = 4


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock that stands still but for the fake trainer's steps."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        loop, "time", types.SimpleNamespace(perf_counter=lambda: clock.now)
    )
    return clock


@dataclasses.dataclass
class FakeTrainer:
    """Counts steps and remembers in which order it was called."""

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
        self.calls = []

    def train(self, batches, num_steps):
        assert next(batches) == "batch"
        self.calls.append(int(num_steps))
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

    def local_state(self):
        return f"local of {self.step}"

    def is_sound(self):
        return self.finite

    def average_statistics(self):
        self.log.append(("average", self.step))


@dataclasses.dataclass
class FakeRun:
    """Remembers, in its trainer's log, what it was asked for."""

    trainer: FakeTrainer
    steps: int = 10
    cadence: loop.Cadence = loop.Cadence(report=2, evaluate=4, save=5)
    batch_size: int = BATCH_SIZE
    profile: Profile = NO_PROFILE
    eval_loss: float = 1.0
    ema_loss: float = 1.0
    eval_error: Exception | None = None
    owes_evaluation: bool = False
    enough_at: int | None = None
    full_at: tuple = ()
    fails_at: int | None = None
    total_steps: int = 10

    @property
    def has_stopped_improving(self):
        return self.trainer.step == self.enough_at

    def training_batches(self):
        return iter(lambda: "batch", None)

    def measure(self):
        self.trainer.log.append(("evaluate", self.trainer.step))
        with self.trainer.workers.agreeing():
            if self.eval_error:
                raise self.eval_error
        return {"loss": self.eval_loss, "ema_loss": self.ema_loss}

    def save(self, *local_state):
        with self.trainer.workers.agreeing():
            if self.trainer.step in self.full_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            if self.trainer.step == self.fails_at:
                raise PermissionError
        self.trainer.log.append(("save", self.trainer.step, *local_state))

    def tidy(self):
        self.trainer.log.append(("tidy", self.trainer.step))

    def discard(self):
        self.trainer.log.append(("discard", self.trainer.step))
        return self.trainer.step - 5

    def explain(self, error):
        return UserError(f"explained: {error.message}")


@pytest.fixture
def train(clock):
    """Returns a function that trains a fake run: options -> (log, metrics)."""

    def train(run_options=None, **options):
        log, metrics = train.log, []
        trainer = FakeTrainer(log, clock, **options)

        def report(step, split, numbers):
            log.append((f"report {split}", step))
            metrics.append(numbers)

        loop.train(FakeRun(trainer, **(run_options or {})), report)
        return log, metrics

    train.log = []
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
        # A run that goes on stops where one in a single piece does.
        (7, 10, (2, 4, 5), ["8 evaluate", "10 evaluate save"]),
        (8, 10, (2, 4, 5), ["10 evaluate save"]),
        # All at once.
        (0, 6, (3, 3, 3), ["3 evaluate save", "6 evaluate save"]),
        # The last step is reported, evaluated and saved, whatever the rest.
        (0, 3, (100, 100, 100), ["3 evaluate save"]),
        (
            0,
            5,
            (100, 2, 3),
            ["2 evaluate", "3 save", "4 evaluate"] + ["5 evaluate save"],
        ),
        (0, 3, (1, 100, 100), ["1", "2", "3 evaluate save"]),
        # What is evaluated is saved.
        (
            0,
            5,
            (100, 2, 3, True),
            ["2 evaluate save", "3 save", "4 evaluate save"]
            + ["5 evaluate save"],
        ),
        # What has nothing to be evaluated on.
        (0, 5, (100, 0, 3), ["3 save", "5 save"]),
        # Done.
        (10, 10, (2, 4, 5), []),
        (12, 10, (2, 4, 5), []),
        (0, 0, (2, 4, 5), []),
    ],
)
def test_run_stops_where_something_happens(step, last, cadence, stops):
    found = loop.Cadence(*cadence).stops(step, last)
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
        ("tidy", 5),
        ("report train", 6),
        ("average", 6),
        ("report train", 8),
        ("average", 8),
        ("evaluate", 8),
        ("report eval", 8),
        ("report train", 10),
        ("average", 10),
        # A stop in a long evaluation loses nothing.
        ("save", 10),
        ("evaluate", 10),
        ("report eval", 10),
        # Until then, the newest may have to be taken back.
        ("tidy", 10),
    ]


@pytest.mark.parametrize("step", [8, 10])
def test_evaluation_that_a_stop_cut_off_is_made_first(train, step):
    log, metrics = train({"owes_evaluation": True}, step=step)
    assert [name for name, _ in log[:3]] == ["evaluate", "report eval", "tidy"]
    assert {number for _, number in log[:3]} == {step}
    assert log.count(("evaluate", step)) == 1
    assert metrics[0] == {"loss": 1.0, "ema_loss": 1.0}


def test_run_goes_on_at_the_trainers_step(train):
    log, _ = train(step=7)
    assert log[0] == ("report train", 8)
    assert ("save", 5) not in log


def test_finished_run_does_nothing(train):
    log, _ = train(step=10)
    assert log == []


def test_speed_and_waiting_are_measured(train):
    _, metrics = train({"cadence": loop.Cadence(5, 100, 100)})
    for numbers in metrics[:2]:
        assert numbers == {
            "loss": 1.0,
            "split": "train",
            "images_per_second": BATCH_SIZE / SECONDS_PER_STEP,
            "input_wait": SECONDS_WAITED / SECONDS_PER_STEP,
        }
    assert metrics[2:] == [{"loss": 1.0, "ema_loss": 1.0}]


@pytest.mark.parametrize(
    ("seconds_per_step", "calls"),
    [
        # Twice as many as long as that takes less than half a second.
        (0.01, [1, 2, 4, 8, 16, 32, 37]),
        (0.25, [1, 2, *[2] * 48, 1]),
        (60.0, [1] * 100),
    ],
)
def test_calls_take_about_a_second(clock, seconds_per_step, calls):
    trainer = FakeTrainer([], clock, seconds_per_step=seconds_per_step)
    run = FakeRun(trainer, 100, loop.Cadence(100, 100, 100))
    loop.train(run, lambda step, split, metrics: None)
    assert trainer.calls == calls
    assert trainer.step == 100


@pytest.mark.parametrize(
    ("options", "run_options", "step", "kept"),
    [
        ({"breaks_at": 3}, {}, 3, "there is no checkpoint yet"),
        ({"breaks_at": 7}, {}, 7, "the checkpoint of step 5 is kept"),
        (
            {"breaks_at": 7, "step": 6},
            {},
            7,
            "the checkpoint of step 6 is kept",
        ),
        ({}, {"eval_loss": float("nan")}, 4, "there is no checkpoint yet"),
        ({"finite": False}, {}, 5, "there is no checkpoint yet"),
    ],
)
def test_what_is_not_finite_is_never_saved(
    train, options, run_options, step, kept
):
    with pytest.raises(UserError, match=f"at step {step} of 10; {kept}"):
        train(run_options, **options)
    assert all(saved < step for name, saved in train.log if name == "save")


@pytest.mark.parametrize(
    ("start", "owes", "step", "kept"),
    [
        (9, False, 10, "the checkpoint of step 5 is kept"),
        (10, True, 10, "the checkpoint of step 5 is kept"),
        (5, True, 5, "there is no checkpoint yet"),
    ],
)
def test_checkpoint_whose_evaluation_is_not_finite_is_taken_back(
    train, start, owes, step, kept
):
    options = {"eval_loss": float("nan"), "owes_evaluation": owes}
    with pytest.raises(UserError, match=f"at step {step} of 10; {kept}"):
        train(options, step=start)
    assert train.log[-1] == ("discard", step)


def test_average_that_is_not_finite_is_taken_back_too(train):
    with pytest.raises(UserError, match="the ema_loss is not finite at step 4"):
        train({"ema_loss": float("inf")})


def test_run_that_diverges_in_its_first_phase_tells_its_own_last_step(train):
    with pytest.raises(UserError, match="not finite at step 7 of 30;"):
        train({"total_steps": 30}, breaks_at=7)


def test_steps_before_a_broken_picture_are_saved(train):
    with pytest.raises(UserError, match="explained: broken"):
        train(unreadable_at=8)
    assert train.log[-2:] == [("average", 7), ("save", 7, "local of 7")]


def test_steps_before_a_broken_picture_of_the_evaluation_are_saved(train):
    with pytest.raises(UserError, match="eval.png"):
        train({"eval_error": UserError("eval.png is broken")})
    assert train.log[-2:] == [("average", 4), ("save", 4, "local of 4")]


def test_request_to_stop_is_answered_after_the_step(train, default_signals):
    with pytest.raises(StoppedError), noting_signals():
        train(signalled_at=7)
    # With what each replica had, and not what they have in common now.
    assert train.log[-2:] == [("average", 7), ("save", 7, "local of 7")]


def test_evaluation_is_stopped_between_batches(clock, default_signals):
    trainer = FakeTrainer([], clock, seconds_per_step=60)
    with noting_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError):
            loop.evaluate(trainer, range(11), 11)
    assert trainer.log == [0]


def test_run_ends_where_it_has_stopped_improving(train):
    log, _ = train({"enough_at": 4})
    assert log[-1] == ("report eval", 4)


def test_run_goes_on_where_the_disk_is_full_for_a_while(train, capsys):
    options = {"full_at": (5,), "cadence": loop.Cadence(1, 0, 5)}
    train({**options, "steps": 11})
    assert [each for each in train.log if each[0] == "save"] == [
        ("save", 10),
        ("save", 11),
    ]
    assert (
        "the disk is full: step 5 is not saved; the checkpoint of step 0 is "
        "kept" in capsys.readouterr().out
    )
    with pytest.raises(OSError, match="No space left"):
        train({**options, "full_at": (5, 10)})


@pytest.mark.parametrize("is_full", [True, False])
def test_workers_go_on_together_where_the_disk_of_one_is_full(clock, is_full):
    """From the same checkpoint, or all of them end."""

    def save(workers):
        run = FakeRun(FakeTrainer([], clock, 5, workers=workers))
        if workers.is_chief:
            run.full_at = (5,)
        elif not is_full:
            run.fails_at = 5
        return loop._save(run, 3)

    if is_full:
        assert together(save) == [3, 3]
    else:
        with pytest.raises(SharedError):
            together(save)


@pytest.mark.parametrize("number", [0, 1])
def test_batch_that_one_worker_cannot_read_ends_all_evaluations(clock, number):
    """Between two batches; and then all save what they learned."""

    def broken():
        yield "batch"
        raise ValueError("broken")

    def log_of(workers):
        is_broken = workers.number == number
        batches = broken() if is_broken else ["batch"] * 9
        trainer = FakeTrainer([], clock, workers=workers)
        run = FakeRun(trainer)
        run.measure = lambda: loop.evaluate(trainer, batches, 9)
        kind = ValueError if is_broken else UserError
        with pytest.raises(kind, match=r"broken|another worker failed"):
            loop.train(run, lambda *_: None)
        return trainer.log

    for log in together(log_of):
        assert log[-2:] == [("average", 4), ("save", 4, "local of 4")]


def test_tracing_again_is_warned_of_once(train, capsys):
    train(num_traces=3)
    [line] = capsys.readouterr().out.splitlines()
    assert "was traced 3 times by step 2" in line


@pytest.mark.parametrize("loss", [1.1e4, float("inf")])
def test_exploded_loss_is_never_saved(train, loss):
    with pytest.raises(loop.DivergedError, match="at step 6 of 10") as error:
        train(train_loss=loss, step=5)
    assert (error.value.step, error.value.saved) == (6, 5)
    assert train.log == []


def test_nothing_is_saved_where_memory_or_disk_ran_out(train):
    full = tf.errors.ResourceExhaustedError(None, None, "No space left")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train({"eval_error": full})
    assert train.log[-1] == ("evaluate", 4)


@pytest.mark.parametrize("options", [{"step": 7}, {"finite": False}])
def test_nothing_new_or_not_finite_is_saved_before_an_error(train, options):
    with pytest.raises(UserError, match="explained: broken"):
        train(unreadable_at=options.get("step", 1) + 1, **options)
    assert "save" not in [name for name, *_ in train.log]


def test_every_batch_of_an_evaluation_is_taken(clock):
    trainer = FakeTrainer([], clock)
    metrics = loop.evaluate(trainer, range(11), 11)
    assert trainer.log == list(range(11))
    assert metrics == {"loss": 1.0, "split": "eval"}
