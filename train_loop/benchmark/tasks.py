"""What a benchmark times, and how."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers import BatchNormalization
from train_loop.benchmark.machine import Limits, process_age
from train_loop.benchmark.model_costs import (
    feature_maps,
    inference_work,
    training_work,
)
from train_loop.builders.data import make_transforms, open_whole_data
from train_loop.builders.model import (
    build_classifier,
    check_image_size,
    load_classifier,
    prepare_for_inference,
)
from train_loop.builders.training import build_strategy, check_memory
from train_loop.console import format_metric, text_table
from train_loop.data import batches
from train_loop.data.split import Data, MemoryStore, Split
from train_loop.errors import UserError
from train_loop.prediction.classifier import Classifier
from train_loop.resolve import resolve
from train_loop.run import Run
from train_loop.settings import Settings
from train_loop.training.strategies import distribute
from train_loop.training.workers import Workers
from train_loop.workdir import Workdir

# After the first one, at least: what is set up late is no part of a step.
WARM_UP_STEPS = 2
# A group of steps takes at least about this long, so that the clock and the
# call from Python do not count.
SECONDS_PER_GROUP = 0.25


class Timer:
    """Times steps, by groups.

    The time to the first step counts from the timer's creation: before data
    are opened and the network is built.

    Args:
      is_first: whether the process has done nothing else before.

    Attributes:
      first_step: {"process": seconds from the start of the process to the end
        of the first step, or None; "task": seconds from the beginning}.
      groups: seconds of each group.
      group_steps: steps of each group.
      waits: seconds that each group waited for input, where that is known.
    """

    def __init__(self, is_first=True):
        self.is_first = is_first
        self.began = time.perf_counter()
        self.first_step = None
        self.groups = []
        self.group_steps = None
        self.waits = []

    def run(self, take, rounds, agree=round, warm_up=0.0):
        """Times steps: the first one, some to warm up, and then groups.

        Args:
          take: function of a number of steps that does them, to their end, and
            returns the seconds that it waited for input, or None.
          rounds: how many groups.
          agree: maps a number to an integer that is the same on all workers.
          warm_up: how many seconds warming up takes at least.
        """
        take(1)
        since = time.perf_counter() - self.began
        process = process_age() if self.is_first else None
        self.first_step = {"process": process, "task": since}
        laps = []
        while not agree(len(laps) >= WARM_UP_STEPS and sum(laps) >= warm_up):
            began = time.perf_counter()
            take(1)
            laps.append(time.perf_counter() - began)
        seconds = sum(laps[1:]) / len(laps[1:])
        self.group_steps = agree(max(round(SECONDS_PER_GROUP / seconds), 1))
        for _ in range(rounds):
            began = time.perf_counter()
            waited = take(self.group_steps)
            self.groups.append(time.perf_counter() - began)
            self.waits += [] if waited is None else [waited]

    def numbers(self, batch_size):
        """Returns what was measured, as a value for JSON.

        Args:
          batch_size: images of a step.
        """
        seconds = np.array(self.groups)
        images = self.group_steps * batch_size
        total = float(seconds.sum())
        return {
            "steps": len(seconds) * self.group_steps,
            "images": len(seconds) * images,
            "seconds": total,
            "steps_per_group": self.group_steps,
            "images_per_second": {
                "mean": len(seconds) * images / total,
                **percentiles(images / seconds),
            },
            "step_seconds": percentiles(seconds / self.group_steps),
            "first_step_seconds": self.first_step,
            "input_wait": sum(self.waits) / total if self.waits else None,
        }


def percentiles(values):
    """Returns the median and the 10th and 90th percentile of some numbers."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def results_table(found, names):
    """Returns the text that is printed of a benchmark.

    Args:
      found: what `--benchmark_file` holds.
      names: of the tasks.
    """
    configuration, limits = found["configuration"], found["limits"]
    size = configuration["image_size"]
    title = (
        f"{configuration['model']}, {size} x {size}, batches of "
        f"{configuration['batch_size']}, {configuration['precision']}, "
        f"{configuration['data']} images, {configuration['replicas']} "
        "replica(s)"
    )
    rows = [["", *names]]
    for row, text_of in ROWS.items():
        texts = [text_of(found[name]) for name in names]
        if any(texts):
            rows.append([row, *texts])
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype, rate in limits["flops_per_second"].items()
    )
    machine = (
        f"One device here, as TensorFlow reaches it: matrix products "
        f"{products}; memory {limits['bytes_per_second'] / 1e9:,.1f} GB/s."
    )
    lines = [_roofline_line(name, found[name]["roofline"]) for name in names]
    return "\n".join([title, text_table(rows), machine, *lines])


def _roofline_line(name, least):
    """Returns the least time of a step, and its reason."""
    return (
        f"A step of {name}: products of {least['flops'] / 1e9:,.1f} GFLOP take "
        f"{_seconds(least['products_seconds'])}, {least['bytes'] / 1e9:,.2f} "
        f"GB to move take {_seconds(least['memory_seconds'])}; operation by "
        f"operation, whichever takes longer, at least "
        f"{_seconds(least['least_seconds'])}: {least['share']:.0%} of that "
        "speed is reached."
    )


