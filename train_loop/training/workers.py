"""The processes that train together, and what they tell each other.

Every worker takes the same steps. Whatever one of them finds out alone (a
clock, a signal, a file) must be told to all before it decides anything, or they
would wait for each other for ever.
"""

import contextlib

import numpy as np
import tensorflow as tf

from train_loop.errors import UserError

# How a worker learns that another one is gone, or does not answer.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class Workers:
    """The workers of a strategy, one for most of them.

    Args:
      strategy: a `tf.distribute.Strategy`.
    """

    def __init__(self, strategy):
        self.strategy = strategy
        self.number, self.count = _place(strategy.cluster_resolver)

    @property
    def is_chief(self):
        """Whether this one writes the files of all."""
        return self.number == 0

    def sums(self, *numbers):
        """Returns the sum of each number over the workers, as floats.

        All workers must ask, in the same order.
        """
        if self.count == 1:
            return [float(number) for number in numbers]
        replicas = self.strategy.num_replicas_in_sync // self.count
        # Exact for whole numbers; each replica has the same share of it.
        share = tf.constant(np.array(numbers, "float64") / replicas)
        results = self.strategy.run(_add, args=(share,))
        first, *_ = self.strategy.experimental_local_results(results)
        return [float(number) for number in first.numpy()]

    @property
    def context(self):
        """A `tf.distribute.InputContext`: what this worker reads."""
        replicas = self.strategy.num_replicas_in_sync
        return tf.distribute.InputContext(self.count, self.number, replicas)

    def meet(self):
        """Waits until all workers are here."""
        self.sums(0)

    def of_chief(self, number):
        """Returns the chief's number; all workers must ask."""
        [number] = self.sums(number if self.is_chief else 0.0)
        return number

    def all(self, condition):
        """Tells whether something holds for all workers; all must ask."""
        return self.sums(condition) == [self.count]

    def text_of_chief(self, text):
        """Returns the chief's text; all must ask, with one as long."""
        letters = text.encode() if self.is_chief else bytes(len(text))
        return bytes(map(round, self.sums(*letters))).decode()

    @contextlib.contextmanager
    def in_turn(self):
        """Lets one worker after the other do something, the chief first.

        What it leaves on a disk, those that share the disk find there.
        """
        with self.needed():
            for _ in range(self.number):
                self.meet()
        yield
        with self.needed():
            for _ in range(self.number, self.count):
                self.meet()

    @contextlib.contextmanager
    def needed(self):
        """Says in a line where another worker has gone before training."""
        try:
            yield
        except LOST as error:
            if self.count == 1:
                # Something else is gone, such as a bucket with images.
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                "another worker is gone or does not answer, says worker "
                f"{self.number} of {self.count} ({reason}); its own error "
                "tells why. Start all of them again with the same command"
            ) from error


@tf.function(autograph=False)
def _add(share):
    context = tf.distribute.get_replica_context()
    # An argument is nowhere; its copy is on the device of the replica.
    return context.all_reduce("SUM", tf.identity(share))


def _place(resolver):
    """Returns the number of this worker, the chief's being 0, and how many."""
    if resolver is None or resolver.task_type not in ("chief", "worker"):
        return 0, 1
    cluster = resolver.cluster_spec().as_dict()
    chiefs = len(cluster.get("chief", ()))
    number = resolver.task_id
    if resolver.task_type == "worker":
        number += chiefs
    return number, chiefs + len(cluster.get("worker", ()))
