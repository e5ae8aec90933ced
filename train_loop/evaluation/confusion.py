"""Which classes are taken for which, and on which images."""

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Images of one class that are taken for another: their numbers.

    The most confident mistake comes first; `share` is their part of all
    images of the class.
    """

    label: int
    prediction: int
    images: np.ndarray
    share: float


def confusion_matrix(predictions):
    """Counts images, int [labels, predicted classes]."""
    classes = predictions.num_classes
    cells = predictions.labels * classes + predictions.predicted
    counts = np.bincount(cells, minlength=classes**2)
    return counts.reshape(classes, classes)


def mistakes(predictions):
    """Returns the numbers of misclassified images, most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    order = np.argsort(-predictions.confidences[wrong], kind="stable")
    return wrong[order]


def confused_pairs(predictions, count):
    """Returns up to `count` `Pair`s, those with the most images first."""
    matrix = confusion_matrix(predictions)
    examples = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    largest = np.argsort(-matrix, axis=None, kind="stable")[:count]
    wrong, pairs = mistakes(predictions), []
    for cell in largest[matrix.ravel()[largest] > 0]:
        label, prediction = map(int, divmod(cell, predictions.num_classes))
        images = wrong[
            (predictions.labels[wrong] == label)
            & (predictions.predicted[wrong] == prediction)
        ]
        share = len(images) / examples[label]
        pairs.append(Pair(label, prediction, images, float(share)))
    return pairs
