"""Predictions for all images of a split: what is right, what is confused."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

# Images processed together, so that their float64 logits stay small.
IMAGES_AT_ONCE = 1024

# How much larger than a crop the image is that corners are cropped from, where
# evaluation keeps the whole of it.
CORNER_SCALE = 8 / 7
# Keeps logarithms of mean probabilities finite.
LEAST_PROBABILITY = 1e-30


def no_image(index):
    """Loads nothing: for `Predictions` without images."""
    del index


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A model's logits for all images of a split, and the labels.

    Args:
      logits: float32 [images, classes], finite. Logarithms of probabilities
        are logits too, such as those of `TestTimeAugmentation`.
      labels: int [images].
      class_names: of all classes, in the order of the logits.
      images: names of the images.
      load_image: maps the number of an image to uint8 [height, width, 3], for
        charts and pages, or to None.
    """

    logits: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    images: Sequence[str]
    load_image: Callable[[int], np.ndarray | None] = no_image

    def __len__(self):
        return len(self.labels)

    @property
    def num_classes(self):
        return len(self.class_names)

    @functools.cached_property
    def log_normalizers(self):
        """Logarithms of the softmax's denominators, float64 [images].

        In float32, all probabilities near 1 would be the same number, and
        could not be ranked.
        """
        blocks = [
            scipy.special.logsumexp(self.logits[rows].astype(float), axis=1)
            for rows in blocks_of(len(self), IMAGES_AT_ONCE)
        ]
        return np.concatenate(blocks)

    def log_probabilities(self, classes):
        """Returns float64 [some classes, images] for a slice of classes."""
        logits = np.ascontiguousarray(self.logits[:, classes].T)
        return logits - self.log_normalizers

    @functools.cached_property
    def top_5(self):
        """The five most probable classes, int [images, up to 5].

        The most probable stands first; of equal ones, the first class.
        """
        count = min(5, self.num_classes)
        top = np.empty([len(self), count], np.int64)
        for rows in blocks_of(len(self), IMAGES_AT_ONCE):
            logits = self.logits[rows].copy()
            every = np.arange(len(logits))
            for rank in range(count):
                top[rows, rank] = best = logits.argmax(1)
                logits[every, best] = -np.inf
        return top

    @property
    def predicted(self):
        """The most probable classes, int [images]."""
        return self.top_5[:, 0]

    @property
    def correct(self):
        """Whether these are the labels, bool [images]."""
        return self.predicted == self.labels

    @property
    def in_top_5(self):
        """Whether the label is among `top_5`, bool [images]."""
        return (self.top_5 == self.labels[:, None]).any(1)

    @functools.cached_property
    def confidences(self):
        """Probabilities of the most probable classes, float64 [images]."""
        return np.exp(-self._losses_of(self.predicted))

    @functools.cached_property
    def losses(self):
        """Cross entropies with the labels, float64 [images]."""
        return self._losses_of(self.labels)

    def _losses_of(self, classes):
        chosen = np.take_along_axis(self.logits, classes[:, None], axis=1)
        return self.log_normalizers - chosen[:, 0]

    def with_classes(self, class_names):
        """Returns the same predictions with the logits of some classes alone.

        Args:
          class_names: in the wanted order; all labels are among them.
        """
        if tuple(class_names) == tuple(self.class_names):
            return self
        places = {name: i for i, name in enumerate(self.class_names)}
        order = np.array([places[name] for name in class_names])
        numbers = np.full(len(places), -1)
        numbers[order] = np.arange(len(order))
        return dataclasses.replace(
            self,
            logits=self.logits[:, order],
            labels=numbers[self.labels],
            class_names=tuple(class_names),
        )


def blocks_of(count, size):
    """Yields slices that cover `range(count)`."""
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


class TestTimeAugmentation(NamedTuple):
    """Crops and flips of an image, whose predictions are averaged."""

    crops: bool = False
    flips: bool = False

    def preprocessing(self, preprocessing):
        """Returns the preprocessing of images before they are cropped."""
        if not self.crops:
            return preprocessing
        scale = CORNER_SCALE
        if preprocessing.crop_fraction < 1:
            scale = 1 / preprocessing.crop_fraction
        side = round(preprocessing.image_size * scale)
        return preprocessing._replace(image_size=side, crop_fraction=1.0)

    def logits(self, function, images, image_size):
        """Returns the logarithms of the mean probabilities of all crops.

        Args:
          function: maps uint8 [batch, image_size, image_size, 3] to logits.
          images: uint8 [batch, side, side, 3], as `preprocessing` makes them.
          image_size: of a crop.

        Returns:
          float32 [batch, classes]; without augmentation, the logits themselves.
        """
        crops = [images]
        if self.crops:
            most = images.shape[1] - image_size
            places = [(0, 0), (0, most), (most, 0), (most, most)]
            crops = [
                images[:, top : top + image_size, left : left + image_size]
                for top, left in [*places, (most // 2, most // 2)]
            ]
        if self.flips:
            crops += [crop[:, :, ::-1] for crop in crops]
        if len(crops) == 1:
            return tf.cast(function(images), tf.float32)
        probabilities = [
            tf.nn.softmax(tf.cast(function(crop), tf.float32)) for crop in crops
        ]
        mean = tf.add_n(probabilities) / len(crops)
        return tf.math.log(tf.maximum(mean, LEAST_PROBABILITY))


TEST_TIME_AUGMENTATIONS = {
    "none": TestTimeAugmentation(),
    "flip": TestTimeAugmentation(flips=True),
    "five_crops": TestTimeAugmentation(crops=True),
    "ten_crops": TestTimeAugmentation(crops=True, flips=True),
}


def misclassified(predictions):
    """Returns the numbers of misclassified images, most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    order = np.argsort(-predictions.confidences[wrong], kind="stable")
    return wrong[order]


class ConfusedPair(NamedTuple):
    """The images of class `label` that are predicted as `prediction`.

    `images` are their numbers, the most confident mistake first; `share` is
    their fraction of the images of the class.
    """

    label: int
    prediction: int
    images: np.ndarray
    share: float


def confused_pairs(predictions, count):
    """Returns up to `count` `ConfusedPair`s, those with most images first."""
    wrong = misclassified(predictions)
    cells, cell_of, counts = np.unique(
        _cells(predictions, wrong), return_inverse=True, return_counts=True
    )
    examples = np.bincount(predictions.labels)
    pairs = []
    for place in np.argsort(-counts, kind="stable")[:count]:
        label, prediction = divmod(int(cells[place]), predictions.num_classes)
        images = wrong[cell_of == place]
        share = len(images) / examples[label]
        pairs.append(ConfusedPair(label, prediction, images, float(share)))
    return pairs


def most_confused_with(predictions):
    """Returns the class that each class is most often mistaken for.

    Returns:
      (class, images), int [classes] each; of equal ones, the first class.
      Without mistakes, 0 images.
    """
    cells = _cells(predictions, np.flatnonzero(~predictions.correct))
    cells, counts = np.unique(cells, return_counts=True)
    labels, predicted = np.divmod(cells, predictions.num_classes)
    order = np.lexsort([cells, -counts, labels])
    _, first = np.unique(labels[order], return_index=True)
    most = order[first]
    others, images = np.zeros([2, predictions.num_classes], np.int64)
    others[labels[most]], images[labels[most]] = predicted[most], counts[most]
    return others, images


def _cells(predictions, images):
    """Returns the numbers of the matrix's cells that some images are in.

    Of many classes, few pairs are confused: most of the matrix is empty.
    """
    labels = predictions.labels[images].astype(np.int64)
    return labels * predictions.num_classes + predictions.predicted[images]
