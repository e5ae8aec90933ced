"""The time that steps take, the first one and the others."""

import time

import numpy as np

from train_loop.speed.process import age

# Behind the first, at least: what is set up late is not what a step costs.
WARM_UP_STEPS = 2
# A group of steps takes at least about this long, so that the clock and the
# call from Python do not count.
SECONDS_PER_GROUP = 0.25


class Stopwatch:
    """Takes the time of steps, by groups.

    It begins when it is made: before data are opened and the net is built.

    Args:
      is_first: whether the process has done nothing else before.

    Attributes:
      first_step: {"process": seconds from the start of the process to the end
        of the first step, or None; "task": seconds from the beginning}.
      groups: seconds of each group.
      group_steps: steps of each group.
      waits: seconds that each group waited for input, where that is known.
    """

    def __init__(self, is_first=True):
        self.is_first = is_first
        self.began = time.perf_counter()
        self.first_step = None
        self.groups = []
        self.group_steps = None
        self.waits = []

    def time(self, take, rounds, agree=round, warm_up=0.0):
        """Times steps: the first one, some to warm up, and then groups.

        Args:
          take: does as many steps as it is told, to their end, and returns the
            seconds that it waited for input, or None.
          rounds: how many groups.
          agree: maps a number to a whole one that all workers have.
          warm_up: seconds that warming up takes at least.
        """
        take(1)
        since = time.perf_counter() - self.began
        process = age() if self.is_first else None
        self.first_step = {"process": process, "task": since}
        laps = []
        while not agree(len(laps) >= WARM_UP_STEPS and sum(laps) >= warm_up):
            began = time.perf_counter()
            take(1)
            laps.append(time.perf_counter() - began)
        seconds = sum(laps[1:]) / len(laps[1:])
        self.group_steps = agree(max(round(SECONDS_PER_GROUP / seconds), 1))
        for _ in range(rounds):
            began = time.perf_counter()
            waited = take(self.group_steps)
            self.groups.append(time.perf_counter() - began)
            self.waits += [] if waited is None else [waited]

    def numbers(self, batch_size):
        """Returns what was measured, as a value for JSON.

        Args:
          batch_size: images of a step.
        """
        seconds = np.array(self.groups)
        images = self.group_steps * batch_size
        total = float(seconds.sum())
        return {
            "steps": len(seconds) * self.group_steps,
            "images": len(seconds) * images,
            "seconds": total,
            "steps_per_group": self.group_steps,
            "images_per_second": {
                "mean": len(seconds) * images / total,
                **percentiles(images / seconds),
            },
            "step_seconds": percentiles(seconds / self.group_steps),
            "first_step_seconds": self.first_step,
            "input_wait": sum(self.waits) / total if self.waits else None,
        }


def percentiles(values):
    """Returns the middle of some numbers, and where most of them lie."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}
