"""The tasks of a benchmark: what is timed, and the table of the results."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers import BatchNormalization
from train_loop.benchmark.machine import Limits
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

# Synthetic images have as many classes as ImageNet, or those of a run.
SYNTHETIC_CLASSES = tuple(map(str, range(1000)))
# An epoch of synthetic images.
SYNTHETIC_BATCHES = 100
# Exceeds the step of any existing run, which a benchmark may resume.
SYNTHETIC_STEPS = 10**9


class Task(NamedTuple):
    """A task that is ready to be timed step by step.

    `take` is a function of a number of steps. It runs them to their end and
    returns the seconds that it waited for images, or None if unknown.
    `minimum_work` returns the `MinimumWork` of each operation of a step with
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
        """Returns the `Limits` of all devices of all workers together.

        All workers must call it.

        Args:
          of_device: `Limits` of one device of this worker.
        """
        if self.replicas < self.workers.count:
            # Every worker runs the whole task by itself.
            return of_device
        # Replicas on CPUs share the cores that a single product uses too.
        gpus = tf.config.list_logical_devices("GPU")
        devices = self.replicas / self.workers.count if gpus else 1
        return Limits(*self.workers.sums(*of_device.times(devices)))


def training(settings, is_synthetic):
    """Returns the `Task` of training steps, as in a run.

    The steps process images even if the run would cache the embeddings of a
    frozen backbone. All of `--freeze` stays frozen.

    Args:
      settings: explicit `Settings`, with the `workdir` of a new or an existing
        run.
      is_synthetic: whether images are random noise.
    """
    run = _open_run(settings, is_synthetic)
    trainer = run.trainer
    if is_synthetic:
        training_batches = _synthetic_batches(run, weighted=False)
    else:
        training_batches = run.training_batches()
    iterator = iter(training_batches)

    def take(count):
        broken_step, waited = trainer.train(iterator, tf.constant(count))
        # A step ends when its results are on the host.
        int(broken_step)
        return float(waited)

    def minimum_work():
        return training_work(
            _feature_maps(run.settings, run.classifier),
            _num_bytes(run.classifier.model.trainable_variables),
            _num_bytes(trainer.optimizer.variables),
        )

    return _task_of(run, take, minimum_work)


def evaluation(settings, is_synthetic):
    """Returns the `Task` of evaluation steps, as in a run."""
    run = _open_run(settings, is_synthetic)
    trainer = run.trainer
    split = run.data.evaluation
    if split is None:
        raise UserError(
            "--benchmark=evaluate: requires evaluation images, but "
            "--validation_fraction=0 leaves none. Pass "
            "--benchmark_data=synthetic."
        )
    if is_synthetic:
        evaluation_batches = _synthetic_batches(run, weighted=True)
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
        return inference_work(_feature_maps(run.settings, run.classifier))

    return _task_of(run, take, minimum_work)


