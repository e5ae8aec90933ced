"""Programs that a benchmark starts, each in a process of its own."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run_python(*arguments):
    """Runs Python in the project's folder, to the end of what it is told.

    Raises:
      ChildProcessError: it failed; with the last thing that it said.
    """
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"{ended.returncode}"]
        raise ChildProcessError(said[-1])
