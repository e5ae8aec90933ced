"""Measures ours beside its peers: the same work, in turn, ratios with spread.

    python -m benchmarks.compare [--model resnet18 resnet50] [--what train]
        [--precision float32 bfloat16] [--batch_size 32] [--image_size 224]
        [--peers ours keras_fit] [--rounds 3] [--output compare.json]

Every measurement has a process of its own, and the peers take turns (A B C, A
B C, ...), so that what else the machine does strikes all alike. Ratios are
taken within a round, and their median is told with the smallest and largest.
On a machine with a GPU all of them take it. Peers that are not installed are
left out; torch and timm come with the extra `parity`.

images/s     median over the rounds (smallest to largest)
ours is      how many times as fast ours is in the same round
memory       of the process at its most; of the GPU where there is one
first step   seconds to its end, from the start of the process, and from the
             end of the imports

Each prepares one batch of noise beforehand; ours gets bytes, as in a run, and
normalises them in the step, the others get them normalised. On a GPU, ours
copies them from the host in each step of prediction, as --mode=predict does.
All train with momentum (Nesterov, 0.9) and weight decay, the cross entropy of
1,000 classes, and labels that are not smoothed.

Nets of one name are not quite the same: ours and timm's resnet50 are v1.5,
with the stride in the 3x3 convolutions; Keras's is v1, with the stride in the
first 1x1, which takes about 5 % fewer multiply-adds, and has biases in front of
its norms. `--model resnet50_keras` takes ours with Keras's strides; timm has no
such net.
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
# Name here -> Keras's dtype policy.
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
RATE = 0.01


class Case(NamedTuple):
    """The work that all do."""

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
    """The times of a worker: of the first step, and of groups of steps."""

    def __init__(self, case):
        self.case = case
        self.imports = None
        self.first_step = None
        self.marks = []

    def imported(self):
        """Notes that all libraries are there."""
        self.imports = time.perf_counter()

    def first(self):
        """Notes the end of the first step; later calls say nothing."""
        if self.first_step is None:
            since = time.perf_counter() - self.imports
            self.first_step = {"process": process_age(), "imports": since}

    def lap(self):
        """Notes the end of a group; returns whether another one is wanted."""
        self.marks.append(time.perf_counter())
        # Behind the first mark comes a group to warm up.
        return len(self.marks) < self.case.groups + 2

    def run(self, take):
        """Times a function that does so many steps, to their end."""
        take(1)
        self.first()
        while self.lap():
            take(self.case.group_steps)

    def numbers(self):
        """Returns what a worker tells."""
        timed = itertools.pairwise(self.marks[1:])
        return {
            "step_seconds": [
                (end - begin) / self.case.group_steps for begin, end in timed
            ],
            "first_step_seconds": self.first_step,
            "peak_memory_bytes": peak_memory(),
        }


def ours(case, laps):
    """Runs the step of a run, or the one of --mode=predict."""
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
            # What it is for; training does not use it.
            task.classifier.make_weights_constant()
        laps.run(task.take)
    return _tensorflow_device()


def keras_fit(case, laps, jit_compile=False):
    """Runs `fit` or `predict` of keras.applications' model."""
    keras, model = _keras_model(case, laps)
    import tensorflow as tf

    images, labels = case.batch()
    if case.what == "predict":
        model.compile(jit_compile=jit_compile)

        # One call for a group: what a call costs by itself is not a step's.
        dataset = tf.data.Dataset.from_tensors(images).repeat()

        def take(count):
            model.predict(dataset, steps=count, verbose=0)

        laps.run(take)
        return _tensorflow_device()

    class Clock(keras.callbacks.Callback):
        """Takes the time where Keras has the numbers of an epoch."""

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
    """Runs the same, compiled by XLA."""
    return keras_fit(case, laps, jit_compile=True)


def keras_loop(case, laps):
    """Runs a plain loop over keras.applications' model."""
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
    """Runs timm's model, channels last."""
    import timm
    import torch

    laps.imported()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As TensorFlow does by itself on GPUs that can.
    torch.set_float32_matmul_precision(
        "high" if device == "cuda" else "highest"
    )
    # Convolutions are chosen by trying, as TensorFlow does.
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
            # The faster way: weights are not cast again in each step.
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
            lr=RATE,
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
    """Runs the same, compiled."""
    return torch_eager(case, laps, lambda torch, model: torch.compile(model))


class Peer(NamedTuple):
    """Somebody who does a `Case`.

    `run` takes a `Case` and `Laps`, and returns what device it took.
    `libraries` must be installed, and `models` are those that it has; None for
    all.
    """

    title: str
    run: Callable
    libraries: tuple
    models: tuple | None = None


