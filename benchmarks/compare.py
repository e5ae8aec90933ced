"""Compares this project with Keras and timm: the same work, alternating.

    python -m benchmarks.compare [--model resnet18 resnet50] [--what train]
        [--precision float32 bfloat16] [--batch_size 32] [--image_size 224]
        [--peers ours keras_fit] [--rounds 3] [--output compare.json]

Each measurement runs in a new process. The implementations alternate (A B C, A
B C, ...), so that other load on the machine affects all of them alike. Ratios
are computed within a round; the table shows their median, minimum and maximum.
All implementations use a GPU if the machine has one. Implementations that are
not installed are skipped; torch and timm come with the extra `parity`.

images/s     median of the rounds (minimum to maximum)
our speedup  speed of this project relative to the implementation in the same
             round
memory       peak memory of the process, or of the GPU
first step   seconds to its end, since the start of the process and since the
             end of the imports

Each implementation prepares one batch of noise in advance. This project
receives uint8 pixels, as in a run, and normalizes them in the step; the others
receive normalized images. On a GPU, this project copies the images from the
host in each step of prediction, as --mode=predict does. All of them train with
Nesterov momentum (0.9), weight decay and the cross-entropy of 1,000 classes
without label smoothing.

Models of the same name differ slightly. The resnet50 of this project and of
timm is v1.5, with strides in the 3x3 convolutions. That of Keras is v1, with
strides in the first 1x1 convolutions and biases before the norms; it has about
5 % fewer multiply-adds. `--model resnet50_keras` uses the strides of Keras in
this project; timm has no equivalent.
"""

import argparse
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from train_loop.benchmark.machine import (
    describe_host,
    peak_memory,
    process_age,
    versions,
)
from train_loop.console import parser_of

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = 1000
WHAT = ("train", "predict")
# Precision -> Keras dtype policy.
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
APPLICATIONS = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50_keras": "ResNet50",
    "resnet101_keras": "ResNet101",
    "resnet152_keras": "ResNet152",
}
LIBRARIES = ("tensorflow", "keras", "torch", "timm")
LEARNING_RATE = 0.01


class Case(NamedTuple):
    """The work that all implementations do."""

    model: str
    what: str
    precision: str
    batch_size: int
    image_size: int
    groups: int
    group_steps: int

    def __str__(self):
        return (
            f"{self.what} {self.model}, {self.precision}, batch "
            f"{self.batch_size}, {self.image_size} x {self.image_size}"
        )

    def batch(self):
        """Returns float32 images, channels last, and labels."""
        random = np.random.default_rng(0)
        size = (self.batch_size, self.image_size, self.image_size, 3)
        images = random.standard_normal(size, np.float32)
        return images, random.integers(0, CLASSES, self.batch_size)


class Laps:
    """Times of the first step and of groups of steps in a worker."""

    def __init__(self, case):
        self.case = case
        self.imports = None
        self.first_step = None
        self.marks = []

    def imported(self):
        """Records the end of the imports."""
        self.imports = time.perf_counter()

    def first(self):
        """Records the end of the first step; later calls have no effect."""
        if self.first_step is None:
            since = time.perf_counter() - self.imports
            self.first_step = {"process": process_age(), "imports": since}

    def lap(self):
        """Records the end of a group; returns whether to run another one."""
        self.marks.append(time.perf_counter())
        # The first group after the first mark is the warm-up.
        return len(self.marks) < self.case.groups + 2

    def run(self, take):
        """Times a function that runs a number of steps to their end."""
        take(1)
        self.first()
        while self.lap():
            take(self.case.group_steps)

    def numbers(self):
        """Returns the results of a worker, as values for JSON."""
        timed = itertools.pairwise(self.marks[1:])
        return {
            "step_seconds": [
                (end - begin) / self.case.group_steps for begin, end in timed
            ],
            "first_step_seconds": self.first_step,
            "peak_memory_bytes": peak_memory(),
        }