def _seconds(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _range(numbers, text_of):
    low, high = text_of(numbers["p10"]), text_of(numbers["p90"])
    return f"{text_of(numbers['median'])} ({low} to {high})"


def _gigabytes(count):
    return "" if count is None else f"{count / 1e9:.2f} GB"


def _known_seconds(seconds):
    return "" if seconds is None else _seconds(seconds)


# Title -> (what was measured of a task) -> text; "" if it is unknown.
ROWS = {
    "images per second (10th to 90th percentile)": lambda m: _range(
        m["images_per_second"], partial(format_metric, "images_per_second")
    ),
    "seconds per step": lambda m: _range(m["step_seconds"], _seconds),
    "steps timed": lambda m: str(m["steps"]),
    "first step, from the start of the process": lambda m: _known_seconds(
        m["first_step_seconds"]["process"]
    ),
    "first step, from the beginning of the task": lambda m: _seconds(
        m["first_step_seconds"]["task"]
    ),
    "waiting for input": lambda m: (
        "" if m["input_wait"] is None else f"{m['input_wait']:.1%}"
    ),
    "memory at its most": lambda m: _gigabytes(m["peak_memory_bytes"]),
    "memory of the GPU at its most": lambda m: _gigabytes(
        m["peak_device_memory_bytes"]
    ),
    # Training: forward, and the gradients of inputs and of kernels, three
    # times the products of the forward pass, but for the images' gradient.
    "GFLOP/s": lambda m: f"{m['flops_per_second'] / 1e9:,.1f}",
    "share of matrix products' speed": lambda m: f"{m['share_of_flops']:.0%}",
    "share of memory's speed": lambda m: f"{m['share_of_bandwidth']:.0%}",
    "share of the roofline": lambda m: f"{m['roofline']['share']:.0%}",
}


# The classes of noise, unless a run has its own.
SYNTHETIC_CLASSES = tuple(map(str, range(1000)))
# More than any existing run, whose epochs are others than those of noise.
SYNTHETIC_STEPS = 10**9
# An epoch of noise.
SYNTHETIC_BATCHES = 100


class Task(NamedTuple):
    """What is timed step by step, ready to begin.

    `take` is a function of a number of steps that does them, to their end, and
    returns the seconds that it waited for images, None if they are unknown.
    `minimum_work` returns the `MinimumWork` of each operation of a step, on
    `batch_size` images.
    """

    take: Callable
    classifier: Classifier
    settings: Settings
    workers: Workers
    replicas: int
    minimum_work: Callable

    @property
    def batch_size(self):
        return self.settings.batch_size

    def limits(self, of_device):
        """Returns the `Limits` of all its devices, of all workers.

        All workers must call it.

        Args:
          of_device: `Limits` of one device of this worker.
        """
        if self.replicas < self.workers.count:
            # Every worker does all of it by itself.
            return of_device
        # Replicas on CPUs share the cores that one product takes as well.
        gpus = tf.config.list_logical_devices("GPU")
        devices = self.replicas / self.workers.count if gpus else 1
        return Limits(*self.workers.sums(*of_device.times(devices)))


def training(settings, is_synthetic):
    """Returns the `Task` of training, as a run does it.

    On images, though a run may cache the embeddings of a frozen backbone; and
    with all of `--freeze` frozen, though a run may unfreeze it later.

    Args:
      settings: `Settings` that were given, with the `workdir` of a run or of
        one that is not there yet.
      is_synthetic: whether images are noise.
    """
    run = _open_run(settings, is_synthetic)
    trainer = run.trainer
    if is_synthetic:
        training_batches = _noise(run, weighted=False)
    else:
        training_batches = run.training_batches()
    iterator = iter(training_batches)

    def take(count):
        broken_step, waited = trainer.train(iterator, tf.constant(count))
        # The step is over when its results are on the host.
        int(broken_step)
        return float(waited)

    def minimum_work():
        model = run.classifier.model
        return training_work(
            _maps(run.settings, model),
            _num_bytes(model.trainable_variables),
            _num_bytes(trainer.optimizer.variables),
        )

    return _task_of(run, take, minimum_work)


def evaluation(settings, is_synthetic):
    """Returns the `Task` of evaluating, as a run does it."""
    run = _open_run(settings, is_synthetic)
    trainer = run.trainer
    split = run.data.evaluation
    if split is None:
        raise UserError(
            "--benchmark=evaluate has nothing to evaluate on "
            "(--validation_fraction=0); take --benchmark_data=synthetic"
        )
    if is_synthetic:
        evaluation_batches = _noise(run, weighted=True)
    else:
        evaluation_batches = distribute(
            trainer.strategy,
            lambda context: batches.evaluation_batches(
                split, run.transforms, run.batch_size, context
            ).repeat(),
        )
    iterator = iter(evaluation_batches)

    def take(count):
        trainer.evaluate(iterator, tf.constant(count))
        trainer.results("eval")

    def minimum_work():
        return inference_work(_maps(run.settings, run.classifier.model))

    return _task_of(run, take, minimum_work)


def prediction(settings, is_synthetic):
    """Returns the `Task` of predicting, as `--mode=predict` does it.

    On the first device, with any strategy; a GPU gets the images from the host
    in each step.
    """
    resolved = resolve(settings)
    # Other tasks of this process may need all of its devices.
    workers = Workers(build_strategy(resolved))
    check_image_size(resolved)
    check_memory(resolved)
    size, split = resolved.image_size, None
    class_names = _class_names(settings)
    if not is_synthetic:
        data, _ = open_whole_data(resolved)
        class_names, split = data.class_names, data.evaluation or data.train
    if Workdir.of(settings.workdir).is_run:
        classifier = load_classifier(settings.workdir)
    else:
        classifier = build_classifier(resolved, class_names)
        _give_offsets(classifier.model)
    prepare_for_inference(resolved, classifier)
    if split is None:
        context = tf.distribute.InputContext()
        dataset = noise_batches(
            resolved.batch_size, size, len(class_names), context, weighted=True
        )
    else:
        transforms = make_transforms(resolved, data)
        dataset = batches.evaluation_batches(
            split, transforms, resolved.batch_size
        ).repeat()
    iterator = iter(dataset)

    def take(count):
        waited = 0.0
        for _ in range(count):
            began = time.perf_counter()
            images, *_ = next(iterator)
            waited += time.perf_counter() - began
            classifier.probabilities(images).numpy()
        return waited

    def minimum_work():
        return inference_work(_maps(resolved, classifier.model))

    return Task(take, classifier, resolved, workers, 1, minimum_work)


# Name -> function like `training`.
TASKS = {"train": training, "evaluate": evaluation, "predict": prediction}


def _give_offsets(model):
    """Gives a new model's batch norms something to add, as training does.

    If weights are constants, TensorFlow removes the addition of zeros; it then
    fuses nothing into the convolutions, and is slower than a trained network.
    """
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNormalization) and layer.center:
            beta = layer.beta
            beta.assign(0.1 * random.standard_normal(beta.shape))


