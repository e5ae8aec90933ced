"""Predictions: what a model answered for every image of a split."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special

# How many images are looked at together: their float64 logits stay small.
BLOCK = 1024


def no_picture(index):
    """Stands in where there is nothing to look at."""
    del index


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answered for every image of a split, and the truth.

    Args:
      logits: float32 [images, classes], finite. Logarithms of probabilities
        are logits too: averages over several views of an image go in as
        these.
      labels: int [images].
      class_names: of all classes, in the order of the logits.
      images: the names of the images.
      picture: maps the number of an image to a uint8 array [height, width, 3]
        to look at, or None.
    """

    logits: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    images: Sequence[str]
    picture: Callable[[int], np.ndarray | None] = no_picture

    def __len__(self):
        return len(self.labels)

    @property
    def num_classes(self):
        return len(self.class_names)

    @functools.cached_property
    def log_normalizers(self):
        """The logarithms of the softmax's denominators, float64 [images].

        In float32, all probabilities near 1 would be the same number, and
        could not be ranked.
        """
        blocks = [
            scipy.special.logsumexp(self.logits[rows].astype(float), axis=1)
            for rows in blocks_of(len(self), BLOCK)
        ]
        return np.concatenate(blocks)

    def log_probabilities(self, classes):
        """Returns float64 [some classes, images] for a slice of classes."""
        logits = np.ascontiguousarray(self.logits[:, classes].T)
        return logits - self.log_normalizers

    @functools.cached_property
    def top_5(self):
        """The numbers of the five likeliest classes, int [images, up to 5].

        The likeliest stands first; of equally likely ones, the first class.
        """
        count = min(5, self.num_classes)
        top = np.empty([len(self), count], np.int64)
        for rows in blocks_of(len(self), BLOCK):
            logits = self.logits[rows].copy()
            every = np.arange(len(logits))
            for rank in range(count):
                top[rows, rank] = best = logits.argmax(1)
                logits[every, best] = -np.inf
        return top

    @property
    def predicted(self):
        """The likeliest classes, int [images]."""
        return self.top_5[:, 0]

    @property
    def correct(self):
        """Whether these are right, bool [images]."""
        return self.predicted == self.labels

    @property
    def in_top_5(self):
        """Whether the label is among `top_5`, bool [images]."""
        return (self.top_5 == self.labels[:, None]).any(1)

    @functools.cached_property
    def confidences(self):
        """The probabilities of the likeliest classes, float64 [images]."""
        return np.exp(-self._losses_of(self.predicted))

    @functools.cached_property
    def losses(self):
        """The cross entropies with the labels, float64 [images]."""
        return self._losses_of(self.labels)

    def _losses_of(self, classes):
        chosen = np.take_along_axis(self.logits, classes[:, None], axis=1)
        return self.log_normalizers - chosen[:, 0]


def blocks_of(count, size):
    """Yields slices that cover `range(count)`."""
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))