def ours(case, laps):
    """Runs a training step of a run, or a step of --mode=predict."""
    import train_loop

    train_loop.process.import_tensorflow()
    from train_loop.benchmark.tasks import TASKS

    laps.imported()
    with tempfile.TemporaryDirectory() as folder:
        settings = train_loop.Settings(
            model=case.model,
            image_size=case.image_size,
            batch_size=case.batch_size,
            precision=PRECISIONS[case.precision],
            recipe="images",
            label_smoothing=0.0,
            strategy="one_device",
            workdir=folder,
        )
        task = TASKS[case.what](settings, is_synthetic=True)
        if case.batch_size == 1:
            # Recommended for single images; training does not use it.
            task.classifier.make_weights_constant()
        laps.run(task.take)
    return _tensorflow_device()


def keras_fit(case, laps, jit_compile=False):
    """Runs `fit` or `predict` of a keras.applications model."""
    keras, model = _keras_model(case, laps)
    import tensorflow as tf

    images, labels = case.batch()
    if case.what == "predict":
        model.compile(jit_compile=jit_compile)

        # One call per group, to exclude the overhead of a call.
        dataset = tf.data.Dataset.from_tensors(images).repeat()

        def take(count):
            model.predict(dataset, steps=count, verbose=0)

        laps.run(take)
        return _tensorflow_device()

    class Clock(keras.callbacks.Callback):
        """Records the time at the end of each epoch."""

        def on_train_batch_end(self, batch, logs=None):
            laps.first()

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = not laps.lap()

    model.compile(
        _keras_optimizer(keras),
        _keras_loss(keras),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    model.fit(
        tf.data.Dataset.from_tensors((images, labels)).repeat(),
        steps_per_epoch=case.group_steps,
        epochs=case.groups + 2,
        callbacks=[Clock()],
        verbose=0,
    )
    return _tensorflow_device()


def keras_fit_jit(case, laps):
    """Runs `keras_fit` compiled by XLA."""
    return keras_fit(case, laps, jit_compile=True)


def keras_loop(case, laps):
    """Runs a plain loop with a keras.applications model."""
    import tensorflow as tf

    keras, model = _keras_model(case, laps)
    images, labels = map(tf.constant, case.batch())
    loss, optimizer = _keras_loss(keras), _keras_optimizer(keras)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=False)
    def train():
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return value

    @tf.function(jit_compile=False)
    def predict(images):
        return tf.nn.softmax(model(images, training=False))

    def take(count):
        for _ in range(count):
            if case.what == "predict":
                predict(images).numpy()
            else:
                value = train()
        if case.what == "train":
            float(value)

    laps.run(take)
    return _tensorflow_device()


def torch_eager(case, laps, prepare=lambda torch, model: model):
    """Runs a timm model, channels last."""
    import timm
    import torch

    laps.imported()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # TensorFlow also uses TF32 by default on GPUs that support it.
    torch.set_float32_matmul_precision(
        "high" if device == "cuda" else "highest"
    )
    # Selects convolution algorithms by trial, as TensorFlow does.
    torch.backends.cudnn.benchmark = True
    is_bfloat16 = case.precision == "bfloat16"
    model = timm.create_model(case.model, num_classes=CLASSES)
    model = model.to(device, memory_format=torch.channels_last)
    images, labels = map(torch.from_numpy, case.batch())
    images = images.permute(0, 3, 1, 2).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = labels.to(device)
    if case.what == "predict":
        model = model.eval()
        if is_bfloat16:
            # Faster than autocast, which casts the weights in each step.
            model, images = model.bfloat16(), images.bfloat16()
        model = prepare(torch, model)

        def take(count):
            with torch.inference_mode():
                for _ in range(count):
                    model(images).float().softmax(-1).cpu()

    else:
        model = prepare(torch, model.train())
        loss = torch.nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=LEARNING_RATE,
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
        )

        def take(count):
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device, torch.bfloat16, is_bfloat16):
                    value = loss(model(images), labels)
                value.backward()
                optimizer.step()
            value.item()

    laps.run(take)
    if device == "cpu":
        return {"device": f"{torch.get_num_threads()} threads"}
    return {
        "device": torch.cuda.get_device_name(),
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(),
    }


def torch_compile(case, laps):
    """Runs `torch_eager` compiled."""
    return torch_eager(case, laps, lambda torch, model: torch.compile(model))


