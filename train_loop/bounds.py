"""The smallest and the largest number that a value may be."""

import math
from typing import NamedTuple

from train_loop.errors import UserError


class Bounds(NamedTuple):
    """The smallest and the largest number that a value may be."""

    low: float = -math.inf
    high: float = math.inf

    def check(self, what, value):
        """Raises UserError for a number that is not within, or no number.

        Args:
          what: that has the value, such as "--batch_size".
          value: an int or a float.
        """
        if math.isfinite(value) and self.low <= value <= self.high:
            return
        raise UserError(f"{what}={value} is not possible; it takes {self}")

    def __str__(self):
        if self.high < math.inf:
            return f"a number from {self.low:g} to {self.high:g}"
        if self.low > -math.inf:
            return f"a number of at least {self.low:g}"
        return "a number"
