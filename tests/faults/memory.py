"""A long run uses constant memory: after 2,000 steps as after 200.

python tests/faults/memory.py
"""

import pathlib
import tempfile

from train_loop import Run, Settings
from train_loop.training.reports import JsonLinesReport

FIRST, LAST = 200, 2000
# Fraction of the memory after the first steps.
MOST_GROWTH = 0.02


def resident():
    """Returns the resident memory of this process in MiB, on Linux."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 2**10
    raise SystemExit("/proc/self/status does not tell")


def main():
    found = {}
    write_down = JsonLinesReport.__call__

    def write_down_and_measure(self, step, split, metrics):
        write_down(self, step, split, metrics)
        found[step] = resident()

    JsonLinesReport.__call__ = write_down_and_measure
    with tempfile.TemporaryDirectory() as folder:
        Run.create(
            Settings(
                workdir=folder,
                dataset="digits",
                strategy="one_device",
                steps=LAST,
                report_every=FIRST,
                evaluate_every=FIRST // 2,
                checkpoint_every=FIRST // 2,
                weight_average="ema",
                show_predictions=False,
            )
        ).train()
    for step, size in found.items():
        print(f"step {step:5}: {size:,.0f} MiB")
    growth = found[LAST] / found[FIRST] - 1
    print(f"{growth:+.2%} from step {FIRST} to step {LAST}")
    raise SystemExit(growth > MOST_GROWTH)


if __name__ == "__main__":
    main()
