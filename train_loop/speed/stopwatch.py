"""The time that steps take, the first one and the others."""

import time

import numpy as np

from train_loop.speed.process import age

# Behind the first: what is set up late is not what a step costs.
WARM_UP_STEPS = 2
# A group of steps takes at least about this long, so that the clock and the
# call from Python do not count.
SECONDS_PER_GROUP = 0.25


class Stopwatch:
    """Takes the time of steps, by groups.

    It begins when it is made: before the net is built.

    Attributes:
      first_step: {"process": seconds from the start of the process to the end
        of the first step, or None; "build": seconds from the beginning}.
      groups: seconds of each group.
      group_steps: steps of each group.
      waits: seconds that each group waited for input, where that is known.
    """

    def __init__(self):
        self.began = time.perf_counter()
        self.first_step = None
        self.groups = []
        self.group_steps = None
        self.waits = []

    def time(self, take, rounds, agree=round):
        """Times steps: the first one, some to warm up, and then groups.

        Args:
          take: does as many steps as it is told, to their end, and returns the
            seconds that it waited for input, or None.
          rounds: how many groups.
          agree: maps a number of steps to one that all workers take.
        """
        take(1)
        build = time.perf_counter() - self.began
        self.first_step = {"process": age(), "build": build}
        for _ in range(WARM_UP_STEPS):
            began = time.perf_counter()
            take(1)
            seconds = time.perf_counter() - began
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