def _open_run(settings, is_synthetic):
    """Returns a `Run`, with noise in place of its images if that is wanted."""
    data = None
    if is_synthetic:
        batch_size = resolve(settings).batch_size
        data = synthetic_data(_class_names(settings), batch_size)
        settings = dataclasses.replace(settings, steps=SYNTHETIC_STEPS)
    return Run.create(settings, data)


def _class_names(settings):
    """Returns the names of the classes of a run, or some."""
    workdir = Workdir.of(settings.workdir)
    if workdir.is_run:
        return workdir.read_data()["class_names"]
    return SYNTHETIC_CLASSES


def _noise(run, weighted):
    """Returns distributed batches of noise."""
    return distribute(
        run.trainer.strategy,
        lambda context: noise_batches(
            run.batch_size,
            run.settings.image_size,
            len(run.data.class_names),
            context,
            weighted,
        ),
    )


def _task_of(run, take, minimum_work):
    trainer = run.trainer
    replicas = trainer.strategy.num_replicas_in_sync
    return Task(
        take,
        run.classifier,
        run.settings,
        trainer.workers,
        replicas,
        minimum_work,
    )


def _maps(settings, model):
    return feature_maps(model, settings.image_size, settings.batch_size)


def _num_bytes(variables):
    return sum(
        variable.shape.num_elements() * tf.as_dtype(variable.dtype).size
        for variable in variables
    )


def synthetic_data(class_names, batch_size):
    """Returns `Data` without images, that only have a number of them."""
    count = SYNTHETIC_BATCHES * batch_size
    labels = np.arange(count) % len(class_names)
    # No tensors: the devices of TensorFlow are not set up yet.
    split = Split.of_all(MemoryStore(np.zeros(count), labels))
    return Data(tuple(class_names), split, split, contents={})


def noise_batches(batch_size, image_size, num_classes, context, weighted):
    """Returns an endless dataset of one batch, there from the beginning.

    Args:
      batch_size: examples of one step, over all replicas.
      image_size: height and width.
      num_classes: how many different labels there are.
      context: a `tf.distribute.InputContext`.
      weighted: whether weights follow the labels, as in evaluation.
    """
    size = context.get_per_replica_batch_size(batch_size)
    random = np.random.default_rng(0)
    shape = (size, image_size, image_size, 3)
    batch = (
        tf.constant(random.integers(0, 256, shape, np.uint8)),
        tf.constant(random.integers(0, num_classes, size)),
    )
    if weighted:
        batch += (tf.ones(size),)
    return tf.data.Dataset.from_tensors(batch).repeat()