class Implementation(NamedTuple):
    """An implementation of a `Case`.

    `run` is a function of a `Case` and `Laps` that returns facts about the
    device. `libraries` are required packages, `models` the supported models;
    None for all.
    """

    title: str
    run: Callable
    libraries: tuple
    models: tuple | None = None


IMPLEMENTATIONS = {
    "ours": Implementation("this project", ours, ("tensorflow",)),
    "keras_fit": Implementation(
        "keras.applications, `fit` or `predict`",
        keras_fit,
        ("tensorflow",),
        tuple(APPLICATIONS),
    ),
    "keras_fit_jit": Implementation(
        "the same with `jit_compile`",
        keras_fit_jit,
        ("tensorflow",),
        tuple(APPLICATIONS),
    ),
    "keras_loop": Implementation(
        "keras.applications, plain loop",
        keras_loop,
        ("tensorflow",),
        tuple(APPLICATIONS),
    ),
    "torch_eager": Implementation(
        "torch + timm", torch_eager, ("torch", "timm")
    ),
    "torch_compile": Implementation(
        "torch + timm, `torch.compile`", torch_compile, ("torch", "timm")
    ),
}


def _keras_model(case, laps):
    """Returns Keras and its model for a case."""
    # Silences TensorFlow, and disables AMX where it crashes the process.
    import train_loop

    train_loop.process.import_tensorflow()
    import keras

    laps.imported()
    keras.config.set_dtype_policy(PRECISIONS[case.precision])
    model = getattr(keras.applications, APPLICATIONS[case.model])(
        weights=None,
        input_shape=(case.image_size, case.image_size, 3),
        classes=CLASSES,
        classifier_activation=None if case.what == "train" else "softmax",
    )
    return keras, model


def _keras_optimizer(keras):
    return keras.optimizers.SGD(
        LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=1e-4
    )


def _keras_loss(keras):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _tensorflow_device():
    from train_loop.benchmark.machine import gpu_names, peak_device_memory

    names = gpu_names()
    if not names:
        return {"device": "CPU"}
    return {
        "device": names[0],
        "peak_device_memory_bytes": peak_device_memory(),
    }


def work(name, case):
    """Measures an implementation in this process; prints JSON."""
    laps = Laps(case)
    device = IMPLEMENTATIONS[name].run(case, laps)
    print(json.dumps({**laps.numbers(), **device}))


