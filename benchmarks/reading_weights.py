"""Measures time and additional memory to load weights into a model.

    python -m benchmarks.reading_weights [--model=resnet152] [--rounds=7]

A model is written in each format and loaded again. `load_weights` alternates
with reading the bytes of the file, both from the page cache; the results are
medians of all rounds.

load   seconds of `load_weights` into a built model
bytes  seconds of `path.read_bytes()`
ratio  ratio of the two
MiB    peak memory growth of a new process that already contains the model

The last line compares `save_safetensors` with writing the same bytes.
"""

import multiprocessing
import pathlib
import re
import statistics
import tempfile
import time

import tensorflow as tf
from absl import app, flags

from resnet_layers import VARIANTS, load_weights, save_safetensors
from train_loop.training.checkpoints import Checkpoints

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet152", "Name of a variant.")
flags.DEFINE_integer("rounds", 7, "Number of measurements.", lower_bound=1)
flags.DEFINE_string("folder", None, "Parent of the temporary files.")


def save_keras(model, path):
    model.save(path)


def save_weights_h5(model, path):
    model.save_weights(path)


def save_checkpoint(model, path):
    optimizer = tf.keras.optimizers.SGD()
    optimizer.build(model.trainable_variables)
    Checkpoints(path.parent, model, optimizer).save(1)


# Path -> writer, and the file that contains the numbers.
FORMATS = {
    "model.safetensors": (save_safetensors, "model.safetensors"),
    "model.weights.h5": (save_weights_h5, "model.weights.h5"),
    "model.keras": (save_keras, "model.keras"),
    "ckpt-1": (save_checkpoint, "ckpt-1.data-00000-of-00001"),
}


def build(name):
    model = VARIANTS[name]()
    model.build((None, 224, 224, 3))
    return model


def seconds(function, *arguments):
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def memory(name, function, path):
    """Returns the peak memory growth in MiB during a function."""
    model = build(name)
    # Resets the peak.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = mib("VmRSS")
    function(model, path)
    return mib("VmHWM") - before


def mib(key):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) / 1024


def report(label, function, alone, model, path):
    """Prints a line; `alone` reads or writes only the bytes."""
    rows = [
        (seconds(function, model, path), seconds(alone))
        for _ in range(FLAGS.rounds)
    ]
    whole, least = map(statistics.median, zip(*rows, strict=True))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        growth = pool.apply(memory, (FLAGS.model, function, path))
    print(
        f"{label:17} {whole:6.3f} {least:6.3f} {whole / least:6.2f} "
        f"{growth:6.0f}",
        flush=True,
    )


def main(_):
    model = build(FLAGS.model)
    sizes = [tf.convert_to_tensor(w).numpy().nbytes for w in model.weights]
    print(
        f"{FLAGS.model}: {sum(sizes) / 2**20:.0f} MiB, the largest tensor "
        f"{max(sizes) / 2**20:.0f} MiB\n"
        "                    load  bytes  ratio    MiB"
    )
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        for name, (save, holder) in FORMATS.items():
            path = pathlib.Path(folder, name)
            save(model, path)
            numbers = pathlib.Path(folder, holder)
            report(name, load_weights, numbers.read_bytes, model, path)
        written = pathlib.Path(folder, "model.safetensors")
        content, copy = written.read_bytes(), pathlib.Path(folder, "copy")
        report(
            "save_safetensors",
            save_safetensors,
            lambda: copy.write_bytes(content),
            model,
            written,
        )


if __name__ == "__main__":
    app.run(main)
