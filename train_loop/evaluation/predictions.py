"""Predictions for all images of a split, their mistakes and confusions."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

# Images per block, which limits the memory of float64 logits.
IMAGES_AT_ONCE = 1024

# Side of the image that corners are cropped from, relative to the crop, if
# evaluation does not crop (crop fraction 1).
CORNER_SCALE = 8 / 7
# Keeps the logarithms of mean probabilities finite.
LEAST_PROBABILITY = 1e-30


def no_image(index):
    """Returns None: `load_image` of `Predictions` without images."""
    del index


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A model's logits for all images of a split, and the labels.

    Args:
      logits: finite float32 [images, classes]. They may be logarithms of
        probabilities, as from `TestTimeAugmentation`.
      labels: int [images].
      class_names: names of all classes, in the order of the logits.
      images: names of the images.
      load_image: maps the index of an image to uint8 [height, width, 3] or to
        None, for charts and pages.
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

        In float32, probabilities near 1 are equal and cannot be ranked.
        """
        blocks = [
            scipy.special.logsumexp(self.logits[rows].astype(float), axis=1)
            for rows in blocks_of(len(self), IMAGES_AT_ONCE)
        ]
        return np.concatenate(blocks)

    def log_probabilities(self, classes):
        """Returns float64 [classes, images] for a slice of the classes."""
        logits = np.ascontiguousarray(self.logits[:, classes].T)
        return logits - self.log_normalizers

    @functools.cached_property
    def top_5(self):
        """The five most probable classes, int [images, up to 5].

        The most probable class comes first; ties are in the order of classes.
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
        """Whether the predicted class is the label, bool [images]."""
        return self.predicted == self.labels

    @property
    def in_top_5(self):
        """Whether the label is among `top_5`, bool [images]."""
        return (self.top_5 == self.labels[:, None]).any(1)

    @functools.cached_property
    def confidences(self):
        """Probabilities of the predicted classes, float64 [images]."""
        return np.exp(-self._losses_of(self.predicted))

    @functools.cached_property
    def losses(self):
        """Cross-entropies with the labels, float64 [images]."""
        return self._losses_of(self.labels)

    def _losses_of(self, classes):
        chosen = np.take_along_axis(self.logits, classes[:, None], axis=1)
        return self.log_normalizers - chosen[:, 0]

    def with_classes(self, class_names):
        """Returns the predictions restricted to some classes.

        Args:
          class_names: names of the classes in their new order. They must
            include all labels.
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
    """Crops and flips of an image whose probabilities are averaged."""

    crops: bool = False
    flips: bool = False

    def preprocessing(self, preprocessing):
        """Returns the preprocessing that leaves room for the crops."""
        if not self.crops:
            return preprocessing
        scale = CORNER_SCALE
        if preprocessing.crop_fraction < 1:
            scale = 1 / preprocessing.crop_fraction
        side = round(preprocessing.image_size * scale)
        return preprocessing._replace(image_size=side, crop_fraction=1.0)

    def logits(self, function, images, image_size):
        """Returns the logarithms of the mean probabilities of all views.

        Args:
          function: maps uint8 [batch, image_size, image_size, 3] to logits.
          images: uint8 [batch, side, side, 3] after `preprocessing`.
          image_size: side of a crop.

        Returns:
          float32 [batch, classes]; without augmentation, the logits themselves.
        """
        views = [images]
        if self.crops:
            most = images.shape[1] - image_size
            corners = [(0, 0), (0, most), (most, 0), (most, most)]
            views = [
                images[:, top : top + image_size, left : left + image_size]
                for top, left in [*corners, (most // 2, most // 2)]
            ]
        if self.flips:
            views += [view[:, :, ::-1] for view in views]
        if len(views) == 1:
            return tf.cast(function(images), tf.float32)
        probabilities = [
            tf.nn.softmax(tf.cast(function(view), tf.float32)) for view in views
        ]
        mean = tf.add_n(probabilities) / len(views)
        return tf.math.log(tf.maximum(mean, LEAST_PROBABILITY))


TEST_TIME_AUGMENTATIONS = {
    "none": TestTimeAugmentation(),
    "flip": TestTimeAugmentation(flips=True),
    "five_crops": TestTimeAugmentation(crops=True),
    "ten_crops": TestTimeAugmentation(crops=True, flips=True),
}


def misclassified(predictions):
    """Returns the indices of misclassified images, most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    order = np.argsort(-predictions.confidences[wrong], kind="stable")
    return wrong[order]


class ConfusedPair(NamedTuple):
    """The images of class `label` that are predicted as `prediction`.

    `images` are their indices, the most confident mistake first; `fraction` is
    their fraction of all images of the class.
    """

    label: int
    prediction: int
    images: np.ndarray
    fraction: float


def confused_pairs(predictions, count):
    """Returns up to `count` `ConfusedPair`s, by descending number of images."""
    wrong = misclassified(predictions)
    cells, cell_of, counts = np.unique(
        _cells(predictions, wrong), return_inverse=True, return_counts=True
    )
    examples = np.bincount(predictions.labels)
    pairs = []
    for cell in np.argsort(-counts, kind="stable")[:count]:
        label, prediction = divmod(int(cells[cell]), predictions.num_classes)
        images = wrong[cell_of == cell]
        fraction = float(len(images) / examples[label])
        pairs.append(ConfusedPair(label, prediction, images, fraction))
    return pairs


def most_confused_with(predictions):
    """Returns for each class its most frequent wrong prediction.

    Returns:
      (class, number of images), int [classes] each. Ties select the first
      class; a class without mistakes has 0 images.
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
    """Returns for each image the index of its cell in the confusion matrix.

    The matrix itself would be large and almost empty for many classes.
    """
    labels = predictions.labels[images].astype(np.int64)
    return labels * predictions.num_classes + predictions.predicted[images]
