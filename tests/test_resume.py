"""Runs that are stopped, and resume bitwise identically."""

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from samples import SHRINK, SMALL_FLAGS, read_checkpoint, read_metrics
from tensorboard.backend.event_processing import plugin_event_accumulator

import resnet_layers
import train_loop
from resnet_layers import VARIANTS
from train_loop.builders.phases import Phase
from train_loop.training.checkpoints import Checkpoints
from train_loop.training.reports import TAGS, JsonLinesReport
from train_loop.workdir import Workdir

pytestmark = pytest.mark.slow

# A run of an epoch and a half of the digits, with saves in mid-epoch.
SHORT = (
    "--dataset=digits",
    "--steps=35",
    "--report_every=5",
    "--evaluate_every=20",
    "--checkpoint_every=10",
)
# And one of a smaller model, with everything random or stateful.
SMALLER = (
    "--steps=12",
    "--report_every=2",
    "--evaluate_every=6",
    "--checkpoint_every=3",
    "--augment=shift,color_jitter,mixup",
    "--stochastic_depth=0.2",
    "--weight_average=ema",
    "--gradient_accumulation_steps=2",
    "--clip_norm=1",
)

# The program, with an interruption after the report of a step.
INTERRUPTED = """
import os, pathlib, sys
from train_loop import console, main, process
process.import_tensorflow()
{shrink}
from train_loop.builders import reports
from train_loop.training.reports import JsonLinesReport
if not {shown}:
    reports.show_beginning = reports.show_predictions = lambda *_: None
write_down = JsonLinesReport.__call__
def write_down_and_act(self, step, split, metrics):
    write_down(self, step, split, metrics)
    if (step, split) == ({step}, "train"):
        {action}
JsonLinesReport.__call__ = write_down_and_act
console.prepare_streams()
sys.exit(main.main(sys.argv))
"""
# As if each of the files were edited.
BREAK_SOURCES = """
        for path in pathlib.Path().rglob("*.py"):
            path.write_text("raise RuntimeError")
"""


def start(*arguments, signals=None, action=None, cwd=None, shown=False):
    """Starts the program on two logical CPUs, in a process of its own.

    With as many threads as it likes, unlike the process of the tests, and a
    smaller model.

    Args:
      *arguments: of the command line.
      signals: (step, signal) that it sends itself.
      action: (step, Python that it runs).
      cwd: the folder that it is started in.
      shown: whether it draws figures for TensorBoard, which takes seconds.
    """
    if signals is not None:
        step, number = signals
        action = step, f"os.kill(os.getpid(), {int(number)})"
    step, python = action
    program = INTERRUPTED.format(
        shrink=SHRINK, step=step, action=python, shown=shown
    )
    environment = {**os.environ}
    environment.pop("TF_NUM_INTRAOP_THREADS", None)
    return subprocess.Popen(
        [sys.executable, "-c", program, "--virtual_devices=2"]
        + [*map(str, arguments)],
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of an uninterrupted run in its own process.

    But for its source files, a copy: once it trains, it needs them no more.
    """
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    copies = tmp_path_factory.mktemp("sources")
    for package in (resnet_layers, train_loop):
        folder = pathlib.Path(package.__file__).parent
        shutil.copytree(folder, copies / folder.name)
    process = start(
        *SHORT,
        f"--workdir={workdir}",
        action=(5, BREAK_SOURCES),
        cwd=copies,
        shown=True,
    )
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    # No lines of TensorFlow, and no bars: it is not a terminal.
    assert errors == ""
    assert "\r" not in output
    assert "Trained for" in output
    assert "raise" in (copies / "train_loop/main.py").read_text()[:5]
    return workdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Returns a function: strategy -> the folder of a smaller run, made once.

    To be called with what runs the program.
    """

    @functools.cache
    def workdir_of(strategy):
        return tmp_path_factory.mktemp("runs") / strategy

    def get(strategy, run):
        workdir = workdir_of(strategy)
        if not (workdir / "flags.txt").exists():
            status, _, errors = run(
                *SMALLER, f"--strategy={strategy}", f"--workdir={workdir}"
            )
            assert status == 0, errors
        return workdir

    return get


def assert_same_run(workdir, other, step):
    expected, values = (
        read_checkpoint(other, step),
        read_checkpoint(workdir, step),
    )
    assert values.keys() == expected.keys()
    assert len(values) > 20
    for key, value in values.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    assert read_metrics(workdir) == read_metrics(other)


def read_events(workdir, split):
    """Returns what TensorBoard reads from a run's event files."""
    events = plugin_event_accumulator.EventAccumulator(str(workdir / split))
    return events.Reload()


def test_stopped_run_resumes_bitwise_identically(
    finished, tmp_path, run, default_signals
):
    """On two replicas; stopped in all ways, one after another."""
    process = start(
        *SHORT, f"--workdir={tmp_path}", signals=(15, signal.SIGSTOP)
    )
    os.waitpid(process.pid, os.WUNTRACED)
    # One folder, one process.
    status, _, errors = run(f"--workdir={tmp_path}")
    assert status == 1
    assert f"--workdir={tmp_path}: another process is training" in errors
    assert errors.count("\n") == 1
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    # Files that a kill during a write leaves behind.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')
    # Between two reports, behind `| head -1` in a terminal that is closed.
    process = start(f"--workdir={tmp_path}", signals=(25, signal.SIGHUP))
    assert process.stdout.readline().startswith("resnet_tiny")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=300) == 128 + signal.SIGHUP
    assert Workdir(tmp_path).steps[-1] == 26
    # As nohup starts it.
    default = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start(f"--workdir={tmp_path}", signals=(30, signal.SIGHUP))
    signal.signal(signal.SIGHUP, default)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_run(tmp_path, finished, 35)
    # TensorBoard shows one curve, not the steps that were taken twice.
    points = read_events(tmp_path, "train").Tensors("quality/loss")
    assert [point.step for point in points] == list(range(5, 36, 5))


