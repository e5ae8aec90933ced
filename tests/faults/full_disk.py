"""A run loses no good checkpoint if the disk is full for a while.

    python tests/faults/full_disk.py

mounts a small disk in memory, which takes the right to do so (root on Linux),
fills it while a run trains there, and makes room again.
"""

import pathlib
import subprocess
import tempfile
import time

from runs import differences, finish, start

FLAGS = (
    "--dataset=digits",
    "--strategy=one_device",
    "--steps=1200",
    "--report_every=50",
    "--evaluate_every=400",
    "--checkpoint_every=100",
    "--show_predictions=false",
)


def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], check=True
    )
    try:
        wrong = fill_and_empty(disk / "run", folder / "alone")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    raise SystemExit(bool(wrong))


def fill_and_empty(workdir, alone):
    """Returns the errors at the end."""
    filler = workdir.parent / "filler"
    process = start(workdir, *FLAGS)
    lines = iter(process.stdout)
    for line in lines:
        if line.lstrip().startswith("200/"):
            break
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError as error:
            print(f"filled: {error.strerror}")
    for line in lines:
        if "is not saved" in line:
            print(line, end="")
            break
    time.sleep(1)
    filler.unlink()
    print("made room")
    rest = [*lines]
    warnings = [line for line in rest if line.startswith("warning")]
    print(f"{len(warnings)} more warnings")
    if process.wait():
        print(f"it ended with {process.returncode}:", *rest[-3:], sep="\n")
        return [rest[-1]]
    finish(alone, *FLAGS)
    wrong = [
        what
        for what in differences(workdir, alone)
        # Reports that the disk had no space for.
        if what != "metrics.jsonl"
    ]
    print(f"weights: {wrong or 'equal to those of a run on a good disk'}")
    return wrong


if __name__ == "__main__":
    main()
