"""Embeddings: the outputs of a frozen backbone, computed once for each image.

The run's folder keeps them, and the classifier is trained on them (linear
probing).
"""

import contextlib
import hashlib
import shutil

import numpy as np
import tensorflow as tf

from train_loop.errors import UserError
from train_loop.training.workers import unshared
from train_loop.workdir import is_made_from, made_from


@unshared()
def write_embeddings(folder, origin, embed, workers, batches, bar):
    """Writes the embeddings of all images of a split, if they are missing.

    Several workers share the images, and the chief writes for all.

    Args:
      folder: that `embeddings.bin`, float32 [num_examples, channels], and
        `labels.npy` are to be in.
      origin: what they follow from, a value for JSON.
      embed: maps images [batch, ...] to embeddings, float32 [batch, channels].
      workers: a `Workers`.
      batches: the distributed evaluation batches of the split.
      bar: a `tqdm` progress bar, to count the `total` batches.

    Raises:
      StoppedError: a signal asked to stop.
      UserError: not all workers share the folder's disk.
    """
    if _all_find(folder, origin, workers):
        return
    strategy = workers.strategy

    @tf.function(autograph=False)
    def embed_batch(batch):
        def on_replica(images, labels, weights):
            return embed(images), labels, weights

        outputs = strategy.run(on_replica, args=batch)
        return tuple(strategy.gather(output, axis=0) for output in outputs)

    def embedded():
        """Yields [(embeddings, labels) of each worker], batch by batch."""
        iterator = iter(batches)
        for _ in range(bar.total):
            with workers.agreeing():
                batch = next(iterator)
            outputs = [each.numpy() for each in embed_batch(batch)]
            parts = zip(
                *(np.split(output, workers.count) for output in outputs),
                strict=True,
            )
            bar.update(1)
            workers.check_signals()
            # Last, for a worker that cannot write comes to the agreement above.
            # Without the examples that fill up the last batch.
            yield [(e[weights > 0], n[weights > 0]) for e, n, weights in parts]

    with workers.agreeing():
        if workers.is_chief:
            with made_from(folder, origin) as unfinished:
                _write(embedded(), unfinished, workers.count)
        else:
            for _ in embedded():
                pass
    if not _all_find(folder, origin, workers):
        raise UserError(
            f"not all workers find {folder}, where the first one has written "
            "the embeddings; all of them need the same --workdir, on a disk "
            "that they share"
        )


def _write(batches, folder, count):
    """Writes the parts of all workers, one behind the other."""
    labels = [[] for _ in range(count)]
    paths = [folder / "embeddings.bin"]
    paths += [folder / f"embeddings-{number}.bin" for number in range(1, count)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for batch in batches:
            for number, (embeddings, of_images) in enumerate(batch):
                files[number].write(embeddings.tobytes())
                labels[number].append(of_images)
        for path, file in zip(paths[1:], files[1:], strict=True):
            file.close()
            with path.open("rb") as part:
                shutil.copyfileobj(part, files[0])
            path.unlink()
    np.save(folder / "labels.npy", np.concatenate(sum(labels, [])))


def _all_find(folder, origin, workers):
    # All have come to the end of what they did before.
    workers.barrier()
    return workers.all(is_made_from(folder, origin))


def backbone_hash(model):
    """Returns a hash of all weights of a `ResNet` but the classifier's."""
    digest = hashlib.sha256()
    of_head = {id(variable) for variable in model.head.variables}
    for variable in model.variables:
        if id(variable) not in of_head:
            digest.update(np.asarray(variable.value).tobytes())
    return digest.hexdigest()
