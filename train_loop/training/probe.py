"""Embeddings: what a frozen backbone makes of each image, asked once.

They are kept in the run's folder, and the classifier is trained on them: a
linear probe.
"""

import hashlib

import numpy as np
import tensorflow as tf

from train_loop import stopping
from train_loop.workdir import is_made_from, made_from


def write_embeddings(folder, origin, embed, strategy, batches, bar):
    """Writes the embeddings of all images of a split, where they are missing.

    Args:
      folder: that `embeddings.bin`, float32 [num_examples, channels], and
        `labels.npy` are to be in.
      origin: what they follow from, a value for JSON.
      embed: maps images [batch, ...] to embeddings, float32 [batch, channels].
      strategy: a `tf.distribute.Strategy`.
      batches: the distributed evaluation batches of the split.
      bar: a `tqdm` progress bar, to count the `total` batches.

    Raises:
      StoppedError: a signal asked to stop.
    """
    if is_made_from(folder, origin):
        return

    @tf.function(autograph=False)
    def embed_batch(batch):
        def on_replica(images, labels, weights):
            return embed(images), labels, weights

        outputs = strategy.run(on_replica, args=batch)
        return tuple(strategy.gather(output, axis=0) for output in outputs)

    iterator, all_labels = iter(batches), []
    with made_from(folder, origin) as unfinished:
        with (unfinished / "embeddings.bin").open("wb") as file:
            for _ in range(bar.total):
                embeddings, labels, weights = embed_batch(next(iterator))
                # Without the examples that fill up the last batch.
                real = weights.numpy() > 0
                file.write(embeddings.numpy()[real].tobytes())
                all_labels.append(labels.numpy()[real])
                bar.update(1)
                stopping.check()
        np.save(unfinished / "labels.npy", np.concatenate(all_labels))


def backbone_hash(model):
    """Returns a hash of all weights of a `ResNet` but the classifier's."""
    digest = hashlib.sha256()
    of_head = {id(variable) for variable in model.head.variables}
    for variable in model.variables:
        if id(variable) not in of_head:
            digest.update(np.asarray(variable.value).tobytes())
    return digest.hexdigest()