class StopError(Exception):
    """Stops a run at a certain place."""


@pytest.fixture
def run_until(monkeypatch, run):
    """Returns a function: place, step, arguments -> a run that stops there."""
    save, measure = Checkpoints.save, Phase.evaluate
    write_down = JsonLinesReport.__call__

    def start_and_stop(place, step, *arguments):
        def stop_at(here, now):
            if (here, now) == (place, step):
                raise StopError

        def save_or_stop(self, now, *more):
            stop_at("before saving", now)
            save(self, now, *more)
            stop_at("after saving", now)

        def measure_or_stop(self):
            stop_at("in an evaluation", self.trainer.step)
            return measure(self)

        def write_down_or_stop(self, now, split, metrics):
            stop_at(f"in the report of an {split}uation", now)
            write_down(self, now, split, metrics)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_or_stop)
            patch.setattr(Phase, "evaluate", measure_or_stop)
            patch.setattr(JsonLinesReport, "__call__", write_down_or_stop)
            with pytest.raises(StopError):
                run(*arguments)

    return start_and_stop


@pytest.mark.parametrize(
    ("strategy", "places"),
    [
        ("one_device", {"before saving": 6, "in an evaluation": 12}),
        pytest.param(
            "mirrored",
            {"after saving": 6, "in the report of an evaluation": 12},
            marks=pytest.mark.long,
        ),
    ],
)
def test_run_resumes_where_it_stopped(
    alone, tmp_path, strategy, places, run, run_until, small_net
):
    """At one place after another; it begins as its flags file says."""
    expected = alone(strategy, run)
    flags = (f"--flagfile={expected / 'flags.txt'}",)
    for place, step in places.items():
        run_until(place, step, *flags, f"--workdir={tmp_path}")
        # From now on, the run has its own settings.
        flags = ()
        if "evaluation" in place:
            # Stopping during a long evaluation loses no progress.
            assert Workdir(tmp_path).steps[-1] == step
    status, output, _ = run(f"--workdir={tmp_path}")
    assert status == 0
    assert "already finished" not in output
    assert_same_run(tmp_path, expected, 12)
    points = read_events(tmp_path, "eval").Tensors(TAGS["loss"])
    assert [point.step for point in points] == [6, 12]


