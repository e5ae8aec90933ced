"""This file answers: what does a frozen backbone make of each picture?

It is asked once. What it said is kept in the run's folder, and the classifier
is trained on that: a linear probe.
"""

import os
import pathlib

import numpy as np
import tensorflow as tf

from train_loop.splits import IndexedSplit


def embedded(folder, split, embed, strategy, batches, steps, bar):
    """Returns a split of the embeddings of all pictures of another one.

    Args:
      folder: where they are kept, and found again by a later process.
      split: of the pictures.
      embed: maps images [batch, ...] to embeddings, float32 [batch, channels].
      strategy: a `tf.distribute.Strategy`.
      batches: the distributed evaluation batches of the split.
      steps: how many there are.
      bar: a `tqdm` progress bar that counts batches.

    Returns:
      An `IndexedSplit` whose `load` returns an embedding, float32 [channels].
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        unfinished = pathlib.Path(f"{folder}.tmp")
        unfinished.mkdir(parents=True, exist_ok=True)
        _write(unfinished, split, embed, strategy, batches, steps, bar)
        # Renamed when complete, so that a kill never leaves half of it.
        os.replace(unfinished, folder)
    # Read where it lies: ImageNet's are 10 GB.
    embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")

    def load(row):
        values = tf.numpy_function(
            lambda row: np.array(embeddings[row]), [row], tf.float32
        )
        return tf.ensure_shape(values, embeddings.shape[1:])

    return IndexedSplit(
        tf.range(len(embeddings), dtype=tf.int64),
        tf.constant(np.load(folder / "labels.npy"), tf.int64),
        loader=load,
    )


def _write(folder, split, embed, strategy, batches, steps, bar):
    @tf.function
    def embed_batch(batch):
        def on_replica(images, labels, _):
            return embed(images), labels

        outputs = strategy.run(on_replica, args=batch)
        return tuple(strategy.gather(output, axis=0) for output in outputs)

    rows, iterator = 0, iter(batches)
    for _ in range(steps):
        values, labels = embed_batch(next(iterator))
        if rows == 0:
            files = [
                np.lib.format.open_memmap(
                    folder / f"{name}.npy",
                    "w+",
                    output.numpy().dtype,
                    (split.num_examples, *output.shape[1:]),
                )
                for name, output in (("embeddings", values), ("labels", labels))
            ]
        # The examples that fill up the last batch are left out.
        count = min(len(labels), split.num_examples - rows)
        for file, output in zip(files, (values, labels), strict=True):
            file[rows : rows + count] = output[:count]
        rows += count
        bar.update(1)
    for file in files:
        file.flush()
