"""Answers about many files, in their order, whatever some of them hold."""

import os
from typing import NamedTuple

import tensorflow as tf

from train_loop.errors import UserError
from train_loop.prediction.classifier import BATCH_SIZE


class Answer(NamedTuple):
    """What a classifier says of a file.

    `predictions` are (name of the class, probability), the most probable one
    first; none where `error` says why the file cannot be read.
    """

    image: str
    predictions: tuple = ()
    error: str | None = None


def answers(classifier, paths, top_k=None):
    """Yields an `Answer` about each file; the numbers are `classifier`'s.

    Files are read and decoded side by side, while the model is busy with
    those before.

    Args:
      classifier: a `Classifier`.
      paths: of the files.
      top_k: how many classes to name; None for all.
    """
    names = tf.constant([os.fsencode(path) for path in paths], tf.string)

    @tf.autograph.experimental.do_not_convert
    def read(number, path):
        return number, classifier.prepare(tf.io.read_file(path))

    batches = (
        tf.data.Dataset.from_tensor_slices(names)
        .enumerate()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        # Their numbers are then missing.
        .ignore_errors()
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )
    done = 0
    for numbers, images in batches:
        ranked = classifier.rank(classifier.probabilities(images), top_k)
        for number, predictions in zip(numbers.numpy(), ranked, strict=True):
            for path in paths[done:number]:
                yield _alone(classifier, path, top_k)
            yield Answer(paths[number], tuple(predictions))
            done = number + 1
    for path in paths[done:]:
        yield _alone(classifier, path, top_k)


def _alone(classifier, path, top_k):
    """Returns the answer about a file that failed among others, and why."""
    try:
        [predictions] = classifier(path, top_k)
    except UserError as error:
        return Answer(path, error=str(error).removeprefix(f"{path} "))
    return Answer(path, tuple(predictions))
