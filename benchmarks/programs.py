"""Programs that a benchmark starts, each in a process of its own."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run_python(*arguments, cwd=ROOT, env=None):
    """Runs Python to the end of what it is told; returns what it printed.

    Args:
      *arguments: of its command line.
      cwd: the folder that it is started in, None for that of this process.
      env: its environment, None for that of this process.

    Raises:
      ChildProcessError: it failed; with the last thing that it said.
    """
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"{ended.returncode}"]
        raise ChildProcessError(said[-1])
    return ended.stdout
