"""Child processes of benchmarks."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run_python(*arguments, cwd=ROOT, env=None):
    """Runs Python with some arguments, and returns its standard output.

    Args:
      *arguments: command-line arguments.
      cwd: working directory; None for that of this process.
      env: environment; None for that of this process.

    Raises:
      ChildProcessError: it failed, with its last line of standard error.
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
        lines = ended.stderr.strip().splitlines() or [f"{ended.returncode}"]
        raise ChildProcessError(lines[-1])
    return ended.stdout
