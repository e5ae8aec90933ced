"""Several workers train like one, and end together."""

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

# Options whose results could differ on several machines.
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


# And the fastest options.
SMALL = (
    "--model=resnet_tiny",
    "--image_size=16",
    "--batch_size=6",
    "--report_every=1",
)


# What starts other processes with itself, and trains a smaller model. Where the
# launcher has a terminal of its own, the chief waits for a signal after the
# evaluation of step 4.
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
        def write_down_and_wait(self, step, split, metrics):
            write_down(self, step, split, metrics)
            while (step, split) == (4, "eval") and process.received() is None:
                time.sleep(0.01)
        JsonLinesReport.__call__ = write_down_and_wait
if sys.argv[0] == "train_loop.main":
    {"    ".join(SHRINK.splitlines(keepends=True))}
    from train_loop.builders import reports
    reports.show_beginning = lambda *_: None
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def start(folder, *flags, program=PYTHON, **options):
    """Starts two workers; returns the process of the launcher."""
    python = folder / "python"
    python.write_text(program)
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


def launch(folder, *flags, **options):
    """Runs two workers; returns (exit status, output, errors)."""
    process = start(folder, *flags, **options)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def assert_close(found, expected):
    """Asserts that two checkpoints are equal up to rounding."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            largest = max(np.abs(value).max(), 1e-2)
            np.testing.assert_allclose(
                found[key], value, rtol=0, atol=5e-6 * largest, err_msg=key
            )


def test_two_workers_train_like_one_device_and_one_resumes(
    tmp_path, run, small_net, default_signals
):
    """One device resumes after Ctrl-C, which is one stop signal."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    arguments = (*FLAGS, "--steps=8")
    one_device = "--strategy=one_device"
    assert run(*arguments, one_device, f"--workdir={alone}").status == 0
    terminal, of_launcher = os.openpty()
    process = start(
        tmp_path,
        *arguments,
        # Work in turns does not change the result.
        *("--cache=disk", "--skip_bad_images"),
        f"--workdir={together}",
        stdin=of_launcher,
        start_new_session=True,
    )
    output = ""
    while "4/8  eval" not in output:
        line = process.stdout.readline()
        assert line, process.communicate()
        output += line
    os.write(terminal, b"\x03")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    lines = [line.partition(";")[0] for line in sorted(errors.splitlines())]
    stopped = "error: stopped by Ctrl-C"
    assert lines == [stopped, f"worker 1: {stopped}"]
    os.close(terminal)
    os.close(of_launcher)
    assert "8 steps with batch size 64 on 2 replica(s)" in output
    assert Workdir(together).steps == [2, 4, 5]
    assert_close(read_checkpoint(together, 4), read_checkpoint(alone, 4))
    # Only the first one writes.
    written = [len([*(f / "train").iterdir()]) for f in (together, alone)]
    assert written[0] == written[1]
    lines = (together / "metrics.jsonl").read_text().splitlines()
    steps = [(r["step"], r["split"]) for r in map(json.loads, lines)]
    assert steps == [(2, "train"), (4, "train"), (4, "eval")]
    # One device resumes the run of two workers.
    assert run(one_device, f"--workdir={together}").status == 0
    assert_close(read_checkpoint(together, 8), read_checkpoint(alone, 8))
    for found, expected in zip(
        read_metrics(together), read_metrics(alone), strict=True
    ):
        assert found.pop("split") == expected.pop("split")
        # What the two had measured of step 5 since their last report is lost.
        if found["step"] != 6:
            assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.long
def test_two_workers_finish_without_a_word_of_complaint(tmp_path):
    status, output, errors = launch(
        tmp_path,
        *SMALL,
        "--dataset=digits",
        "--steps=2",
        f"--workdir={tmp_path / 'run'}",
    )
    assert (status, errors) == (0, "")
    assert "2 steps with batch size 6 on 2 replica(s)" in output
    assert Workdir(tmp_path / "run").steps == [2]


# What starts other processes with itself, of which none trains.
IDLE = f"""#!{sys.executable}
import json, os, runpy, sys
sys.executable, _, *sys.argv = sys.argv
if sys.argv[0] == "train_loop.launch":
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
number = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
print("worker", number, "prints")
print("and complains", file=sys.stderr)
"""


def test_launcher_of_workers_that_finish_succeeds(tmp_path):
    status, output, errors = launch(tmp_path, program=IDLE)
    assert status == 0
    assert output == "worker 0 prints\n"
    assert sorted(errors.splitlines()) == [
        "and complains",
        "worker 1: and complains",
    ]


def test_image_that_one_worker_cannot_read_ends_both(tmp_path):
    images = tmp_path / "images"
    counts = {"train/cat": 3, "train/dog": 3, "test/cat": 3, "test/dog": 3}
    write_folder(images, counts, "png")
    # The first half belongs to the first worker.
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
    assert other.startswith(f"worker 1: error: {broken}: cannot be decoded")
    # Their progress.
    assert Workdir(tmp_path / "run").steps == [2]


def test_workers_with_different_images_are_an_error(tmp_path):
    for disk, count in (("a", 9), ("b", 8)):
        write_folder(tmp_path / disk, {"train/cat": 9, "train/dog": count})

    def refusal(workers):
        dataset = tmp_path / "ab"[workers.number]
        settings, workdir = resolve(Settings(dataset=dataset)), tmp_path / "run"
        with pytest.raises(UserError) as error:
            open_data(settings, Workdir(workdir), workers)
        return str(error.value)

    for line in together(refusal):
        assert "1 of 2 workers have other images or classes" in line


def test_workers_without_a_shared_folder_are_an_error(run):
    status, _, errors = run("--dataset=digits", "--strategy=multi_worker")
    assert status == 1
    assert "requires --workdir" in errors
    assert errors.count("\n") == 1
