"""The order of things between the steps."""

import pytest
import tensorflow as tf

from train_loop import UserError, loop


class FakeTrainer:
    """Counts steps and remembers in which order it was called."""

    def __init__(
        self, log, step=0, breaks_at=None, finite=True, unreadable_at=None
    ):
        self.log = log
        self.step = step
        self.breaks_at = breaks_at
        self.finite = finite
        self.unreadable_at = unreadable_at
        self.loss = tf.keras.metrics.Mean()

    def train(self, iterator, num_steps):
        for _ in range(int(num_steps)):
            self.step += 1
            if self.step == self.breaks_at:
                return tf.constant(self.step), tf.constant(0.0)
            if self.step == self.unreadable_at:
                self.step -= 1
                raise tf.errors.InvalidArgumentError(None, None, "broken")
        return tf.constant(-1), tf.constant(0.001)

    def results(self, split):
        return {"loss": 1.0}

    def is_finite(self):
        return self.finite

    def average_statistics(self):
        self.log.append(("average", self.step))


def run(trainer, log, steps=10, eval_loss=1.0):
    def evaluate():
        log.append(("evaluate", trainer.step))
        return {"loss": eval_loss}

    with loop.progress_bar(steps) as bar:
        loop.train(
            trainer,
            iterator=None,
            steps=steps,
            batch_size=4,
            cadence=loop.Cadence(report=2, evaluate=4, save=5),
            evaluate=evaluate,
            save=lambda step: log.append(("save", step)),
            report=lambda step, split, _: log.append((f"report {split}", step)),
            explain=lambda step, error: log.append((str(error), step)),
            bar=bar,
        )


def test_train_report_evaluate_report_save():
    log = []
    run(FakeTrainer(log), log)
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
        ("report train", 6),
        ("average", 6),
        ("report train", 8),
        ("average", 8),
        ("evaluate", 8),
        ("report eval", 8),
        ("report train", 10),
        ("average", 10),
        ("evaluate", 10),
        ("report eval", 10),
        ("save", 10),
    ]


def test_run_goes_on_at_the_trainers_step():
    log = []
    run(FakeTrainer(log, step=7), log)
    assert log[0] == ("report train", 8)
    assert ("save", 5) not in log


def test_finished_run_does_nothing():
    log = []
    run(FakeTrainer(log, step=10), log)
    assert log == []


@pytest.mark.parametrize(
    ("options", "eval_loss", "step", "kept"),
    [
        ({"breaks_at": 3}, 1.0, 3, "there is no checkpoint yet"),
        ({"breaks_at": 7}, 1.0, 7, "the checkpoint of step 5 is kept"),
        ({}, float("nan"), 4, "there is no checkpoint yet"),
        ({"finite": False}, 1.0, 5, "there is no checkpoint yet"),
    ],
)
def test_what_is_not_finite_is_never_saved(options, eval_loss, step, kept):
    log = []
    with pytest.raises(UserError, match=f"at step {step} of 10; {kept}"):
        run(FakeTrainer(log, **options), log, eval_loss=eval_loss)
    assert all(saved < step for name, saved in log if name == "save")


def test_steps_before_a_broken_picture_are_saved():
    log = []
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(FakeTrainer(log, unreadable_at=8), log)
    assert log[-3:] == [("average", 7), ("save", 7), ("broken", 7)]
