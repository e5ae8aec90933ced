"""Reference images for exported files."""

import numpy as np
from classifiers import random_pixels
from samples import encoded

from train_loop.exports.verification import ReferenceImages


def reference_for(classifier, count=9):
    """Returns `ReferenceImages` of several predicted classes."""
    files = [encoded(image, "png") for image in random_pixels(count, 20)]
    # The SavedModel reads only JPEG and PNG.
    files[1] = encoded(random_pixels(1, 20)[0], "bmp")
    reference = ReferenceImages.predicted_by(classifier, files)
    assert np.max(reference.probabilities) < 0.99
    labels = np.argmax(reference.probabilities, axis=1)
    return reference._replace(labels=labels)
