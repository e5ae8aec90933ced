"""One device, two replicas and two workers train the same weights.

    python tests/faults/agreement.py

With clipping, accumulation, an average and synchronised batch norm all switched
on, for each of several optimizers.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
from runs import finish

FLAGS = (
    "--dataset=digits",
    "--report_every=2",
    "--schedule=constant",
    "--warmup_epochs=0",
    "--weight_decay=0.001",
    "--clip_norm=0.5",
    "--gradient_accumulation_steps=2",
    "--weight_average=ema",
    "--synchronized_batch_norm",
    "--augment=shift",
    "--show_predictions=false",
)
# Optimizer -> its learning rate.
RATES = {"sgd": 0.01, "adamw": 0.0001, "lars": 1.0}
# Relative to a variable's largest value, if that is at least 0.01.
MOST_DIFFERENCE = 5e-6


def on_workers(workdir, *flags):
    """Trains on two workers."""
    subprocess.run(
        [sys.executable, "-m", "train_loop.launch", "--workers=2", "--"]
        + [f"--workdir={workdir}", *flags],
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        check=True,
    )


# Name -> trains in a folder, with flags.
WAYS = {
    "one device": lambda *a: finish(*a, "--strategy=one_device"),
    "two replicas": lambda *a: finish(*a, "--virtual_devices=2"),
    "two workers": on_workers,
}


def values(workdir):
    """Returns {name: array} of the last checkpoint."""
    prefix = tf.train.latest_checkpoint(workdir / "checkpoints")
    reader = tf.train.load_checkpoint(prefix)
    return {
        name: reader.get_tensor(name)
        for name, dtype in reader.get_variable_to_dtype_map().items()
        if dtype == tf.float32
    }


def difference(found, expected):
    """Returns the largest difference relative to a variable's largest value."""
    if found.keys() != expected.keys():
        raise SystemExit("they keep different variables")
    # NumPy's maximum propagates nan.
    return np.max(
        [
            np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-2)
            for name, value in expected.items()
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    folder, failed = pathlib.Path(tempfile.mkdtemp()), False
    for optimizer, rate in RATES.items():
        found = {}
        for way, train in WAYS.items():
            workdir = folder / f"{optimizer} {way}"
            train(
                workdir,
                *FLAGS,
                f"--steps={options.steps}",
                f"--optimizer={optimizer}",
                f"--learning_rate={rate}",
            )
            found[way] = values(workdir)
        expected = found.pop("one device")
        for way, numbers in found.items():
            largest = difference(numbers, expected)
            failed |= not largest <= MOST_DIFFERENCE
            print(f"{optimizer}, {way}: {largest:.1e}", flush=True)
    if failed:
        raise SystemExit(f"they differ by more; the runs are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
