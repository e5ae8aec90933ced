"""Several workers: the same training as one, and what becomes of all."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from samples import (
    SHRINK,
    broken_files,
    read_checkpoint,
    read_metrics,
    together,
    write_folder,
)

from train_loop import Settings, UserError
from train_loop.builders.data import open_data
from train_loop.resolve import resolve
from train_loop.workdir import Workdir

pytestmark = pytest.mark.slow

# All that could come to other numbers on several machines.
FLAGS = (
    "--dataset=digits",
    "--learning_rate=0.01",
    "--schedule=constant",
    "--warmup_epochs=0",
    "--report_every=2",
    "--evaluate_every=4",
    "--checkpoint_every=2",
    "--clip_norm=0.5",
    "--gradient_accumulation_steps=2",
    "--weight_average=ema",
    "--synchronized_batch_norm",
    "--augment=shift",
)


# And what takes the least time.
SMALL = (
    "--model=resnet_tiny",
    "--image_size=16",
    "--batch_size=6",
    "--report_every=1",
)


# What starts other processes with itself, and trains a smaller net. Where the
# launcher has a terminal of its own, the chief waits for a signal after step 2.
PYTHON = f"""#!{sys.executable}
import fcntl, os, runpy, sys, termios, time
sys.executable, _, *sys.argv = sys.argv
if os.isatty(0):
    if sys.argv[0] == "train_loop.launch":
        fcntl.ioctl(0, termios.TIOCSCTTY)
    else:
        # Else the terminal's signal and the launcher's may arrive as one.
        assert os.getsid(0) == os.getpid()
        from train_loop import process
        process.import_tensorflow()
        from train_loop.training.reports import JsonLinesReport
        write_down = JsonLinesReport.__call__
        def write_down_and_wait(self, step, *others):
            write_down(self, step, *others)
            while step == 2 and process.received() is None:
                time.sleep(0.01)
        JsonLinesReport.__call__ = write_down_and_wait
if sys.argv[0] == "train_loop.main":
    {"    ".join(SHRINK.splitlines(keepends=True))}
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def start(folder, *flags, **options):
    """Starts two workers; returns the process of the launcher."""
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {**os.environ}
    environment.pop("TF_NUM_INTRAOP_THREADS", None)
    return subprocess.Popen(
        [str(python), "-m", "train_loop.launch", "--workers=2", "--"]
        + [*map(str, flags)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def launch(folder, *flags):
    """Runs two workers; returns (exit status, output, errors)."""
    process = start(folder, *flags)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def assert_close(found, expected):
    """Holds two checkpoints against each other, to rounding."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            largest = max(np.abs(value).max(), 1e-2)
            np.testing.assert_allclose(
                found[key], value, rtol=0, atol=5e-6 * largest, err_msg=key
            )


def test_two_workers_train_as_one_device_and_one_goes_on(
    tmp_path, run, small_net
):
    alone, together = tmp_path / "alone", tmp_path / "together"
    arguments = (*FLAGS, "--strategy=one_device")
    assert run(*arguments, "--steps=6", f"--workdir={alone}").status == 0
    # What they do by turns changes nothing.
    by_turns = ("--cache=disk", "--skip_bad_images")
    status, output, errors = launch(
        tmp_path, *FLAGS, *by_turns, "--steps=4", f"--workdir={together}"
    )
    assert status == 0, errors
    assert errors == ""
    assert "4 steps of 64 images on 2 replica(s)" in output
    assert_close(read_checkpoint(together, 4), read_checkpoint(alone, 4))
    # Only the first one writes.
    written = [len([*(f / "train").iterdir()]) for f in (together, alone)]
    assert written[0] == written[1]
    lines = (together / "metrics.jsonl").read_text().splitlines()
    steps = [(r["step"], r["split"]) for r in map(json.loads, lines)]
    assert steps == [(2, "train"), (4, "train"), (4, "eval")]
    # And one device goes on where two workers were.
    on = ("--strategy=one_device", "--steps=6", f"--workdir={together}")
    assert run(*on).status == 0
    assert_close(read_checkpoint(together, 6), read_checkpoint(alone, 6))
    for found, expected in zip(
        read_metrics(together), read_metrics(alone), strict=True
    ):
        assert found.pop("split") == expected.pop("split")
        assert found == pytest.approx(expected, rel=1e-3)


def test_image_that_one_worker_cannot_read_ends_both(tmp_path):
    images = tmp_path / "images"
    counts = {"train/cat": 3, "train/dog": 3, "test/cat": 3, "test/dog": 3}
    write_folder(images, counts, "png")
    # The first half of them is of the first worker.
    broken = images / "test/dog/1.png"
    broken.write_bytes(broken_files()["truncated.png"])
    status, _, errors = launch(
        tmp_path,
        *SMALL,
        f"--dataset={images}",
        "--evaluate_every=2",
        "--checkpoint_every=9",
        f"--workdir={tmp_path / 'run'}",
    )
    assert status == 1
    chief, other = sorted(errors.splitlines())
    assert chief.startswith("error: worker 0 of 2: another worker failed.")
    assert other.startswith(f"worker 1: error: {broken} cannot be decoded")
    # What they had learned.
    assert Workdir(tmp_path / "run").steps == [2]


def test_ctrl_c_is_one_request_to_stop(tmp_path, default_signals):
    terminal, of_launcher = os.openpty()
    process = start(
        tmp_path,
        *SMALL,
        "--dataset=digits",
        "--steps=9",
        "--checkpoint_every=2",
        f"--workdir={tmp_path / 'run'}",
        stdin=of_launcher,
        start_new_session=True,
    )
    while not process.stdout.readline().startswith("2/9  train"):
        assert process.poll() is None
    os.write(terminal, b"\x03")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    lines = [line.partition(";")[0] for line in sorted(errors.splitlines())]
    stopped = "error: interrupted by Ctrl-C"
    assert lines == [stopped, f"worker 1: {stopped}"]
    assert Workdir(tmp_path / "run").steps == [2, 3]
    os.close(terminal)
    os.close(of_launcher)


def test_workers_that_find_other_images_are_refused(tmp_path):
    for disk, count in (("a", 9), ("b", 8)):
        write_folder(tmp_path / disk, {"train/cat": 9, "train/dog": count})

    def refusal(workers):
        dataset = tmp_path / "ab"[workers.number]
        settings, workdir = resolve(Settings(dataset=dataset)), tmp_path / "run"
        with pytest.raises(UserError) as error:
            open_data(settings, Workdir(workdir), workers)
        return str(error.value)

    for line in together(refusal):
        assert line.startswith("1 of 2 workers find other images or classes in")


def test_workers_without_a_folder_that_they_share_are_refused(run):
    status, _, errors = run("--dataset=digits", "--strategy=multi_worker")
    assert status == 1
    assert "needs a --workdir" in errors
    assert errors.count("\n") == 1
