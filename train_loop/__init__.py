"""Trains and evaluates the models of `resnet_layers`.

On the command line:

    python -m train_loop.main --help

In Python:

    from train_loop import Run, Settings, load_classifier
"""

# ruff: noqa: E402
from train_loop import environment

# Before anything imports TensorFlow.
environment.prepare()

from train_loop.errors import UserError
from train_loop.settings import Settings

__all__ = ["Run", "Settings", "UserError", "load_classifier"]


def __getattr__(name):
    """Imports what needs TensorFlow when it is asked for.

    That takes seconds, which whoever mistypes a flag shall not wait for.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    environment.import_tensorflow()
    from train_loop import run

    return getattr(run, name)
