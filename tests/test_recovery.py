"""Averages, rollbacks, best checkpoints and early stopping of runs."""

import json
import os
import signal
import types

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from samples import SMALL, read_checkpoint, read_metrics

from resnet_layers import VARIANTS, load_weights, save_safetensors
from train_loop import Run, Settings, UserError, load_classifier
from train_loop.builders.model import unfreeze
from train_loop.builders.phases import Phase
from train_loop.builders.reports import show_predictions
from train_loop.data.transforms import Transforms
from train_loop.evaluation import charts
from train_loop.modes.train import describe, final_table
from train_loop.process import StoppedError
from train_loop.workdir import Workdir

pytestmark = pytest.mark.usefixtures("small_net")

SHORT = Settings(evaluate_every=2, checkpoint_every=2).over(SMALL)


def train(folder, workdir, **others):
    """Trains a run; returns it."""
    run = Run.create(
        Settings(dataset=folder, workdir=workdir, **others).over(SHORT)
    )
    run.train()
    return run


def evaluations(workdir, metric):
    records = read_metrics(workdir)
    return [r[metric] for r in records if r["split"] == "eval"]


@pytest.mark.slow
def test_averaged_weights_are_evaluated_and_used(folder, tmp_path):
    run = train(
        folder,
        tmp_path / "run",
        steps=4,
        weight_average="ema",
        ema_decay=0.5,
        learning_rate=0.5,
    )
    model, pairs = run.classifier.model, run.trainer.update.average.pairs
    losses = evaluations(tmp_path / "run", "loss")
    averaged = evaluations(tmp_path / "run", "ema_loss")
    assert len(averaged) == len(losses) == 2
    assert losses[-1] != averaged[-1]
    values = {v.path: np.asarray(v) for v in model.variables}
    means = {v.path: m.numpy() for v, m in pairs}
    assert means.keys() <= values.keys()
    images = np.zeros([1, 16, 16, 3], "uint8")
    expected = run.classifier.probabilities(images)
    # The average is used by default.
    raw = load_classifier(tmp_path / "run", averaged=False)
    np.testing.assert_array_equal(raw.probabilities(images), expected)
    classifier = load_classifier(tmp_path / "run")
    for variable in classifier.model.variables:
        if variable.path in means:
            np.testing.assert_array_equal(variable, means[variable.path])
    # Its metrics are those of the evaluation, and in the final table.
    head, *_, last = final_table(run).splitlines()
    assert head.split()[2:6] == ["loss", "accuracy", "ema_loss", "ema_accuracy"]
    assert f"{averaged[-1]:.4f}" in last
    for variable, mean in pairs:
        variable.assign(mean)
    assert run._phase._evaluate()["loss"] == averaged[-1]
    load_weights(model, tmp_path / "run", averaged=False)
    for variable in model.variables:
        np.testing.assert_array_equal(variable, values[variable.path])


@pytest.mark.slow
def test_averages_start_as_the_initial_weights(folder, tmp_path):
    model = VARIANTS["resnet_tiny"](num_classes=2)
    model.build((None, 16, 16, 3))
    save_safetensors(model, tmp_path / "model.safetensors")
    run = Run.create(
        Settings(
            dataset=folder,
            workdir=tmp_path / "run",
            weights=tmp_path / "model.safetensors",
            weight_average="ema",
        ).over(SHORT)
    )
    for variable, mean in run.trainer.update.average.pairs:
        np.testing.assert_array_equal(variable, mean)
    np.testing.assert_array_equal(
        run.classifier.model.weights[0], model.weights[0]
    )
    metrics = run.evaluate()
    assert metrics["ema_loss"] == metrics["loss"]


