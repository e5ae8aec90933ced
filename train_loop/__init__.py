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
from train_loop.run import Run, load_classifier
from train_loop.settings import Settings

__all__ = ["Run", "Settings", "UserError", "load_classifier"]
