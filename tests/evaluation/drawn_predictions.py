"""Predictions drawn at random, that are right more often than by chance."""

import numpy as np

from train_loop.evaluation.predictions import Predictions


def draw_predictions(count, classes, skill=2.0, labels=None, **fields):
    """Returns `Predictions` of a model that takes neighbours for each other.

    Args:
      count: of the images.
      classes: how many.
      skill: how far the right class's logit lies above the others'.
      labels: int [count]; drawn where there are none.
      **fields: of `Predictions`, in place of plain ones.
    """
    random = np.random.default_rng(count)
    if labels is None:
        labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)).astype("float32")
    every = np.arange(count)
    logits[every, labels] += skill
    logits[every, (labels + 1) % classes] += skill / 2
    plain = {
        "class_names": [f"class {number}" for number in range(classes)],
        "images": [f"{number}.jpg" for number in range(count)],
    }
    return Predictions(logits, labels, **plain | fields)
