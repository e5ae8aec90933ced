"""Runs that are stopped, and go on as if nothing had been."""

import functools
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from samples import read_checkpoint, read_metrics
from tensorboard.backend.event_processing import plugin_event_accumulator

from train_loop.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

# A run of two and a half epochs of the digits, with saves in mid-epoch.
SHORT = (
    "--steps=50",
    "--report_every=5",
    "--evaluate_every=20",
    "--checkpoint_every=10",
)


def start(*arguments):
    """Starts the program on two logical CPUs, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "train_loop.main", "--virtual_devices=2"]
        + [*map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a run left alone, in a process of its own."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    process = start(*SHORT, f"--workdir={workdir}")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    # TensorFlow's own lines do not get to the screen.
    assert "I0000" not in errors
    assert "Traceback" not in errors
    assert "Trained for" in output
    return workdir


def assert_same_run(workdir, other, step=50):
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


def wait_for(happened, process):
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def has_reported(metrics, step):
    return metrics.exists() and f'"step": {step},' in metrics.read_text()


def test_killed_run_goes_on_bit_by_bit(finished, tmp_path, run):
    """On two replicas; killed in mid-epoch, and again in the next process."""
    metrics = tmp_path / "metrics.jsonl"
    for step in (15, 25):
        process = start(*SHORT, f"--workdir={tmp_path}")
        wait_for(functools.partial(has_reported, metrics, step), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    # What a kill in the middle of a write leaves behind.
    with metrics.open("a") as file:
        file.write('{"step": 35, "spl')
    status, _, errors = run(f"--workdir={tmp_path}")
    assert status == 0, errors
    assert_same_run(tmp_path, finished)
    # TensorBoard shows one curve, not the steps that were taken twice.
    points = read_events(tmp_path, "train").Tensors("loss")
    assert [point.step for point in points] == list(range(5, 51, 5))


class StopError(Exception):
    """Stops a run at a certain place."""


@pytest.mark.parametrize("replicas", ["one_device", "mirrored"])
def test_run_goes_on_from_wherever_it_stopped(
    tmp_path, replicas, run, monkeypatch, small_net
):
    common = (
        f"--strategy={replicas}",
        "--steps=12",
        "--report_every=2",
        "--evaluate_every=5",
        "--checkpoint_every=3",
        "--augment=shift,color_jitter,mixup",
        "--stochastic_depth=0.2",
    )
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert run(*common, f"--workdir={alone}").status == 0
    save = Checkpoints.save

    def stop(self, step, *, at, is_written):
        if step != at or is_written:
            save(self, step)
        if step == at:
            raise StopError

    # After and before a checkpoint is written.
    for at, is_written in ((6, True), (9, False)):
        stopping = functools.partialmethod(stop, at=at, is_written=is_written)
        monkeypatch.setattr(Checkpoints, "save", stopping)
        with pytest.raises(StopError):
            run(*common, f"--workdir={stopped}")
    monkeypatch.setattr(Checkpoints, "save", save)
    assert run(f"--workdir={stopped}").status == 0
    assert_same_run(stopped, alone, 12)


def test_flags_file_repeats_the_run(finished, tmp_path, run):
    status, _, errors = run(
        f"--flagfile={finished / 'flags.txt'}",
        f"--workdir={tmp_path}",
    )
    assert status == 0, errors
    assert_same_run(tmp_path, finished)


def test_event_files_hold_what_people_look_at(finished):
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
            points = events[split].Tensors(name)
            assert [p.step for p in points] == [r["step"] for r in expected]
            values = [float(tf.make_ndarray(p.tensor_proto)) for p in points]
            assert values == pytest.approx([r[name] for r in expected])
    for name in ("images_per_second", "input_wait"):
        assert len(events["train"].Tensors(name)) == 10
    [text] = events["train"].Tensors("flags")
    assert b"| batch_size | `64` |" in text.tensor_proto.string_val[0]
    [images] = events["train"].Tensors("training_images")
    width, height, png = images.tensor_proto.string_val
    assert (int(width), int(height)) == (32, 32)
    assert tf.io.decode_png(png).numpy().std() > 10
    assert b"stage1_block1" in events["train"].Graph().SerializeToString()


def test_broken_checkpoint_costs_only_the_work_since_the_one_before(
    finished, tmp_path, run
):
    workdir = tmp_path / "broken"
    shutil.copytree(finished, workdir)
    for path in (workdir / "checkpoints").glob("ckpt-50.data*"):
        path.write_bytes(path.read_bytes()[:1000])
    # With the run's own flags.
    status, output, _ = run(f"--workdir={workdir}")
    assert status == 0
    assert "ckpt-50" in output
    assert "from step 40" in output
    assert_same_run(workdir, finished)


def test_run_in_use_is_refused_and_interrupted_says_how_to_go_on(tmp_path, run):
    process = start(*SHORT, "--steps=100000", f"--workdir={tmp_path}")
    checkpoints = tmp_path / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*.index")), process)
    status, _, errors = run(f"--workdir={tmp_path}")
    assert status == 1
    assert errors.startswith("error: another process is training in")
    assert errors.count("\n") == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert re.search(
        f"--workdir={tmp_path} goes on from the last", errors.splitlines()[-1]
    )


def test_digits_are_learned(tmp_path, run):
    """In a fifth of the recipe's epochs."""
    status, _, errors = run(
        f"--workdir={tmp_path}", "--epochs=12", "--warmup_epochs=1"
    )
    assert status == 0, errors
    last = read_metrics(tmp_path)[-1]
    assert last["split"] == "eval"
    assert last["accuracy"] >= 0.97
