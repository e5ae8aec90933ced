"""The modes of the program, a function each."""

import pkgutil
from typing import NamedTuple


class Mode(NamedTuple):
    """What a mode does, in words, and where its function is.

    `place` is "module:function". What a mode needs takes seconds to import,
    so that it is imported when it is run, and not when flags are read.
    `takes_tensorflow` is whether it needs that.
    """

    summary: str
    place: str
    takes_tensorflow: bool = True

    @property
    def function(self):
        """A function of the `Settings` that were given."""
        return pkgutil.resolve_name(self.place)


MODES = {
    "train": Mode(
        "trains to the last step, from the last checkpoint",
        "train_loop.modes.train:train",
    ),
    "evaluate": Mode(
        "writes a report on a run, or on weights",
        "train_loop.modes.evaluate:evaluate",
    ),
    "compare": Mode(
        "compares a run with another, or weights (--with)",
        "train_loop.modes.evaluate:compare",
    ),
    "predict": Mode(
        "names what is on the pictures that --images lists",
        "train_loop.modes.predict:predict",
    ),
    "export": Mode(
        "writes a run's model for other programs",
        "train_loop.modes.export:export",
    ),
    "data": Mode(
        "looks through all images, counts them and draws some",
        "train_loop.modes.data:look_at_data",
    ),
    "summary": Mode(
        "prints what a model costs",
        "train_loop.modes.benchmark:summarize",
    ),
    "benchmark": Mode(
        "measures how fast a model is here, and could be",
        "train_loop.modes.benchmark:benchmark",
    ),
    "recipes": Mode(
        "lists the recipes, what they lead to and cost",
        "train_loop.help:list_recipes",
        takes_tensorflow=False,
    ),
}
