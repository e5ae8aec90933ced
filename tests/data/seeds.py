"""Photos, and augmentations for many seeds."""

import numpy as np
import PIL.Image
import tensorflow as tf
from sklearn.datasets import load_sample_images

PHOTOS = [
    np.asarray(PIL.Image.fromarray(photo).resize((96, 64)))
    for photo in load_sample_images().images
]


def run(function, *arguments, num_seeds):
    """Returns the results of a `tf.data` map for seeds [0, 0], [0, 1]..."""
    results = tf.data.Dataset.range(num_seeds).map(
        lambda index: function(*arguments, tf.stack([0, index]))
    )
    return results.batch(num_seeds).get_single_element()


def rectangles(masks):
    """Returns (start, size) along y and x; fails for other shapes."""
    spans = []
    for side in (masks.any(axis=2), masks.any(axis=1)):
        changes = np.diff(np.pad(side, [(0, 0), (1, 1)]).astype(int), axis=1)
        assert ((changes == 1).sum(axis=1) == side.any(axis=1)).all()
        spans.append((side.argmax(axis=1), side.sum(axis=1)))
    [(_, heights), (_, widths)] = spans
    np.testing.assert_array_equal(heights * widths, masks.sum(axis=(1, 2)))
    return spans
