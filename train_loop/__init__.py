"""Trains and evaluates the models of `resnet_layers`.

On the command line:

    python -m train_loop.main --help

In Python:

    from train_loop import Run, Settings, load_classifier
    from train_loop import compare, evaluate, export
"""

# ruff: noqa: E402
import importlib

from train_loop import process

# Before anything imports TensorFlow.
process.prepare()

from train_loop.errors import UserError
from train_loop.settings import Settings

# Name -> module.
LATER = {
    "Run": "train_loop.run",
    "compare": "train_loop.modes.evaluate",
    "evaluate": "train_loop.modes.evaluate",
    "export": "train_loop.modes.export",
    "load_classifier": "train_loop.builders.model",
}

__all__ = ["Settings", "UserError", *LATER]


def __getattr__(name):
    """Imports names that require TensorFlow at first use.

    That takes seconds, which an error in a flag should not wait for.
    """
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    process.import_tensorflow()
    return getattr(importlib.import_module(LATER[name]), name)
