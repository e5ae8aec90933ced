"""Settings -> an evaluation: classifiers, examples and predictions."""

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

# Side of the images in HTML reports, in pixels.
PAGE_IMAGE_SIDE = 144
# Settings that choose the evaluation images of a run's dataset.
SPLIT_SETTINGS = ("train_split", "eval_split", "validation_fraction")


class Examples(NamedTuple):
    """The examples that a classifier is evaluated on.

    `labels` maps the dataset's class numbers to the classifier's; `note` says
    how they were matched, or is empty.
    """

    split: Split
    labels: np.ndarray
    note: str


class Evaluator:
    """Predicts the images of a split, on the devices of the settings.

    Args:
      explicit: explicit `Settings`, with the `workdir` of a run, or with
        `weights` and a `dataset`.

    Raises:
      UserError: both are missing, or the devices are not available.
    """

    def __init__(self, explicit: Settings):
        run_settings = Settings()
        if explicit.workdir is not None:
            run_settings = Settings.read(Workdir.of(explicit.workdir).flags)
            if run_settings.strategy == "multi_worker":
                # One machine is enough to evaluate.
                run_settings = dataclasses.replace(run_settings, strategy=None)
        elif explicit.weights is None or explicit.dataset is None:
            raise UserError(
                "--workdir: not set. Pass the --workdir of a run, or --weights "
                "and a --dataset to evaluate them on."
            )
        self.explicit = explicit
        # Evaluating a run with other settings does not change the run.
        self.settings = (
            explicit.over(run_settings).over(MODE_DEFAULTS).over(DEFAULTS)
        )
        check_memory(self.settings)
        # Only training splits a batch into micro-batches.
        self.strategy = build_strategy(
            dataclasses.replace(self.settings, gradient_accumulation_steps=1)
        )
        name = self.settings.test_time_augmentation
        self.augmentation = TEST_TIME_AUGMENTATIONS[name]

    @property
    def source(self):
        """The run or the weights that are evaluated."""
        return self.explicit.workdir or self.explicit.weights

    def report_folder(self, *options):
        """Returns the `report_folder` of the explicit settings."""
        texts = {n: to_text(v) for n, v in self.explicit.given.items()}
        return report_folder(texts, *options)

    def open_own_classifier(self):
        """Returns the `Classifier` of `source`."""
        return self.open_classifier(
            self.source,
            model=self.explicit.model,
            class_names=read_class_names(self.explicit),
            step=self.explicit.checkpoint,
        )

    def open_classifier(self, source, **options):
        """Returns the `Classifier` of a run or of weights, on the devices.

        Explicit settings override its own preprocessing.

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
        return override_preprocessing(classifier, self.explicit)

    def open_examples(self, class_names, eval_split=None):
        """Returns the `Examples` to evaluate a classifier on.

        Args:
          class_names: of the classifier.
          eval_split: of the dataset; by default the explicit one, or the one
            that a run evaluates on.

        Raises:
          UserError: the dataset is missing, or has classes that are unknown
            to the classifier.
        """
        settings = self.settings
        stored = self._stored
        eval_split = eval_split or self.explicit.eval_split
        data = None if eval_split else self._data_of_run(stored)
        if data is None:
            split = choose_evaluation(stored, eval_split)
        elif data.evaluation is None:
            raise UserError(
                f"--workdir={self.explicit.workdir}: has no evaluation split. "
                "Pass other images with --dataset, or a split with "
                "--eval_split."
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
        """The dataset that models are evaluated on."""
        settings = self.settings
        stored = datasets.open_dataset(
            settings.dataset, settings.data_dir, settings.manual_dir
        )
        if stored.fault and self.explicit.dataset is not None:
            raise UserError(stored.fault)
        if stored.fault:
            print(f"warning: {stored.fault}")
        return stored

    def _data_of_run(self, stored):
        """Returns the `Data` of the run; None for another dataset."""
        settings, explicit = self.settings, self.explicit
        options = [getattr(settings, name) for name in SPLIT_SETTINGS]
        if explicit.dataset is None:
            data = choose_splits(stored, *options)
            workdir = Workdir.of(explicit.workdir)
            difference = data.difference(workdir.read_data())
            if difference and explicit.given.keys().isdisjoint(SPLIT_SETTINGS):
                print(
                    f"warning: --dataset={settings.dataset}: not the images "
                    f"that {workdir} was trained on ({difference}). Some of "
                    "those evaluated may be among them."
                )
            return data
        if explicit.workdir is None:
            return None
        # It may be the dataset of the run in another place. Then only the
        # run's evaluation split is evaluated: the rest was trained on.
        try:
            data = choose_splits(stored, *options)
        except UserError:
            return None
        recorded = Workdir.of(explicit.workdir).read_data()
        return None if data.difference(recorded) else data

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


def match_classes(stored, model_names):
    """Returns the model's numbers of a dataset's classes, and a note.

    Args:
      stored: a `Dataset`.
      model_names: names of the classes of a model.

    Raises:
      UserError: a class is unknown to the model, or its name is not unique.
    """
    names, model_names = (
        with_imagenet_words(stored.class_names),
        list(model_names),
    )
    if names == model_names:
        return np.arange(len(names)), ""
    number_of = {name: number for number, name in enumerate(model_names)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        few = ", ".join(model_names[:5])
        few += ", ..." if len(model_names) > 5 else ""
        raise UserError(
            f"--dataset: {len(unknown)} of {len(names)} classes are unknown to "
            f"the model, such as {unknown[0]!r}. Rename them to the model's: "
            f"{few}.{stored.hint and f' {stored.hint}.'}"
        )
    check_unique(names)
    known = set(names)
    check_unique(name for name in model_names if name in known)
    which = "in another order"
    if len(names) < len(model_names):
        which = f"{len(names)} of the model's {len(model_names)}"
    note = f"The classes of the dataset are {which}, matched by name."
    return np.array([number_of[name] for name in names]), note


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
      batch_size: global batch size.
      augmentation: a `TestTimeAugmentation`.
      labels: int [classes of the split], the classifier's number of each
        class; None if they are the same.

    Raises:
      UserError: an image cannot be read.
      StoppedError: a signal requested a stop.
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
            per_replica = map(strategy.experimental_local_results, results)
            for logits, truth, weights in zip(*per_replica, strict=True):
                # Examples of weight 0 only pad the last batch.
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
    """Returns a function: position in a split -> its image, resized."""
    transforms = Transforms(preprocessing._replace(image_size=PAGE_IMAGE_SIDE))

    # As a graph: eagerly, the input pipeline would be built anew for every
    # image. See also `Classifier`.
    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    def read(position):
        example = split.read(None, position, tf.constant(1, tf.int64))
        file = split.load(example["image"][0])
        return transforms.evaluate(transforms.transcode(file))

    return lambda position: read(tf.constant(int(position), tf.int64)).numpy()
