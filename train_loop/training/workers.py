"""Workers: the processes that train together, and their communication.

Every worker takes the same steps. What one of them alone knows (a clock, a
signal, a file) must reach all before it decides anything, or they would wait
for each other forever.
"""

import contextlib
from signal import SIGTERM

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from train_loop import process
from train_loop.errors import UserError, is_full_disk, reason_of, resource_error

# Errors of a worker when another one is gone, or does not respond.
LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class SharedError(Exception):
    """An error of one worker that all of them know of.

    All raise it at the same place, and can still save together what was
    learned.

    Args:
      line: what the workers without an error of their own report.
      error: of this worker; None where another one failed.
      is_shortage: whether memory or a disk ran out on one of them.
      is_full_disk: whether full disks are the only reason.
      explain: maps the error of this worker to the one to raise in its place.
        It may take long, and is called only after all workers have saved.
    """

    def __init__(self, line, error, is_shortage, is_full_disk, explain=None):
        super().__init__(line)
        self.error = error
        self.is_shortage = is_shortage
        self.is_full_disk = is_full_disk
        self.explain = explain or (lambda error: error)


@contextlib.contextmanager
def unshared():
    """Raises this worker's own error in place of a `SharedError`."""
    try:
        yield
    except SharedError as failure:
        error = failure.error
        if error is None:
            raise UserError(str(failure)) from None
        explained = failure.explain(error)
        if explained is error:
            raise error from error.__cause__
        raise explained from error


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

        All workers must call it, in the same order.
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

    @contextlib.contextmanager
    def agreeing(self, explain=None):
        """Ends with an agreement of all workers that none of them failed.

        For what each does by itself, such as reading and writing files: if one
        failed, the others would wait for it in their next collective. One that
        failed takes part in the next agreement of the others, so no other
        collective may be in between.

        Args:
          explain: see `SharedError`.

        Raises:
          SharedError: one of them failed; on all of them.
        """
        error = None
        try:
            yield
        except SharedError:
            # They have agreed on that already.
            raise
        except Exception as failure:
            error = failure
        failed, short, full = self.sums(
            error is not None,
            error is not None and resource_error(error) is not None,
            error is not None and is_full_disk(error),
        )
        if failed:
            raise SharedError(
                f"worker {self.number} of {self.count}: another worker failed. "
                "Its own error gives the reason: fix that, then start all "
                "workers again with the same command",
                error,
                is_shortage=short > 0,
                is_full_disk=full == failed,
                explain=explain,
            ) from error

    def barrier(self):
        """Waits until all workers are here; see `agreeing`."""
        with self.agreeing():
            pass

    def abort(self):
        """Ends the collectives of the others, now and later, in an error.

        For a worker that failed where they wait for it without `agreeing`, so
        that they do not wait until its process has ended.
        """
        if self.count > 1:
            # It fails where another one has left already.
            with contextlib.suppress(tf.errors.OpError):
                context.context().report_error_to_cluster(
                    tf.errors.UNAVAILABLE, "a worker has left"
                )

    def check_signals(self):
        """Raises StoppedError on all workers where a signal asked one to stop.

        All workers must call it.
        """
        signal = process.received()
        [stops] = self.sums(signal is not None)
        if stops:
            raise process.StoppedError(signal or SIGTERM)

    def from_chief(self, number):
        """Returns the chief's number; all workers must call it."""
        [number] = self.sums(number if self.is_chief else 0.0)
        return number

    def all(self, condition):
        """Tells whether a condition holds for all workers; all must call it."""
        return self.sums(condition) == [self.count]

    def text_from_chief(self, text):
        """Returns the chief's text; all must call it, with one as long."""
        letters = text.encode() if self.is_chief else bytes(len(text))
        return bytes(map(round, self.sums(*letters))).decode()

    @contextlib.contextmanager
    def in_turn(self):
        """Runs something in one worker after the other, the chief first.

        Later workers find on a shared disk what earlier ones wrote.
        """
        with unshared():
            for _ in range(self.number):
                self.barrier()
            with self.agreeing():
                yield
            for _ in range(self.number + 1, self.count):
                self.barrier()

    @contextlib.contextmanager
    def explaining_lost_workers(self):
        """Reports in one line that another worker was lost."""
        try:
            yield
        except LOST_WORKER_ERRORS as error:
            if self.count == 1:
                # Something else is gone, such as a bucket with images.
                raise
            raise UserError(
                "another worker is gone or does not answer, says worker "
                f"{self.number} of {self.count} ({reason_of(error)}); its own "
                "error tells why. Start all of them again with the same command"
            ) from error


@tf.function(autograph=False)
def _add(share):
    replica = tf.distribute.get_replica_context()
    # An argument is nowhere; its copy is on the device of the replica.
    return replica.all_reduce("SUM", tf.identity(share))


def _place(resolver):
    """Returns the number of this worker, 0 for the chief, and their count."""
    if resolver is None or resolver.task_type not in ("chief", "worker"):
        return 0, 1
    cluster = resolver.cluster_spec().as_dict()
    chiefs = len(cluster.get("chief", ()))
    number = resolver.task_id
    if resolver.task_type == "worker":
        number += chiefs
    return number, chiefs + len(cluster.get("worker", ()))