@pytest.mark.slow
def test_evaluation_changes_no_state(folder, tmp_path):
    """Between two reports, while replicas differ."""
    run = Run.create(
        Settings(
            dataset=folder,
            workdir=tmp_path,
            steps=2,
            weight_average="ema",
            strategy="mirrored",
        ).over(SHORT)
    )
    trainer = run.trainer
    trainer.train(iter(run.training_batches()), tf.constant(2))
    before = trainer.replica_state()
    found = run.evaluate()
    for name, values in trainer.replica_state().items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    trainer.average_statistics()
    trainer.results("train")
    # It contains no training metrics.
    assert found == run.evaluate()


@pytest.fixture
def poisoned(folder, monkeypatch):
    """Returns a folder with an image whose label makes a loss of nan."""
    white = np.full((20, 20, 3), 255, "uint8")
    PIL.Image.fromarray(white).save(folder / "train/cat/white.png")

    def finish(self, images, labels, partners, seed):
        is_white = tf.reduce_all(images == 255, axis=[1, 2, 3])
        labels = tf.one_hot(labels, 2)
        return images, tf.where(is_white[:, None], np.nan, labels)

    monkeypatch.setattr(Transforms, "finish", finish)
    return folder


@pytest.mark.slow
def test_rollback_skips_the_batches_that_diverged(poisoned, tmp_path, capsys):
    options = {"steps": 7, "seed": 4}
    workdir, other = tmp_path / "run", tmp_path / "other"
    run = train(poisoned, workdir, on_nonfinite="rollback", **options)
    assert run.trainer.step == 7
    assert (
        "rollback 3 of 3: loss is not finite at step 6. Resuming from the "
        "checkpoint of step 4, without the images of step 5 and 6."
    ) in capsys.readouterr().out
    left_out = (workdir / "left_out.jsonl").read_text()
    assert [json.loads(line) for line in left_out.splitlines()] == [
        {"step": 3, "batches": [2]},
        {"step": 3, "batches": [3]},
        # This would be step 6 without the skipped batches.
        {"step": 6, "batches": [6, 7]},
    ]
    # The same as without these batches from the start.
    other.mkdir()
    (other / "left_out.jsonl").write_text(left_out)
    train(poisoned, other, **options)
    expected = read_checkpoint(other, 7)
    for key, value in read_checkpoint(workdir, 7).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    assert read_metrics(workdir) == read_metrics(other)


@pytest.mark.slow
def test_rollback_stops_at_its_limit(trained):
    before = read_checkpoint(trained, 4)
    run = Run.open(
        trained,
        steps=40,
        learning_rate=1e18,
        schedule="constant",
        on_nonfinite="rollback",
        max_rollbacks=2,
    )
    with pytest.raises(UserError, match="rolled back 2 times already"):
        run.train()
    # Diverged weights never replace good ones.
    assert Workdir(trained).steps[-1] == 4
    for key, value in read_checkpoint(trained, 4).items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)