PEERS = {
    "ours": Peer("ours", ours, ("tensorflow",)),
    "keras_fit": Peer(
        "keras.applications, `fit` or `predict`",
        keras_fit,
        ("tensorflow",),
        tuple(APPLICATIONS),
    ),
    "keras_fit_jit": Peer(
        "the same, `jit_compile`",
        keras_fit_jit,
        ("tensorflow",),
        tuple(APPLICATIONS),
    ),
    "keras_loop": Peer(
        "keras.applications, a plain loop",
        keras_loop,
        ("tensorflow",),
        tuple(APPLICATIONS),
    ),
    "torch_eager": Peer("torch + timm", torch_eager, ("torch", "timm")),
    "torch_compile": Peer(
        "torch + timm, `torch.compile`", torch_compile, ("torch", "timm")
    ),
}


def _keras_model(case, laps):
    """Returns Keras, and its model for a case."""
    # Says less; and nothing of AMX where that would end the process.
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
        RATE, momentum=0.9, nesterov=True, weight_decay=1e-4
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
    """Measures a peer in this process; prints what it finds."""
    laps = Laps(case)
    device = PEERS[name].run(case, laps)
    print(json.dumps({**laps.numbers(), **device}))


def measure(name, case):
    """Measures a peer in a process of its own; returns what that tells.

    Raises:
      ChildProcessError: with the last thing that it said.
    """
    # Here, and the worker by its path: the package of the benchmarks imports
    # TensorFlow, which is not every worker's.
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


def missing(peer, case):
    """Returns why a peer is left out of a case, "" where it is not."""
    for library in peer.libraries:
        if importlib.util.find_spec(library) is None:
            return f"{library} is not installed"
    if peer.models is not None and case.model not in peer.models:
        return f"it has no {case.model}"
    return ""


def compare(case, names, rounds, measure=measure):
    """Measures all in turn; returns {name: what each round found}."""
    found = {}
    for name in names:
        reason = missing(PEERS[name], case)
        if reason:
            print(f"{name} is left out: {reason}", flush=True)
        else:
            found[name] = []
    for number in range(rounds):
        for name in [*found]:
            try:
                found[name].append(measure(name, case))
            except ChildProcessError as error:
                print(f"{name} is left out: {error}", flush=True)
                del found[name]
        print(f"{case}: round {number + 1} of {rounds}", flush=True)
    return found


def summarize(case, found):
    """Returns {name: numbers} of what all rounds found.

    Args:
      case: a `Case`.
      found: {name: [what a worker told, for each round]}.
    """
    seconds = {
        name: [statistics.median(each["step_seconds"]) for each in rounds]
        for name, rounds in found.items()
    }
    summary = {}
    for name, rounds in found.items():
        rates = [case.batch_size / each for each in seconds[name]]
        summary[name] = {
            "images_per_second": spread(rates),
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
            summary[name]["ours_is_faster"] = spread(ratios)
    return summary


def spread(values):
    """Returns the median of some numbers, and the ends."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def markdown(cases):
    """Returns a table for the README.

    Args:
      cases: [(`Case`, `summarize`'s numbers)].
    """
    lines = [
        "| what | by | images/s | ours is | memory | first step |",
        "|---|---|---|---|---|---|",
    ]
    for case, summary in cases:
        for name, numbers in summary.items():
            ratio = "-"
            if name != "ours" and "ours_is_faster" in numbers:
                ratio = f"{spread_text(numbers['ours_is_faster'], '{:.2f}')}x"
            kind = "peak_memory_bytes"
            if "peak_device_memory_bytes" in numbers:
                kind = "peak_device_memory_bytes"
            first = numbers["first_step_seconds"]
            cells = [
                str(case),
                PEERS[name].title,
                spread_text(numbers["images_per_second"], "{:.4g}"),
                ratio,
                f"{numbers[kind] / 1e9:.2f} GB",
                f"{first['process']:.1f} s, {first['imports']:.1f} s",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread_text(numbers, form):
    """Returns what `spread` found as text, each number in a form."""
    median, least, most = map(form.format, numbers.values())
    return f"{median} ({least} to {most})"


def read_options(arguments):
    """Returns what the command line says."""

    def names(table):
        return {"choices": [*table], "nargs": "+"}

    parser = parser_of("python -m benchmarks.compare", __doc__)
    add = parser.add_argument
    add("--model", nargs="+", default=["resnet50"], help="By timm's names.")
    add("--what", **names(WHAT), default=["train"])
    add("--precision", **names(PRECISIONS), default=["float32"])
    add("--batch_size", type=int, nargs="+", default=[32], help="Per step.")
    add("--image_size", type=int, nargs="+", default=[224], help="Side.")
    add("--peers", **names(PEERS), default=[*PEERS])
    add("--rounds", type=int, default=3, help="Turns of each.")
    add("--groups", type=int, default=3, help="Timed groups of steps.")
    add("--group_steps", type=int, default=3, help="Steps of a group.")
    add("--output", type=pathlib.Path, help="A file for all, as JSON.")
    # What a process of its own is told.
    add("--worker", choices=PEERS, help=argparse.SUPPRESS)
    add("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def cases_of(options):
    """Returns the `Case`s of all models with all sizes, and so on."""
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
        + f". Medians of {options.rounds} rounds (smallest to largest)."
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