def prediction(settings, is_synthetic):
    """Returns the `Task` of predictions, as in `--mode=predict`.

    It uses the first device under any strategy. A GPU receives the images from
    the host in each step.
    """
    resolved = resolve(settings)
    # Creates all devices, which other tasks of this process may need.
    workers = Workers(build_strategy(resolved))
    check_image_size(resolved)
    check_memory(resolved)
    class_names, split = _class_names(settings), None
    if not is_synthetic:
        data, _ = open_whole_data(resolved)
        class_names, split = data.class_names, data.evaluation or data.train
    if Workdir.of(settings.workdir).is_run:
        classifier = load_classifier(settings.workdir)
    else:
        classifier = build_classifier(resolved, class_names)
        _randomize_offsets(classifier.model)
    prepare_for_inference(resolved, classifier)
    if split is None:
        dataset = synthetic_batches(
            resolved.batch_size,
            resolved.image_size,
            len(class_names),
            tf.distribute.InputContext(),
            weighted=True,
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
        return inference_work(_feature_maps(resolved, classifier))

    return Task(take, classifier, resolved, workers, 1, minimum_work)


# Name -> function like `training`.
TASKS = {"train": training, "evaluate": evaluation, "predict": prediction}


def synthetic_data(class_names, batch_size):
    """Returns `Data` that has a number of examples, but no images."""
    count = SYNTHETIC_BATCHES * batch_size
    labels = np.arange(count) % len(class_names)
    # Not tensors: TensorFlow's devices are not configured yet.
    split = Split.of_all(MemoryStore(np.zeros(count), labels))
    return Data(tuple(class_names), split, split, contents={})


def synthetic_batches(batch_size, image_size, num_classes, context, weighted):
    """Returns a dataset that repeats a single batch of noise without end.

    Args:
      batch_size: global batch size.
      image_size: height and width.
      num_classes: number of different labels.
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


def results_table(results, names):
    """Returns the text that a benchmark prints.

    Args:
      results: the content of `--benchmark_file`.
      names: names of the tasks.
    """
    configuration, limits = results["configuration"], results["limits"]
    size = configuration["image_size"]
    title = (
        f"{configuration['model']}, {size} x {size}, batch size "
        f"{configuration['batch_size']}, {configuration['precision']}, "
        f"{configuration['data']} images, {configuration['replicas']} "
        "replica(s)"
    )
    rows = [["", *names]]
    for label, text_of in ROWS.items():
        texts = [text_of(results[name]) for name in names]
        if any(texts):
            rows.append([label, *texts])
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype} matrix products"
        for dtype, rate in limits["flops_per_second"].items()
    )
    bandwidth = f"{limits['bytes_per_second'] / 1e9:,.1f} GB/s of memory"
    machine = f"Measured peak of one device: {products}, {bandwidth}."
    lines = [_roofline_text(name, results[name]["roofline"]) for name in names]
    return "\n".join([title, text_table(rows), machine, *lines])


def _roofline_text(name, roofline):
    return (
        f"Roofline of {name}: {roofline['flops'] / 1e9:,.1f} GFLOP of matrix "
        f"products take {_seconds(roofline['products_seconds'])}, "
        f"{roofline['bytes'] / 1e9:,.2f} GB of memory traffic take "
        f"{_seconds(roofline['memory_seconds'])}. With the slower of the two "
        "for each operation, a step takes at least "
        f"{_seconds(roofline['least_seconds'])}; the measured speed is "
        f"{roofline['share']:.0%} of that."
    )


def _range(numbers, text_of):
    low, high = text_of(numbers["p10"]), text_of(numbers["p90"])
    return f"{text_of(numbers['median'])} ({low} to {high})"


def _seconds(seconds):
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _gigabytes(count):
    return "" if count is None else f"{count / 1e9:.2f} GB"


def _percent(fraction):
    return "" if fraction is None else f"{fraction:.1%}"


# Row -> function of the results of a task -> text; "" if unknown.
ROWS = {
    "images per second (10th to 90th percentile)": lambda task: _range(
        task["images_per_second"], partial(format_metric, "images_per_second")
    ),
    "time per step": lambda task: _range(task["step_seconds"], _seconds),
    "timed steps": lambda task: str(task["steps"]),
    "first step, from the start of the process": lambda task: _seconds(
        task["first_step_seconds"]["process"]
    ),
    "first step, from the start of the task": lambda task: _seconds(
        task["first_step_seconds"]["task"]
    ),
    "fraction of time waiting for input": lambda task: _percent(
        task["input_wait"]
    ),
    "peak memory": lambda task: _gigabytes(task["peak_memory_bytes"]),
    "peak GPU memory": lambda task: _gigabytes(
        task["peak_device_memory_bytes"]
    ),
    # Training takes three times the operations of the forward pass, for the
    # gradients of inputs and kernels, except the gradient of the images.
    "GFLOP/s": lambda task: f"{task['flops_per_second'] / 1e9:,.1f}",
    "fraction of peak GFLOP/s": lambda task: f"{task['share_of_flops']:.0%}",
    "fraction of peak memory bandwidth": lambda task: (
        f"{task['share_of_bandwidth']:.0%}"
    ),
    "fraction of the roofline": lambda task: f"{task['roofline']['share']:.0%}",
}


def _open_run(settings, is_synthetic):
    """Returns the `Run` to measure."""
    data = None
    if is_synthetic:
        batch_size = resolve(settings).batch_size
        data = synthetic_data(_class_names(settings), batch_size)
        settings = dataclasses.replace(settings, steps=SYNTHETIC_STEPS)
    return Run.create(settings, data)


def _class_names(settings):
    workdir = Workdir.of(settings.workdir)
    if workdir.is_run:
        return workdir.read_data()["class_names"]
    return SYNTHETIC_CLASSES


def _synthetic_batches(run, weighted):
    """Returns distributed batches of noise."""
    return distribute(
        run.trainer.strategy,
        lambda context: synthetic_batches(
            run.batch_size,
            run.settings.image_size,
            len(run.data.class_names),
            context,
            weighted,
        ),
    )


def _task_of(run, take, minimum_work):
    return Task(
        take,
        run.classifier,
        run.settings,
        run.trainer.workers,
        run.trainer.strategy.num_replicas_in_sync,
        minimum_work,
    )


def _randomize_offsets(model):
    """Gives the batch norms of a new model offsets, as training does.

    If the weights are constants, TensorFlow removes additions of zeros. It
    then fuses nothing into the convolutions, and is slower than for a trained
    model.
    """
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNormalization) and layer.center:
            beta = layer.beta
            beta.assign(0.1 * random.standard_normal(beta.shape))


def _feature_maps(settings, classifier):
    return feature_maps(
        classifier.model, settings.image_size, settings.batch_size
    )


def _num_bytes(variables):
    return sum(
        variable.shape.num_elements() * tf.as_dtype(variable.dtype).size
        for variable in variables
    )
