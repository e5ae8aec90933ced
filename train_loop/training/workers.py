"""Workers: the processes that train together, and their communication.

Every worker takes the same steps. A fact of one worker (a time, a signal, an
error of a file) must reach all before any decision, or they would wait for each
other forever.
"""

import contextlib
from signal import SIGTERM

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from train_loop import process
from train_loop.errors import UserError, is_full_disk, reason_of, resource_error

# Errors of a worker when another one has stopped or does not respond.
LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class SharedError(Exception):
    """An error of one worker that all of them know of.

    All raise it at the same place, and can still save a checkpoint together.

    Args:
      line: message of the workers that did not fail.
      error: error of this worker; None if another one failed.
      is_shortage: whether memory or a disk is exhausted on one of them.
      is_full_disk: whether full disks are the only reason.
      explain: maps the error of this worker to the one to raise instead. It may
        take long, and is called after all workers have saved.
    """

    def __init__(self, line, error, is_shortage, is_full_disk, explain=None):
        super().__init__(line)
        self.error = error
        self.is_shortage = is_shortage
        self.is_full_disk = is_full_disk
        self.explain = explain or (lambda error: error)


@contextlib.contextmanager
def unshared():
    """Raises this worker's own error instead of a `SharedError`."""
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
    """The workers of a strategy; most strategies have one.

    Args:
      strategy: a `tf.distribute.Strategy`.
    """

    def __init__(self, strategy):
        self.strategy = strategy
        self.number, self.count = _place(strategy.cluster_resolver)

    @property
    def is_chief(self):
        """Whether this worker writes the files of the run."""
        return self.number == 0

    def sums(self, *numbers):
        """Returns the sum of each number over the workers, as floats.

        All workers must call it, in the same order.
        """
        if self.count == 1:
            return [float(number) for number in numbers]
        replicas = self.strategy.num_replicas_in_sync // self.count
        # Exact for integers; each replica has the same share.
        share = tf.constant(np.array(numbers, "float64") / replicas)
        results = self.strategy.run(_add, args=(share,))
        first, *_ = self.strategy.experimental_local_results(results)
        return [float(number) for number in first.numpy()]

    @property
    def context(self):
        """The `tf.distribute.InputContext` of this worker's input."""
        replicas = self.strategy.num_replicas_in_sync
        return tf.distribute.InputContext(self.count, self.number, replicas)

    @contextlib.contextmanager
    def agreeing(self, explain=None):
        """Ends with an agreement of all workers that none of them failed.

        For work that each does alone, such as reading and writing files: if one
        failed, the others would wait for it in their next collective. A worker
        that failed takes part in the next agreement of the others, so no other
        collective may come between.

        Args:
          explain: see `SharedError`.

        Raises:
          SharedError: on all workers, if one failed.
        """
        error = None
        try:
            yield
        except SharedError:
            # All workers have agreed on it already.
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
                "Fix its own error, then start all workers again with the same "
                "command.",
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
        """Makes all current and later collectives of the others fail.

        For a worker that failed outside of `agreeing`, so that the others do
        not wait until its process has ended.
        """
        if self.count > 1:
            # It fails if another worker has left already.
            with contextlib.suppress(tf.errors.OpError):
                context.context().report_error_to_cluster(
                    tf.errors.UNAVAILABLE, "a worker has left"
                )

    def check_signals(self):
        """Raises StoppedError on all workers if a signal reached one.

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
        """Returns the chief's text; all must call it, with one length."""
        letters = text.encode() if self.is_chief else bytes(len(text))
        return bytes(map(round, self.sums(*letters))).decode()

    @contextlib.contextmanager
    def in_turn(self):
        """Runs code in one worker after another, the chief first.

        Later workers find files of earlier ones on a shared disk.
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
        """Reports a lost worker in one line."""
        try:
            yield
        except LOST_WORKER_ERRORS as error:
            if self.count == 1:
                # Another resource is unavailable, such as a storage bucket.
                raise
            raise UserError(
                f"worker {self.number} of {self.count}: another worker has "
                f"stopped or does not respond ({reason_of(error)}). Fix its "
                "own error, then start all workers again with the same "
                "command."
            ) from error


@tf.function(autograph=False)
def _add(share):
    replica = tf.distribute.get_replica_context()
    # An argument has no device; its copy is on the device of the replica.
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
