"""Images that cost nothing: one batch of noise, again and again."""

import numpy as np
import tensorflow as tf

from train_loop.data.split import Split
from train_loop.data.stored import Data
from train_loop.data.stores import MemoryStore

# So many batches are an epoch.
BATCHES = 100


def synthetic_data(class_names, batch_size):
    """Returns `Data` that only tell how many images there would be."""
    count = BATCHES * batch_size
    labels = np.arange(count) % len(class_names)
    # TensorFlow may not have begun: whoever needs its devices comes later.
    split = Split.of_all(MemoryStore(np.zeros(count), labels))
    return Data(tuple(class_names), split, split, contents={})


def noise_batches(batch_size, image_size, num_classes, context, weighted):
    """Returns an endless dataset of one batch, there from the beginning.

    Args:
      batch_size: examples of one step, over all replicas.
      image_size: height and width.
      num_classes: how many different labels there are.
      context: a `tf.distribute.InputContext`.
      weighted: whether weights stand behind the labels, as in evaluation.
    """
    size = context.get_per_replica_batch_size(batch_size)
    random = np.random.default_rng(0)
    shape = (size, image_size, image_size, 3)
    batch = (
        tf.constant(random.integers(0, 256, shape, np.uint8)),
        tf.constant(random.integers(0, num_classes, size)),
    )
    if weighted:
        batch += (tf.ones(size),)
    return tf.data.Dataset.from_tensors(batch).repeat()
