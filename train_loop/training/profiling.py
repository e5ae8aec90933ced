"""A profile of a few steps, for TensorBoard."""

import contextlib
import itertools
import os
from typing import NamedTuple

import tensorflow as tf


class Profile(NamedTuple):
    """The steps from `first` to `last`, recorded into `folder`."""

    first: int
    last: int
    folder: str | os.PathLike

    def sections(self, start, stop):
        """Cuts steps where recording begins and ends.

        Args:
          start: the step that was taken last.
          stop: the last one to take.

        Yields:
          (number of steps, a context that records what happens in it, or not).
        """
        begin, end = self.first - 1, self.last
        cuts = {cut for cut in (begin, end) if start < cut < stop}
        for left, right in itertools.pairwise(sorted({start, stop, *cuts})):
            context = contextlib.nullcontext()
            if begin <= left and right <= end:
                context = tf.profiler.experimental.Profile(str(self.folder))
            yield right - left, context


# Of no steps.
NO_PROFILE = Profile(1, 0, os.devnull)