@pytest.mark.parametrize(
    "later_place",
    [(), pytest.param(("in an evaluation", 6), marks=pytest.mark.long)],
)
def test_run_in_two_phases_resumes_from_either(
    later_place, folder, tmp_path, run, run_until, small_net
):
    """Stopped before, at and after unfreezing, with embeddings before it."""
    expected, workdir = tmp_path / "expected", tmp_path / "stopped"
    arguments = (
        *SMALL_FLAGS,
        f"--dataset={folder}",
        "--freeze=backbone",
        # At step 4 of 3 an epoch.
        "--unfreeze_after_epochs=1.4",
        "--steps=8",
        "--report_every=2",
        "--evaluate_every=6",
        "--checkpoint_every=3",
    )
    status, output, _ = run(*arguments, f"--workdir={expected}")
    assert status == 0
    assert "--freeze=backbone until step 4, " in output
    assert "embeddings of the frozen backbone" in output
    run_until("before saving", 4, *arguments, f"--workdir={workdir}")
    run_until("in the report of an evaluation", 4, f"--workdir={workdir}")
    if later_place:
        run_until(*later_place, f"--workdir={workdir}")
    status, output, _ = run(f"--workdir={workdir}")
    assert status == 0
    assert f"from step {6 if later_place else 4}" in output
    # After unfreezing, the evaluation of the frozen phase is pending.
    assert ("embeddings of the frozen backbone" in output) == (not later_place)
    assert_same_run(workdir, expected, 8)
    points = read_events(workdir, "eval").Tensors(TAGS["loss"])
    assert [point.step for point in points] == [4, 6, 8]
    frozen, unfrozen = (read_checkpoint(workdir, step) for step in (4, 8))
    moved = {key for key in frozen if np.any(frozen[key] != unfrozen[key])}
    assert any("moving_mean" in key for key in moved)


def test_event_files_contain_curves_images_and_text(finished):
    events = {
        split: read_events(finished, split) for split in ("train", "eval")
    }
    records = read_metrics(finished)
    for split, names in {
        "train": ("loss", "accuracy", "learning_rate", "gradient_norm"),
        "eval": ("loss", "accuracy"),
    }.items():
        expected = [r for r in records if r["split"] == split]
        for name in names:
            points = events[split].Tensors(TAGS[name])
            assert [p.step for p in points] == [r["step"] for r in expected]
            values = [float(tf.make_ndarray(p.tensor_proto)) for p in points]
            assert values == pytest.approx([r[name] for r in expected])
    for name in ("images_per_second", "input_wait"):
        assert len(events["train"].Tensors(TAGS[name])) == 7
    [text] = events["train"].Tensors("flags")
    assert b"| batch_size | `64` |" in text.tensor_proto.string_val[0]
    [images] = events["train"].Tensors("training_images")
    width, height, png = images.tensor_proto.string_val
    assert (int(width), int(height)) == (32, 32)
    assert tf.io.decode_png(png).numpy().std() > 10
    assert b"stage1_block1" in events["train"].Graph().SerializeToString()
    for chart in ("confusion_matrix", "confident_mistakes"):
        [chart_event] = events["eval"].Tensors(chart)
        png = chart_event.tensor_proto.string_val[2]
        assert chart_event.step == 35
        assert tf.io.decode_png(png).numpy().std() > 10
    # Thresholds, counts and what they come to, for each digit.
    curves = [events["eval"].Tensors(f"{digit}/pr_curves") for digit in "0189"]
    assert all(curve[0].step == 35 for curve in curves)


def test_broken_checkpoint_falls_back_to_the_one_before(
    alone, tmp_path, run, small_net
):
    workdir, expected = tmp_path / "broken", alone("one_device", run)
    shutil.copytree(expected, workdir)
    for path in (workdir / "checkpoints").glob("ckpt-12.data*"):
        path.write_bytes(path.read_bytes()[:1000])
    # With the flags of the run.
    status, output, _ = run(f"--workdir={workdir}")
    assert status == 0
    assert "ckpt-12" in output
    assert "from step 9" in output
    assert_same_run(workdir, expected, 12)


def test_digits_are_learned(tmp_path, run, monkeypatch):
    """A small model in few epochs, to 96 %; chance is 10 %."""
    small = {"block": "basic", "stage_sizes": (1, 1), "width": 16}
    for argument, value in small.items():
        monkeypatch.setitem(VARIANTS["resnet_tiny"].arguments, argument, value)
    status, _, errors = run(
        "--dataset=digits",
        f"--workdir={tmp_path}",
        "--epochs=3",
        "--batch_size=16",
        "--warmup_epochs=1",
        "--learning_rate=0.2",
        "--image_size=8",
        "--evaluate_every=1000",
        "--strategy=one_device",
    )
    assert status == 0, errors
    last = read_metrics(tmp_path)[-1]
    assert last["split"] == "eval"
    assert last["accuracy"] >= 0.8
