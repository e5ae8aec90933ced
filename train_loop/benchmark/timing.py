"""What is timed of a model: steps of training, evaluation and prediction."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers import BatchNormalization
from train_loop.benchmark.machine import Limits, age
from train_loop.benchmark.work import inference_work, maps_of, training_work
from train_loop.builders.data import make_transforms, open_whole_data
from train_loop.builders.model import (
    build_classifier,
    check_image_size,
    load_classifier,
    make_fast,
)
from train_loop.builders.training import build_strategy, check_memory
from train_loop.data import batches
from train_loop.data.split import Split
from train_loop.data.stored import Data
from train_loop.data.stores import MemoryStore
from train_loop.errors import UserError
from train_loop.prediction.classifier import Classifier
from train_loop.resolve import MODE_DEFAULTS, settle
from train_loop.run import Run
from train_loop.settings import Settings
from train_loop.training.strategies import distribute
from train_loop.training.workers import Workers
from train_loop.workdir import Workdir

# Of noise, where no run has names for them.
SYNTHETIC_CLASSES = tuple(map(str, range(1000)))
# More than any run has taken, whose epochs are not those of noise.
SYNTHETIC_STEPS = 10**9


class Task(NamedTuple):
    """Something that is done step by step, ready to begin.

    `take` does as many steps as it is told, waits for their end, and returns
    the seconds that it waited for images, None where nobody knows. `works`
    counts the `Work`s of a step, in which `batch_size` images are seen.
    """

    take: Callable
    classifier: Classifier
    settings: Settings
    workers: Workers
    replicas: int
    works: Callable

    @property
    def batch_size(self):
        return self.settings.batch_size

    def limits(self, of_device):
        """Returns the `Limits` of all devices that it takes, of all workers.

        All workers must ask.

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
    with all frozen that `--freeze` names, though a run may thaw it later.

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
        # The step is over when its numbers are there.
        int(broken_step)
        return float(waited)

    def works():
        model = run.classifier.model
        return training_work(
            _maps(run.settings, model),
            _num_bytes(model.trainable_variables),
            _num_bytes(trainer.optimizer.variables),
        )

    return _task_of(run, take, works)


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

    def works():
        return inference_work(_maps(run.settings, run.classifier.model))

    return _task_of(run, take, works)


def prediction(settings, is_synthetic):
    """Returns the `Task` of answering, as `--mode=predict` does it.

    On the first device, whatever the strategy; a GPU gets the images from the
    host in each step.
    """
    settled = settle(settings)
    # Other tasks of this process may need all of its devices.
    workers = Workers(build_strategy(settled))
    check_image_size(settled)
    check_memory(settled)
    size, split = settled.image_size, None
    class_names = _class_names(settings)
    if not is_synthetic:
        data, _ = open_whole_data(settled)
        class_names, split = data.class_names, data.evaluation or data.train
    if Workdir.of(settings.workdir).is_run:
        classifier = load_classifier(settings.workdir)
    else:
        classifier = build_classifier(settled, class_names)
        _give_offsets(classifier.model)
    make_fast(settings.over(MODE_DEFAULTS), classifier)
    if split is None:
        context = tf.distribute.InputContext()
        dataset = noise_batches(
            settled.batch_size, size, len(class_names), context, weighted=True
        )
    else:
        transforms = make_transforms(settled, data)
        dataset = batches.evaluation_batches(
            split, transforms, settled.batch_size
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

    def works():
        return inference_work(_maps(settled, classifier.model))

    return Task(take, classifier, settled, workers, 1, works)


# Name -> function like `training`.
TASKS = {"train": training, "evaluate": evaluation, "predict": prediction}


def _give_offsets(model):
    """Gives a new model's batch norms something to add, as training does.

    Where weights are constants, TensorFlow leaves out what adds zeros; it then
    fuses nothing into the convolutions, and is slower than any trained net.
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
        batch_size = settle(settings).batch_size
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


def _task_of(run, take, works):
    trainer = run.trainer
    replicas = trainer.strategy.num_replicas_in_sync
    return Task(
        take, run.classifier, run.settings, trainer.workers, replicas, works
    )


def _maps(settings, model):
    return maps_of(model, settings.image_size, settings.batch_size)


def _num_bytes(variables):
    return sum(
        variable.shape.num_elements() * tf.as_dtype(variable.dtype).size
        for variable in variables
    )


# Behind the first, at least: what is set up late is not what a step costs.
WARM_UP_STEPS = 2
# A group of steps takes at least about this long, so that the clock and the
# call from Python do not count.
SECONDS_PER_GROUP = 0.25


class Stopwatch:
    """Takes the time of steps, by groups.

    It begins when it is made: before data are opened and the net is built.

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

    def time(self, take, rounds, agree=round, warm_up=0.0):
        """Times steps: the first one, some to warm up, and then groups.

        Args:
          take: does as many steps as it is told, to their end, and returns the
            seconds that it waited for input, or None.
          rounds: how many groups.
          agree: maps a number to a whole one that all workers have.
          warm_up: seconds that warming up takes at least.
        """
        take(1)
        since = time.perf_counter() - self.began
        process = age() if self.is_first else None
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
    """Returns the middle of some numbers, and where most of them lie."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


# So many batches are an epoch.
BATCHES = 100


def synthetic_data(class_names, batch_size):
    """Returns `Data` that only tell how many images there would be."""
    count = BATCHES * batch_size
    labels = np.arange(count) % len(class_names)
    # TensorFlow may not have begun: whoever needs its devices comes later.
    split = Split.of_all(MemoryStore(np.zeros(count), labels))
    return Data(tuple(class_names), split, split, contents={})


def noise_batches(batch_size, image_size, num_classes, context, weighted):
    """Returns an endless dataset of one batch, there from the beginning.

    Args:
      batch_size: examples of one step, over all replicas.
      image_size: height and width.
      num_classes: how many different labels there are.
      context: a `tf.distribute.InputContext`.
      weighted: whether weights stand behind the labels, as in evaluation.
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
