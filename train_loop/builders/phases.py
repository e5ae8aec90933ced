"""A phase of training: the steps during which the same layers are frozen."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import shutil

import numpy as np
import tensorflow as tf

from train_loop.console import transient_bar
from train_loop.data import batches, cache, check
from train_loop.data.batches import Batching
from train_loop.data.split import Data
from train_loop.data.transforms import Transforms, Untransformed
from train_loop.errors import UserError
from train_loop.training import loop
from train_loop.training.strategies import distribute
from train_loop.training.trainer import Trainer
from train_loop.training.workers import unshared
from train_loop.workdir import is_made_from, made_from

# How many batches are searched for a broken image: a data service prepares
# batches ahead, in its own order.
BATCHES_AHEAD = 128
# Limit of that search with several workers: their launcher soon ends all of
# them when one has ended.
SECONDS_TO_EXPLAIN = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """The trainer and the batches of one phase.

    Args:
      trainer: a `Trainer`, traced for the layers that are frozen now.
      data: the `Data` to train and evaluate on.
      transforms: the `Transforms` of the images.
      batching: the `Batching` of training examples.
    """

    trainer: Trainer
    data: Data
    transforms: Transforms
    batching: Batching

    def training_batches(self):
        """Returns the distributed training batches of the remaining steps."""
        step = self.trainer.step
        return distribute(
            self.trainer.strategy,
            lambda context: batches.training_batches(
                self.data.train, self.transforms, self.batching, step, context
            ),
        )

    def evaluation_batches(self, split):
        """Returns the distributed batches of a whole split."""
        return distribute(
            self.trainer.strategy,
            lambda context: batches.evaluation_batches(
                split, self.transforms, self.batching.batch_size, context
            ),
        )

    @functools.cached_property
    def _evaluation_batches(self):
        # Created once: TensorFlow traces the decoding of images each time.
        return self.evaluation_batches(self.data.evaluation)

    def num_evaluation_steps(self, split):
        """Returns the number of evaluation batches of a split."""
        return batches.num_evaluation_steps(
            split, self.batching.batch_size, self.trainer.workers.context
        )

    def evaluate(self):
        """Returns {metric: number} of the whole evaluation split.

        Adds the metrics of averaged weights, such as "ema_accuracy". Training
        metrics and statistics are restored afterwards.

        Raises:
          SharedError: one of the workers cannot read an image.
        """
        average = self.trainer.update.average
        with self.trainer.preserving_state():
            metrics = self._evaluate()
            if average is not None:
                with average.in_place():
                    averaged = self._evaluate()
                metrics |= {
                    f"{average.name}_{name}": value
                    for name, value in averaged.items()
                }
        return metrics

    def _evaluate(self):
        split = self.data.evaluation
        return loop.evaluate(
            self.trainer,
            self._evaluation_batches,
            self.num_evaluation_steps(split),
            lambda error: check.explain(
                error, split, seconds=self._seconds_to_explain
            ),
        )

    def explain(self, error):
        """Returns an error that names the broken image, if one is found."""
        if isinstance(self.transforms, Untransformed):
            return error
        batching, split = self.batching, self.data.train
        number = batching.batch_of(self.trainer.step)
        start = number * batching.batch_size // batching.repeats
        examples = batches.shuffled_examples(split, batching.seed, start)
        ahead = examples.take(BATCHES_AHEAD * batching.batch_size)
        return check.explain(error, split, ahead, self._seconds_to_explain)

    @property
    def _seconds_to_explain(self):
        """Time limit of the search for a broken image, in seconds."""
        is_alone = self.trainer.workers.count == 1
        return math.inf if is_alone else SECONDS_TO_EXPLAIN

    def on_embeddings(self, classifier, facts, folder):
        """Returns the phase with embeddings in place of images.

        Runs the frozen backbone once over each image, so that training runs
        the head alone.

        Args:
          classifier: the `Classifier` that is trained.
          facts: a JSON value: the settings that embeddings depend on.
          folder: where they are cached, in a folder for each split.
        """
        print("Computing embeddings of the frozen backbone, once per image.")
        model, workers = classifier.model, self.trainer.workers
        facts = {"backbone": backbone_hash(model), "settings": facts}

        def embed(name, split):
            steps = self.num_evaluation_steps(split)
            bar = transient_bar(steps, "batch", f"embedding {name}")
            with check.explained(split), workers.explaining_lost_workers(), bar:
                write_embeddings(
                    folder / name,
                    {**facts, **split.origin(workers)},
                    classifier.embed,
                    workers,
                    self.evaluation_batches(split),
                    bar,
                )
            return cache.embedded(split, folder / name)

        return dataclasses.replace(
            self,
            trainer=self.trainer.retraced(forward=model.head),
            data=self.data.map(embed),
            transforms=Untransformed(),
            # Embeddings are read from the disk of this machine.
            batching=self.batching._replace(data_service=None),
        )


@unshared()
def write_embeddings(folder, origin, embed, workers, batches, bar):
    """Writes the embeddings of all images of a split, if they are missing.

    Workers split the images among them, and the chief writes all embeddings.

    Args:
      folder: where to write `embeddings.bin`, float32 [num_examples,
        channels], and `labels.npy`.
      origin: a JSON value: all that the embeddings depend on.
      embed: maps images [batch, ...] to embeddings, float32 [batch, channels].
      workers: a `Workers`.
      batches: the distributed evaluation batches of the split.
      bar: a `tqdm` progress bar over the `total` batches.

    Raises:
      StoppedError: a signal requested a stop.
      UserError: the workers do not share the folder's disk.
    """
    if _all_have(folder, origin, workers):
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
            # Last: a worker that cannot write joins the agreement above.
            # Examples of weight 0 only pad the last batch.
            yield [(e[weights > 0], n[weights > 0]) for e, n, weights in parts]

    with workers.agreeing():
        if workers.is_chief:
            with made_from(folder, origin) as unfinished:
                _write(embedded(), unfinished, workers.count)
        else:
            for _ in embedded():
                pass
    if not _all_have(folder, origin, workers):
        raise UserError(
            f"{folder}: not found by all workers, after the first worker has "
            "written embeddings there. Pass all workers the same --workdir, on "
            "a shared disk."
        )


def _write(batches, folder, count):
    """Writes the embeddings of all workers, one worker after another."""
    labels = [[] for _ in range(count)]
    paths = [folder / "embeddings.bin"]
    paths += [folder / f"embeddings-{number}.bin" for number in range(1, count)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for batch in batches:
            for number, (embeddings, new_labels) in enumerate(batch):
                files[number].write(embeddings.tobytes())
                labels[number].append(new_labels)
        for path, file in zip(paths[1:], files[1:], strict=True):
            file.close()
            with path.open("rb") as part:
                shutil.copyfileobj(part, files[0])
            path.unlink()
    np.save(folder / "labels.npy", np.concatenate(sum(labels, [])))


def _all_have(folder, origin, workers):
    """Returns whether all workers find complete embeddings in a folder."""
    # The chief may still be writing.
    workers.barrier()
    return workers.all(is_made_from(folder, origin))


def backbone_hash(model):
    """Returns a hash of all weights of a `ResNet` but the classifier's."""
    digest = hashlib.sha256()
    head = {id(variable) for variable in model.head.variables}
    for variable in model.variables:
        if id(variable) not in head:
            digest.update(np.asarray(variable.value).tobytes())
    return digest.hexdigest()
