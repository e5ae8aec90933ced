"""The least time that work can take within the limits of a machine."""

from typing import NamedTuple


class Roofline(NamedTuple):
    """The least time of a step, and what it is made of.

    `flops` and `bytes` are those of all its operations together;
    `products_seconds` is what the products take if nothing else counts, and
    `memory_seconds` the same of the bytes. An operation takes at least the
    longer one of its two, and one is done after the other: that is
    `least_seconds`.
    """

    flops: int
    bytes: int
    products_seconds: float
    memory_seconds: float
    least_seconds: float


def roofline(works, limits):
    """Returns the `Roofline` of operations on a machine.

    Args:
      works: with `flops` and `bytes` each, see `work.py`.
      limits: what the machine does of both in a second.
    """
    flops = sum(work.flops for work in works)
    moved = sum(work.bytes for work in works)
    return Roofline(
        flops,
        moved,
        flops / limits.flops,
        moved / limits.bytes,
        sum(
            max(work.flops / limits.flops, work.bytes / limits.bytes)
            for work in works
        ),
    )