def test_stop_signal_is_handled_before_the_next_attempt(
    folder, tmp_path, monkeypatch, default_signals
):
    def go_back(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(Run, "_train_or_roll_back", go_back)
    with pytest.raises(StoppedError):
        train(folder, tmp_path)


@pytest.mark.slow
def test_best_checkpoint_is_kept(folder, tmp_path, monkeypatch):
    """Also if the run continues in another process."""
    losses = iter([2.0, 1.0, 3.0, 2.5])
    monkeypatch.setattr(Phase, "evaluate", lambda self: {"loss": next(losses)})
    workdir = tmp_path / "run"
    options = {"keep_best": "loss", "keep_checkpoints": 1, "learning_rate": 0.1}
    train(folder, workdir, steps=4, **options)
    assert Workdir(workdir).steps == [4]
    Run.open(workdir, steps=8).train()
    assert Workdir(workdir).steps == [4, 8]
    images = np.zeros([1, 16, 16, 3], "uint8")
    best, fourth, last = (
        load_classifier(workdir, step=step).probabilities(images)
        for step in ("best", 4, None)
    )
    np.testing.assert_array_equal(best, fourth)
    assert np.any(best != last)


@pytest.mark.slow
def test_run_stops_early_and_stays_finished(folder, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(Phase, "evaluate", lambda self: {"loss": next(losses)})
    options = {"keep_best": "loss", "early_stopping": 2, "steps": 100}
    workdir = tmp_path / "run"
    run = train(folder, workdir, **options)
    assert run.trainer.step == 8
    assert evaluations(workdir, "loss") == [3.0, 2.0, 2.5, 2.1]
    assert Workdir(workdir).steps[-1] == 8
    again = Run.open(workdir)
    assert again.is_finished
    again.train()
    assert again.trainer.step == 8
    # With more patience it continues.
    more = Run.open(workdir, early_stopping=3, steps=10)
    more.train()
    assert more.trainer.step == 10


def two_phases(folder, workdir, **others):
    """Returns a run that unfreezes at step 3."""
    return Run.create(
        Settings(
            dataset=folder,
            workdir=workdir,
            freeze="stem",
            unfreeze_after_epochs=1,
            **others,
        ).over(SHORT)
    )


@pytest.mark.slow
def test_early_stopping_does_not_skip_the_second_phase(
    folder, tmp_path, monkeypatch
):
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(Phase, "evaluate", lambda self: {"loss": next(losses)})
    run = two_phases(
        folder,
        tmp_path,
        steps=10,
        evaluate_every=1,
        keep_best="loss",
        early_stopping=2,
    )
    run.train()
    assert run.trainer.step == 5
    assert run.is_finished


def test_epochs_of_a_schedule_count_from_the_start_of_the_run(folder, tmp_path):
    run = two_phases(
        folder,
        tmp_path,
        steps=12,
        schedule="step:0.1:0.5:2",
        learning_rate=0.5,
        unfrozen_learning_rate=0.25,
        warmup_epochs=0,
        base_batch_size=6,
    )
    rates = run.trainer.optimizer._learning_rate
    # 3 steps an epoch; the drop before unfreezing does not count after it.
    assert [float(rates(step)) for step in range(12)] == pytest.approx(
        [0.5] * 2 + [0.05] + [0.25] * 3 + [0.025] * 6
    )


def test_first_phase_is_frozen_after_a_rollback(folder, tmp_path, capsys):
    run = two_phases(
        folder, tmp_path, steps=10, learning_rate=0.5, base_batch_size=3
    )
    model, begins = run.classifier.model, run.trainer.optimizer._starts
    # The stem is trained later: its kernel, gamma and beta.
    assert begins == [3] * 3 + [0] * len(model.trainable_variables)
    # As after a rollback from the second phase.
    unfreeze(run.settings, model)
    next(run._phases())
    assert not model.stem.trainable_variables
    describe(run)
    # Scaled from batch size 3 to 6.
    assert "with a peak learning rate of 0.1\n" in capsys.readouterr().out


@pytest.mark.slow
def test_images_and_charts_are_written_at_their_step(
    folder, tmp_path, monkeypatch
):
    """Not at the last step of the schedule, if the run stopped early."""
    monkeypatch.setattr(charts, "chart_pixels", lambda name, results: "figure")
    run = Run.create(Settings(dataset=folder, workdir=tmp_path).over(SHORT))
    steps = set()
    tensorboard = types.SimpleNamespace(
        write_image=lambda name, figure, step, split: steps.add(step),
        write_pr_curve=lambda *arguments: steps.add(arguments[-1]),
    )
    show_predictions(tensorboard, run)
    assert steps == {0}


@pytest.mark.parametrize(
    "options", [{"keep_best": "loss"}, {"early_stopping": 3}], ids=str
)
def test_flags_that_require_evaluations_are_an_error_without_them(
    folder, tmp_path, options
):
    given = Settings(
        dataset=folder / "train",
        workdir=tmp_path / "run",
        validation_fraction=0,
        **options,
    )
    [(name, value)] = options.items()
    with pytest.raises(
        UserError, match=f"--{name}={value}: requires an evaluation"
    ):
        Run.create(given.over(SHORT))
