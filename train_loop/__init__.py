"""Trains and evaluates the models of `resnet_layers`.

python -m train_loop.main --help
"""

import os


class UserError(Exception):
    """A mistake that whoever started the program can mend.

    Its text says in one line what was given, what would have been accepted
    and what to do next. `main` prints it and exits with status 1.
    """


def _import_tensorflow_quietly():
    """Imports TensorFlow without the lines that its C++ code prints.

    It prints them before it reads the level that is to hide them. What goes
    wrong arrives as a Python exception all the same.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    standard_error = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


_import_tensorflow_quietly()
