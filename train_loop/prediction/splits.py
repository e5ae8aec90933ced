"""Predictions for a whole split."""

import dataclasses

import numpy as np
import tensorflow as tf

from train_loop import stopping
from train_loop.data import batches, check
from train_loop.data.transforms import Transforms, preprocessing_of
from train_loop.evaluation.predictions import Predictions
from train_loop.evaluation.views import VIEWS
from train_loop.progress import passing_bar
from train_loop.training.strategies import distribute

# The side of the pictures that pages show.
PICTURE_SIDE = 144


def predict_split(
    classifier, split, strategy, batch_size, views=VIEWS["none"], labels=None
):
    """Returns the `Predictions` of a classifier for all examples of a split.

    Args:
      classifier: a `Classifier`, made in the strategy's scope.
      split: a `Split` with at least one example.
      strategy: a `tf.distribute.Strategy`.
      batch_size: examples at once, over all replicas.
      views: a row of `VIEWS`.
      labels: int [classes of the split], their numbers among the classifier's
        classes; None where they are the same.

    Raises:
      UserError: an image cannot be read.
      StoppedError: a signal asked a run to stop.
    """
    size = classifier.preprocessing.image_size
    preprocessing = preprocessing_of(split, classifier.preprocessing)
    transforms = Transforms(views.preprocessing(preprocessing))
    dataset = distribute(
        strategy,
        lambda context: batches.evaluation_batches(
            split, transforms, batch_size, context
        ),
    )

    @tf.function(autograph=False)
    def step(batch):
        images, truth, weights = batch
        logits = views.logits(classifier.logits, images, size)
        return logits, truth, weights

    found = []
    steps = batches.num_evaluation_steps(split, batch_size)
    with check.explained(split), passing_bar(steps, "batch") as bar:
        for batch in dataset:
            results = strategy.run(step, args=(batch,))
            parts = map(strategy.experimental_local_results, results)
            for logits, truth, weights in zip(*parts, strict=True):
                real = weights.numpy() > 0
                found.append((logits.numpy()[real], truth.numpy()[real]))
            bar.update(1)
            stopping.check()
    logits, truth = map(np.concatenate, zip(*found, strict=True))
    return Predictions(
        logits,
        truth if labels is None else labels[truth],
        classifier.class_names,
        [split.store.name(number) for number in split.indices],
        pictures_of(split, preprocessing),
    )


def pictures_of(split, preprocessing):
    """Returns a function: position in a split -> a small picture of it."""
    transforms = Transforms(preprocessing._replace(image_size=PICTURE_SIDE))

    # As a graph: step by step, the pipeline of a read would be built anew for
    # every picture. See also `Classifier`.
    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    def read(position):
        example = split.read(None, position, tf.constant(1, tf.int64))
        file = split.load(example["image"][0])
        return transforms.evaluate(transforms.transcode(file))

    return lambda position: read(tf.constant(int(position), tf.int64)).numpy()


def only_classes(predictions, class_names):
    """Returns the same predictions with the logits of some classes alone.

    Args:
      predictions: `Predictions` whose labels are all among those classes.
      class_names: in the order that is wanted.
    """
    if tuple(class_names) == tuple(predictions.class_names):
        return predictions
    places = {name: i for i, name in enumerate(predictions.class_names)}
    order = np.array([places[name] for name in class_names])
    numbers = np.full(len(places), -1)
    numbers[order] = np.arange(len(order))
    return dataclasses.replace(
        predictions,
        logits=predictions.logits[:, order],
        labels=numbers[predictions.labels],
        class_names=tuple(class_names),
    )