def measure(name, case):
    """Measures an implementation in a new process; returns its results.

    Raises:
      ChildProcessError: with the last line of standard error.
    """
    # The package `benchmarks` imports TensorFlow, which some workers must not.
    # So this import is local, and the worker starts from the path of this file.
    from benchmarks.programs import run_python

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    printed = run_python(
        __file__,
        f"--worker={name}",
        f"--case={json.dumps(case._asdict())}",
        cwd=None,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    return json.loads(printed.splitlines()[-1])


def missing(implementation, case):
    """Returns why an implementation is skipped, "" if it is not."""
    for library in implementation.libraries:
        if importlib.util.find_spec(library) is None:
            return f"{library} is not installed"
    models = implementation.models
    if models is not None and case.model not in models:
        return f"it has no {case.model}"
    return ""


def compare(case, names, rounds, measure=measure):
    """Measures all implementations; returns {name: results of each round}."""
    found = {}
    for name in names:
        reason = missing(IMPLEMENTATIONS[name], case)
        if reason:
            print(f"Skipping {name}: {reason}.", flush=True)
        else:
            found[name] = []
    for number in range(rounds):
        for name in [*found]:
            try:
                found[name].append(measure(name, case))
            except ChildProcessError as error:
                print(f"Skipping {name}: {error}", flush=True)
                del found[name]
        print(f"{case}: round {number + 1} of {rounds}", flush=True)
    return found


def summarize(case, found):
    """Returns {name: summary} of the results of all rounds.

    Args:
      case: a `Case`.
      found: {name: [results of a worker, for each round]}.
    """
    seconds = {
        name: [statistics.median(each["step_seconds"]) for each in rounds]
        for name, rounds in found.items()
    }
    summary = {}
    for name, rounds in found.items():
        rates = [case.batch_size / each for each in seconds[name]]
        summary[name] = {
            "images_per_second": median_and_range(rates),
            "first_step_seconds": {
                since: statistics.median(
                    each["first_step_seconds"][since] for each in rounds
                )
                for since in ("process", "imports")
            },
            **{
                key: max(each[key] for each in rounds)
                for key in ("peak_memory_bytes", "peak_device_memory_bytes")
                if all(key in each for each in rounds)
            },
        }
        if "ours" in seconds:
            pairs = zip(seconds[name], seconds["ours"], strict=True)
            ratios = [theirs / own for theirs, own in pairs]
            summary[name]["ours_is_faster"] = median_and_range(ratios)
    return summary


def median_and_range(values):
    """Returns the median, the minimum and the maximum of some numbers."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def markdown(cases):
    """Returns a Markdown table.

    Args:
      cases: [(`Case`, result of `summarize`)].
    """
    lines = [
        "| task | implementation | images/s | our speedup | memory | "
        "first step |",
        "|---|---|---|---|---|---|",
    ]
    for case, summary in cases:
        for name, numbers in summary.items():
            ratio = "-"
            if name != "ours" and "ours_is_faster" in numbers:
                ratio = f"{range_text(numbers['ours_is_faster'], '{:.2f}')}x"
            kind = "peak_memory_bytes"
            if "peak_device_memory_bytes" in numbers:
                kind = "peak_device_memory_bytes"
            first = numbers["first_step_seconds"]
            cells = [
                str(case),
                IMPLEMENTATIONS[name].title,
                range_text(numbers["images_per_second"], "{:.4g}"),
                ratio,
                f"{numbers[kind] / 1e9:.2f} GB",
                f"{first['process']:.1f} s, {first['imports']:.1f} s",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def range_text(numbers, form):
    """Returns the result of `median_and_range` as text."""
    median, least, most = map(form.format, numbers.values())
    return f"{median} ({least} to {most})"


def read_options(arguments):
    """Returns the parsed command line."""

    def names(table):
        return {"choices": [*table], "nargs": "+"}

    parser = parser_of("python -m benchmarks.compare", __doc__)
    add = parser.add_argument
    add("--model", nargs="+", default=["resnet50"], help="Names of variants.")
    add("--what", **names(WHAT), default=["train"])
    add("--precision", **names(PRECISIONS), default=["float32"])
    add("--batch_size", type=int, nargs="+", default=[32], help="Batch size.")
    add(
        "--image_size",
        type=int,
        nargs="+",
        default=[224],
        help="Height and width.",
    )
    add("--peers", **names(IMPLEMENTATIONS), default=[*IMPLEMENTATIONS])
    add("--rounds", type=int, default=3, help="Measurements of each.")
    add(
        "--groups", type=int, default=3, help="Number of timed groups of steps."
    )
    add("--group_steps", type=int, default=3, help="Steps per group.")
    add("--output", type=pathlib.Path, help="JSON file for all results.")
    # For child processes.
    add("--worker", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    add("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def cases_of(options):
    """Returns a `Case` for each combination of the options."""
    return [
        Case(*each, options.groups, options.group_steps)
        for each in itertools.product(
            options.model,
            options.what,
            options.precision,
            options.batch_size,
            options.image_size,
        )
    ]


def main(arguments=None):
    options = read_options(arguments)
    if options.worker:
        work(options.worker, Case(**options.case))
        return
    host, libraries = describe_host(), versions(*LIBRARIES)
    results = []
    for case in cases_of(options):
        found = compare(case, options.peers, options.rounds)
        results.append((case, summarize(case, found), found))
    devices = {
        each["device"]
        for *_, found in results
        for rounds in found.values()
        for each in rounds
    }
    print(markdown([result[:2] for result in results]))
    print(
        f"\n{host['processor']}, {host['cores']} cores "
        f"({', '.join(host['features'])}), {', '.join(sorted(devices))}; "
        + ", ".join(f"{name} {number}" for name, number in libraries.items())
        + f". Medians of {options.rounds} rounds (minimum to maximum)."
    )
    if options.output:
        value = {
            "machine": host,
            "versions": libraries,
            "cases": [
                {"case": case._asdict(), "summary": summary, "rounds": found}
                for case, summary, found in results
            ],
        }
        options.output.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
