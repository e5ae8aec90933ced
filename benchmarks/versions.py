"""Tries the supported versions: an environment each, digits, some tests.

    python -m benchmarks.versions [--only=NAME] [--folder=FOLDER]

Requires `uv` (pip install uv), and the versions of Python on PATH or where uv
finds them. Each environment gets this checkout, trains on the digits for 30
steps and runs `TESTS`. Results go to `versions.json`, from which the
documentation makes its table; those of other environments stay in it.
"""

import json
import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

from absl import app, flags

from benchmarks.programs import ROOT
from train_loop.console import text_table

FILE = pathlib.Path(__file__).with_suffix(".json")
# Layers, weights, checkpoints, data and the loop: what depends on versions.
TESTS = (
    "tests/data/test_decode.py",
    "tests/data/test_batches.py",
    "tests/evaluation/test_metrics.py",
    "tests/layers/test_blocks.py",
    "tests/layers/test_freezing.py",
    "tests/layers/test_layer_contract.py",
    "tests/layers/test_normalization.py",
    "tests/layers/test_own_weights.py",
    "tests/prediction/test_classifier.py",
    "tests/training/test_checkpoints.py",
    "tests/training/test_optimizers.py",
    "tests/training/test_trainer.py",
    "tests/test_settings.py",
)
SHOWN = ("tensorflow", "keras", "numpy")


class Environment(NamedTuple):
    """A version of Python, and requirements beside those of `setup.cfg`."""

    python: str
    requirements: tuple = ()
    lowest: bool = False


ENVIRONMENTS = {
    "lowest": Environment("3.10", lowest=True),
    "newest": Environment("3.13"),
    "newest on 3.12": Environment("3.12"),
    "newest on 3.10": Environment("3.10"),
    **{
        f"TensorFlow {tensorflow} with Keras {keras}": Environment(
            "3.11", (f"tensorflow=={tensorflow}.*", f"keras=={keras}.*")
        )
        for tensorflow in ("2.18", "2.19", "2.20", "2.21")
        for keras in ("3.10", "3.15")
    },
}

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum(
    "only", list(ENVIRONMENTS), list(ENVIRONMENTS), "Environments to try."
)
flags.DEFINE_string("folder", None, "Keeps the environments in this folder.")


def run(*command):
    """Runs a command, and returns its output and whether it succeeded."""
    ended = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ended.stdout, ended.returncode == 0


def try_out(name, folder):
    """Returns {column: text} of an environment, made in a folder.

    Args:
      name: a key of `ENVIRONMENTS`.
      folder: `pathlib.Path` of the virtual environment.
    """
    environment = ENVIRONMENTS[name]
    result = {"python": environment.python}
    python = folder / "bin/python"
    output, succeeded = run(
        *("uv", "venv", "--clear", "--no-python-downloads"),
        *("--python", environment.python, folder),
    )
    if not succeeded:
        raise SystemExit(f"{name}: {output.strip()}")
    resolution = "lowest-direct" if environment.lowest else "highest"
    output, succeeded = run(
        *("uv", "pip", "install", "--python", python),
        *("--resolution", resolution, "--editable", ".[dev]"),
        *environment.requirements,
    )
    if not succeeded:
        print(output)
        return {**result, "digits": "not installed", "tests": "-"}
    output, _ = run("uv", "pip", "list", "--python", python)
    versions = dict(re.findall(r"^(\S+) +(\S+)", output, re.MULTILINE))
    result |= {package: versions[package] for package in SHOWN}
    with tempfile.TemporaryDirectory() as workdir:
        output, _ = run(
            *(python, "-m", "train_loop.main", "--dataset=digits"),
            "--steps=30",
            f"--workdir={workdir}/run",
        )
    losses = re.findall(r"^eval +30 +(\S+)", output, re.MULTILINE)
    result["digits"] = f"loss {losses[0]}" if losses else "failed"
    # The tests' warnings are filtered for the newest versions.
    output, _ = run(
        *(python, "-m", "pytest", "-q", "-m", "not slow and not long"),
        *("-p", "no:warnings", *TESTS),
    )
    counts = re.findall(r"\d+ (?:passed|failed|errors?)", output)
    return {**result, "tests": ", ".join(counts) or "failed"}


def main(_):
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in FLAGS.only:
            folder = pathlib.Path(FLAGS.folder or temporary)
            results[name] = try_out(name, folder / re.sub(r"\W+", "-", name))
            ordered = {n: results[n] for n in ENVIRONMENTS if n in results}
            FILE.write_text(json.dumps(ordered, indent=1) + "\n")
            print(f"{name}: {results[name]}", flush=True)
    rows = [["environment", "python", *SHOWN, "digits", "tests"]]
    rows += [
        [name, *(result.get(column, "-") for column in rows[0][1:])]
        for name, result in results.items()
    ]
    print(text_table(rows))


if __name__ == "__main__":
    app.run(main)
