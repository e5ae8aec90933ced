"""The modes of the program, one function each."""

import pkgutil
from typing import NamedTuple


class Mode(NamedTuple):
    """A mode's summary for `--help`, and where its function is.

    `path` is "module:function". Its imports take seconds, so it is imported
    when it runs, not when flags are parsed. `requires_tensorflow` is whether it
    requires TensorFlow.
    """

    summary: str
    path: str
    requires_tensorflow: bool = True

    @property
    def function(self):
        """A function of the explicit `Settings`."""
        return pkgutil.resolve_name(self.path)


MODES = {
    "train": Mode(
        "train a model, or resume from the last checkpoint",
        "train_loop.modes.train:train",
    ),
    "evaluate": Mode(
        "evaluate a run or weights, and write a report",
        "train_loop.modes.evaluate:evaluate",
    ),
    "compare": Mode(
        "compare a run with another, or with weights",
        "train_loop.modes.evaluate:compare",
    ),
    "predict": Mode(
        "classify the images of --images",
        "train_loop.modes.predict:predict",
    ),
    "export": Mode(
        "export a model: SavedModel, LiteRT, ONNX, ...",
        "train_loop.modes.export:export",
    ),
    "data": Mode(
        "check and count all images, and draw some",
        "train_loop.modes.data:inspect_data",
    ),
    "summary": Mode(
        "count parameters and multiply-adds of a model",
        "train_loop.modes.benchmark:summarize",
    ),
    "benchmark": Mode(
        "measure the speed of a model on this machine",
        "train_loop.modes.benchmark:benchmark",
    ),
    "recipes": Mode(
        "list recipes: settings, result, cost, source",
        "train_loop.help:list_recipes",
        requires_tensorflow=False,
    ),
}
