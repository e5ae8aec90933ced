"""Settings -> an evaluation: classifiers, examples, their predictions."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train_loop import process
from train_loop.builders.data import check_none_rejected
from train_loop.builders.model import (
    is_weights,
    load_classifier,
    override_preprocessing,
    prepare_for_inference,
    read_class_names,
)
from train_loop.builders.training import build_strategy, check_memory
from train_loop.console import transient_bar
from train_loop.data import batches, check, datasets
from train_loop.data.datasets import (
    check_unique,
    choose_evaluation,
    choose_splits,
)
from train_loop.data.split import Split
from train_loop.data.tfds import with_imagenet_words
from train_loop.data.transforms import Transforms, preprocessing_of
from train_loop.errors import UserError
from train_loop.evaluation.predictions import (
    TEST_TIME_AUGMENTATIONS,
    Predictions,
)
from train_loop.evaluation.report import report_folder
from train_loop.resolve import DEFAULTS, MODE_DEFAULTS
from train_loop.settings import Settings, to_text
from train_loop.training.strategies import distribute
from train_loop.workdir import Workdir

# The side of images on pages, in pixels.
PAGE_IMAGE_SIDE = 144
# What decides which images of a data set a run evaluates on.
SPLIT_SETTINGS = ("train_split", "eval_split", "validation_fraction")


class Examples(NamedTuple):
    """The examples that a classifier is evaluated on.

    `labels` are the numbers of the data set's classes among the classifier's;
    `note` says in words how they were matched, or is empty.
    """

    split: Split
    labels: np.ndarray
    note: str


class Evaluator:
    """Predicts the images of a split, on the devices of the settings.

    Args:
      given: explicit `Settings`, with the `workdir` of a run, or with
        `weights` and a `dataset`.

    Raises:
      UserError: it has neither, or there are no such devices.
    """

    def __init__(self, given: Settings):
        made_with = Settings()
        if given.workdir is not None:
            made_with = Settings.read(Workdir.of(given.workdir).flags)
            if made_with.strategy == "multi_worker":
                # The workers are gone, and one machine is enough to evaluate.
                made_with = dataclasses.replace(made_with, strategy=None)
        elif given.weights is None or given.dataset is None:
            raise UserError(
                "what is to be measured? Name the --workdir of a run, or "
                "--weights and a --dataset to measure them on"
            )
        self.given = given
        # Evaluating a run in another way changes nothing in it.
        self.settings = given.over(made_with).over(MODE_DEFAULTS).over(DEFAULTS)
        check_memory(self.settings)
        # Only updates have micro-batches.
        self.strategy = build_strategy(
            dataclasses.replace(self.settings, gradient_accumulation_steps=1)
        )
        name = self.settings.test_time_augmentation
        self.augmentation = TEST_TIME_AUGMENTATIONS[name]

    @property
    def source(self):
        """The run or the weights that are evaluated."""
        return self.given.workdir or self.given.weights

    def report_folder(self, *options):
        """Returns the `report_folder` of the explicit settings."""
        given = {n: to_text(value) for n, value in self.given.given.items()}
        return report_folder(given, *options)

    def open_own_classifier(self):
        """Returns the `Classifier` of `source`."""
        return self.open_classifier(
            self.source,
            model=self.given.model,
            class_names=read_class_names(self.given),
            step=self.given.checkpoint,
        )

    def open_classifier(self, source, **options):
        """Returns the `Classifier` of a run or of weights, on the devices.

        Its preprocessing is its own, except for explicit settings.

        Args:
          source: see `load_classifier`.
          **options: see `load_classifier`.
        """
        with self.strategy.scope():
            if is_weights(source):
                options["data_names"] = self._stored.class_names
            classifier = load_classifier(
                source, averaged=self.settings.use_weight_average, **options
            )
            prepare_for_inference(self.settings, classifier)
        return override_preprocessing(classifier, self.given)

    def open_examples(self, class_names, eval_split=None):
        """Returns the `Examples` to evaluate a classifier on.

        Args:
          class_names: of the classifier.
          eval_split: of the data set; by default the explicit one, or the one
            that a run evaluates on.

        Raises:
          UserError: the data set is missing, or has classes that the
            classifier does not know.
        """
        settings = self.settings
        stored = self._stored
        eval_split = eval_split or self.given.eval_split
        data = None if eval_split else self._data_of_run(stored)
        if data is None:
            split = choose_evaluation(stored, eval_split)
        elif data.evaluation is None:
            raise UserError(
                f"{self.given.workdir} was trained on everything and evaluates "
                "on nothing; name other images with --dataset, or a split with "
                "--eval_split"
            )
        else:
            split = data.evaluation
        if settings.skip_bad_images:
            broken = [n for n, why in check.broken_images(split) if why]
            split = split.without(broken)
        else:
            check_none_rejected(stored.rejected)
        return Examples(split, *match_classes(stored, class_names))

    @functools.cached_property
    def _stored(self):
        """The data set that models are evaluated on."""
        settings = self.settings
        stored = datasets.open_dataset(
            settings.dataset, settings.data_dir, settings.manual_dir
        )
        if stored.fault and self.given.dataset is not None:
            raise UserError(stored.fault)
        if stored.fault:
            print(f"warning: {stored.fault}")
        return stored

    def _data_of_run(self, stored):
        """Returns the `Data` of the run; None for another data set."""
        settings, given = self.settings, self.given
        options = [getattr(settings, name) for name in SPLIT_SETTINGS]
        if given.dataset is None:
            data = choose_splits(stored, *options)
            workdir = Workdir.of(given.workdir)
            difference = data.difference(workdir.read_data())
            if difference and given.given.keys().isdisjoint(SPLIT_SETTINGS):
                print(
                    f"warning: --dataset={settings.dataset}: not the images "
                    f"that {workdir} was trained on ({difference}). Some of "
                    "those evaluated may be among them."
                )
            return data
        if given.workdir is None:
            return None
        # It may be the run's own, moved: most of it was trained on.
        try:
            data = choose_splits(stored, *options)
        except UserError:
            return None
        began = Workdir.of(given.workdir).read_data()
        return None if data.difference(began) else data

    def predict(self, classifier, examples):
        """Returns the `Predictions` of a classifier for examples."""
        return predict_split(
            classifier,
            examples.split,
            self.strategy,
            self.settings.batch_size,
            self.augmentation,
            examples.labels,
        )


def match_classes(stored, ours):
    """Returns the numbers of a data set's classes among ours, and a note.

    Args:
      stored: a `Dataset`.
      ours: names of the classes of a model.

    Raises:
      UserError: one of them is unknown, or several have its name.
    """
    theirs, ours = with_imagenet_words(stored.class_names), list(ours)
    if theirs == ours:
        return np.arange(len(ours)), ""
    number_of = {name: number for number, name in enumerate(ours)}
    unknown = [name for name in theirs if name not in number_of]
    if unknown:
        few = ", ".join(ours[:5]) + (", ..." if len(ours) > 5 else "")
        raise UserError(
            f"the model knows no class {unknown[0]!r} ({len(unknown)} of "
            f"{len(theirs)} classes of the data set are unknown); it knows "
            f"{few}. Classes are matched by name"
            f"{stored.hint and f'. {stored.hint}'}"
        )
    check_unique(theirs)
    known = set(theirs)
    check_unique(name for name in ours if name in known)
    which = "in another order"
    if len(theirs) < len(ours):
        which = f"{len(theirs)} of the model's {len(ours)}"
    note = f"The classes of the data set are {which}, matched by name."
    return np.array([number_of[name] for name in theirs]), note


def predict_split(
    classifier,
    split,
    strategy,
    batch_size,
    augmentation=TEST_TIME_AUGMENTATIONS["none"],
    labels=None,
):
    """Returns the `Predictions` of a classifier for all examples of a split.

    Args:
      classifier: a `Classifier`, made in the strategy's scope.
      split: a `Split` with at least one example.
      strategy: a `tf.distribute.Strategy`.
      batch_size: examples at once, over all replicas.
      augmentation: a `TestTimeAugmentation`.
      labels: int [classes of the split], their numbers among the classifier's
        classes; None where they are the same.

    Raises:
      UserError: an image cannot be read.
      StoppedError: a signal asked a run to stop.
    """
    size = classifier.preprocessing.image_size
    preprocessing = preprocessing_of(split, classifier.preprocessing)
    transforms = Transforms(augmentation.preprocessing(preprocessing))
    dataset = distribute(
        strategy,
        lambda context: batches.evaluation_batches(
            split, transforms, batch_size, context
        ),
    )

    @tf.function(autograph=False)
    def step(batch):
        images, truth, weights = batch
        logits = augmentation.logits(classifier.logits, images, size)
        return logits, truth, weights

    predicted = []
    steps = batches.num_evaluation_steps(split, batch_size)
    with check.explained(split), transient_bar(steps, "batch") as bar:
        for batch in dataset:
            results = strategy.run(step, args=(batch,))
            parts = map(strategy.experimental_local_results, results)
            for logits, truth, weights in zip(*parts, strict=True):
                real = weights.numpy() > 0
                predicted.append((logits.numpy()[real], truth.numpy()[real]))
            bar.update(1)
            process.check()
    logits, truth = map(np.concatenate, zip(*predicted, strict=True))
    return Predictions(
        logits,
        truth if labels is None else labels[truth],
        classifier.class_names,
        [split.store.name(number) for number in split.indices],
        _image_loader(split, preprocessing),
    )


def _image_loader(split, preprocessing):
    """Returns a function: position in a split -> a small image of it."""
    transforms = Transforms(preprocessing._replace(image_size=PAGE_IMAGE_SIDE))

    # As a graph: step by step, the pipeline of a read would be built anew for
    # every image. See also `Classifier`.
    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    def read(position):
        example = split.read(None, position, tf.constant(1, tf.int64))
        file = split.load(example["image"][0])
        return transforms.evaluate(transforms.transcode(file))

    return lambda position: read(tf.constant(int(position), tf.int64)).numpy()
