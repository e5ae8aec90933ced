"""A run that is killed at random ends like an uninterrupted one.

    python tests/faults/kills.py --kills=20

Half of the moments are drawn from the time between two starts, half from the
milliseconds in which a checkpoint is written.
"""

import argparse
import pathlib
import random
import shutil
import signal
import tempfile
import time

from runs import FLAGS, differences, finish, start


def kill_once(workdir, moment, in_save):
    """Starts a run and kills it; returns whether it was still running.

    Args:
      workdir: of the run.
      moment: seconds to wait, from the first report or the next save on.
      in_save: wait for a file of a checkpoint to appear first.
    """
    process = start(workdir, *FLAGS)
    checkpoints = workdir / "checkpoints"

    def files():
        return set(checkpoints.rglob("*"))

    before, records = files(), workdir / "metrics.jsonl"
    size = records.stat().st_size if records.exists() else 0
    while process.poll() is None:
        grown = records.exists() and records.stat().st_size > size
        if grown and (not in_save or files() - before):
            break
        time.sleep(0.0005)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    alone, killed = folder / "alone", folder / "killed"
    finish(alone, *FLAGS)
    kills, wrong = 0, []
    while kills < options.kills and not wrong:
        in_save = kills % 2 == 1
        moment = draw.uniform(0, 0.02 if in_save else 0.5)
        if kill_once(killed, moment, in_save):
            kills += 1
            where = "in a save" if in_save else "anywhere"
            print(f"kill {kills}: {where}, {moment:.3f} s", flush=True)
            continue
        # It ended before the kill: the next one starts.
        wrong = compare(killed, alone, kills)
        shutil.rmtree(killed)
    if not wrong:
        finish(killed, *FLAGS)
        wrong = compare(killed, alone, kills)
    shutil.rmtree(folder)
    raise SystemExit(bool(wrong))


def compare(workdir, other, kills):
    """Prints and returns the differences between two finished runs."""
    wrong = differences(workdir, other)
    print(f"ended after {kills} kills: {wrong or 'equal, bit by bit'}")
    return wrong


if __name__ == "__main__":
    main()
