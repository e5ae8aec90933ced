"""Trains and evaluates the models of `resnet_layers`.

On the command line:

    python -m train_loop.main --help

In Python:

    from train_loop import Run, Settings, fit, load_classifier
    from train_loop import compare, evaluate, export
"""

# ruff: noqa: E402
import importlib
from typing import TYPE_CHECKING

from train_loop import process

# Before anything imports TensorFlow.
process.prepare()

from train_loop.errors import UserError
from train_loop.settings import Settings

if TYPE_CHECKING:
    from train_loop.builders.model import load_classifier
    from train_loop.modes.evaluate import compare, evaluate
    from train_loop.modes.export import export
    from train_loop.modes.train import fit
    from train_loop.run import Run

# Name -> module.
LATER = {
    "Run": "train_loop.run",
    "compare": "train_loop.modes.evaluate",
    "evaluate": "train_loop.modes.evaluate",
    "export": "train_loop.modes.export",
    "fit": "train_loop.modes.train",
    "load_classifier": "train_loop.builders.model",
}

__all__ = [
    "Run",
    "Settings",
    "UserError",
    "compare",
    "evaluate",
    "export",
    "fit",
    "load_classifier",
]


def __getattr__(name):
    """Imports names that require TensorFlow at first use.

    That takes seconds, which an error in a flag should not wait for.
    """
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    process.import_tensorflow()
    return getattr(importlib.import_module(LATER[name]), name)
