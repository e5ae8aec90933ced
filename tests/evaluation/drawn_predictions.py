"""Random predictions that are better than chance."""

import numpy as np

from train_loop.evaluation.predictions import Predictions


def draw_predictions(count, classes, skill=2.0, labels=None, **fields):
    """Returns `Predictions` of a model that confuses neighboring classes.

    Args:
      count: number of images.
      classes: number of classes.
      skill: mean margin of the label's logit.
      labels: int [count]; random by default.
      **fields: fields of `Predictions` that replace the defaults.
    """
    random = np.random.default_rng(count)
    if labels is None:
        labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)).astype("float32")
    every = np.arange(count)
    logits[every, labels] += skill
    logits[every, (labels + 1) % classes] += skill / 2
    defaults = {
        "class_names": [f"class {number}" for number in range(classes)],
        "images": [f"{number}.jpg" for number in range(count)],
    }
    return Predictions(logits, labels, **defaults | fields)
