"""The places of the blocks in a net, and what each is told for its place."""

import random
from typing import NamedTuple


class Place(NamedTuple):
    """Where a block stands, and the arguments that follow from it.

    Stages and blocks count from 0. `begins_stage` tells whether the map before
    the block is the last one of its stage.
    """

    stage: int
    index: int
    begins_stage: bool
    arguments: dict


def place_blocks(
    stage_sizes, downsample, reduction, output_stride, stochastic_depth, seed
):
    """Yields the `Place` of every block.

    Args:
      stage_sizes: number of blocks in each stage.
      downsample: "first" or "last", see `ResNet`.
      reduction: pixels of the input's side for one of the stem's.
      output_stride: the most that may become of it; from there on, dilations
        take the place of strides. None for any.
      stochastic_depth: of the last block; it rises evenly from 0.
      seed: that the blocks' seeds follow from, or None for none.
    """
    seeds = random.Random(seed)
    steps = max(sum(stage_sizes) - 1, 1)
    position, dilation = 0, 1
    for stage, size in enumerate(stage_sizes):
        for index in range(size):
            # The first block of every stage but the first, or the last of
            # every stage but the last.
            begins = (
                stage > 0 and index == 0
                if downsample == "first"
                else stage < len(stage_sizes) - 1 and index == size - 1
            )
            strides, first_dilation = 1, dilation
            if begins and output_stride and reduction * 2 > output_stride:
                # What would come after the stride looks twice as far.
                dilation *= 2
            elif begins:
                reduction *= 2
                strides = 2
            arguments = {
                "strides": strides,
                "dilation": dilation,
                "first_dilation": first_dilation,
                "stochastic_depth": stochastic_depth * position / steps,
                "seed": None if seed is None else seeds.randrange(2**31),
            }
            yield Place(stage, index, begins, arguments)
            position += 1
