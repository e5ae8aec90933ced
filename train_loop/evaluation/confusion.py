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


def confusion_matrix(predictions, classes=None):
    """Counts images, int [labels, predicted classes].

    Args:
      predictions: `Predictions`.
      classes: the numbers of some classes, in whose rows and columns alone to
        count; None for all, of which many make a large matrix.
    """
    numbers = np.arange(predictions.num_classes) if classes is None else classes
    places = np.full(predictions.num_classes, -1)
    places[numbers] = np.arange(len(numbers))
    rows, columns = places[predictions.labels], places[predictions.predicted]
    counted = (rows >= 0) & (columns >= 0)
    cells = rows[counted] * len(numbers) + columns[counted]
    counts = np.bincount(cells, minlength=len(numbers) ** 2)
    return counts.reshape(len(numbers), len(numbers))


def binned_matrix(predictions, width):
    """Counts images in cells of several classes, int [bins, bins].

    Args:
      predictions: `Predictions`.
      width: how many classes make a bin.
    """
    bins = -(-predictions.num_classes // width)
    cells = predictions.labels // width * bins + predictions.predicted // width
    return np.bincount(cells, minlength=bins**2).reshape(bins, bins)


def mistakes(predictions):
    """Returns the numbers of misclassified images, most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    order = np.argsort(-predictions.confidences[wrong], kind="stable")
    return wrong[order]


def confused_pairs(predictions, count):
    """Returns up to `count` `Pair`s, those with the most images first."""
    wrong = mistakes(predictions)
    cells = _cells(predictions, wrong)
    cells, cell_of, counts = np.unique(
        cells, return_inverse=True, return_counts=True
    )
    examples = np.bincount(predictions.labels)
    pairs = []
    for place in np.argsort(-counts, kind="stable")[:count]:
        label, prediction = divmod(int(cells[place]), predictions.num_classes)
        images = wrong[cell_of == place]
        share = len(images) / examples[label]
        pairs.append(Pair(label, prediction, images, float(share)))
    return pairs


def mostly_taken_for(predictions):
    """Returns what the images of each class are most often mistaken for.

    Returns:
      (class, images), int [classes] each; of as many, the first class. Without
      mistakes, 0 images.
    """
    cells = _cells(predictions, np.flatnonzero(~predictions.correct))
    cells, counts = np.unique(cells, return_counts=True)
    labels, predicted = np.divmod(cells, predictions.num_classes)
    order = np.lexsort([cells, -counts, labels])
    _, first = np.unique(labels[order], return_index=True)
    most = order[first]
    taken, images = np.zeros([2, predictions.num_classes], np.int64)
    taken[labels[most]], images[labels[most]] = predicted[most], counts[most]
    return taken, images


def _cells(predictions, images):
    """Returns the numbers of the matrix's cells that some images are in.

    Of many classes, few pairs are confused: most of the matrix is empty.
    """
    labels = predictions.labels[images].astype(np.int64)
    return labels * predictions.num_classes + predictions.predicted[images]
