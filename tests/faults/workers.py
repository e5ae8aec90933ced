"""One of two workers is killed, frozen or stopped: what the other does.

python tests/faults/workers.py
"""

import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from runs import differences

FLAGS = (
    "--dataset=digits",
    "--steps=2000",
    "--report_every=50",
    "--evaluate_every=500",
    "--checkpoint_every=100",
    "--schedule=constant",
    "--show_predictions=false",
)
MOST_SECONDS = 60


def launch(workdir):
    """Starts two workers; returns the launcher's process."""
    return subprocess.Popen(
        [sys.executable, "-m", "train_loop.launch", "--workers=2", "--"]
        + [f"--workdir={workdir}", *FLAGS],
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def strike(workdir, number):
    """Sends a signal to the second worker; returns the result."""
    launcher = launch(workdir)
    for line in launcher.stdout:
        if line.lstrip().startswith("150/"):
            break
    children = subprocess.run(
        ["pgrep", "--parent", str(launcher.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    subprocess.run(
        ["kill", f"-{number.name[3:]}", children.stdout.split()[-1]],
        check=True,
    )
    began = time.monotonic()
    output, _ = launcher.communicate(timeout=MOST_SECONDS)
    seconds = time.monotonic() - began
    errors = [line for line in output.splitlines() if "error:" in line]
    return launcher.returncode, seconds, errors


def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    launch(folder / "alone").communicate()
    failed = False
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        workdir = folder / number.name
        status, seconds, errors = strike(workdir, number)
        print(f"{number.name}: status {status} after {seconds:.0f} s")
        for line in errors:
            print(f"  {line}")
        # All workers start again.
        again = launch(workdir)
        again.communicate()
        wrong = differences(workdir, folder / "alone")
        print(
            f"  started again: status {again.returncode}, "
            f"{wrong or 'equal, bit by bit'}",
            flush=True,
        )
        failed |= bool(again.returncode or wrong or not errors)
    shutil.rmtree(folder)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
