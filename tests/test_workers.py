"""Several workers: the same training as one, and what becomes of all."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from samples import (
    SHRINK,
    read_checkpoint,
    read_metrics,
    together,
    write_folder,
)

from train_loop import Settings, UserError
from train_loop.assembly import open_data
from train_loop.settling import settle
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
    "--accumulate_steps=2",
    "--average=ema",
    "--synchronized_batch_norm",
    "--augment=shift",
)


# What starts other processes with itself, and trains a smaller net.
PYTHON = f"""#!{sys.executable}
import runpy, sys
sys.executable, _, *sys.argv = sys.argv
if sys.argv[0] == "train_loop.main":
    {"    ".join(SHRINK.splitlines(keepends=True))}
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def launch(folder, *flags):
    """Runs two workers; returns (exit status, output, errors)."""
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {**os.environ}
    environment.pop("TF_NUM_INTRAOP_THREADS", None)
    process = subprocess.run(
        [str(python), "-m", "train_loop.launch", "--workers=2", "--"]
        + [*map(str, flags)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return process.returncode, process.stdout, process.stderr


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


def test_workers_that_find_other_images_are_refused(tmp_path):
    for disk, count in (("a", 9), ("b", 8)):
        write_folder(tmp_path / disk, {"train/cat": 9, "train/dog": count})

    def refusal(workers):
        dataset = tmp_path / "ab"[workers.number]
        settings, workdir = settle(Settings(dataset=dataset)), tmp_path / "run"
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
