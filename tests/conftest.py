"""Every test sees two logical CPUs, so that replicas are real."""

import functools
import gc
import os
import random
import signal
from typing import NamedTuple

# A core for each of two test processes: more threads get in each other's way.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

from train_loop import environment

environment.prepare()

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from keras.src.backend.common import global_state
from samples import SMALL_NET, write_folder

from resnet_layers import VARIANTS
from train_loop import main
from train_loop.builders import reports
from train_loop.training.strategies import mirrored, split_cpu

split_cpu(2)
tf.random.set_seed(7)


def pytest_collection_modifyitems(items):
    """Puts what takes longest first: at the end, one process would wait."""
    longest = ("test_notebook.py", "test_resume.py", "test_run.py")
    items.sort(key=lambda item: item.path.name not in longest)


def pytest_collection_finish():
    """Spares the garbage collector what importing has made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    """Gives every test the same random numbers, whatever ran before it.

    Keras takes its initializers' seeds from Python's. TensorFlow's own seed is
    left alone: what is under test draws without state, and setting the seed
    throws away all of TensorFlow's kernels, a quarter of many a test's time.
    """
    random.seed(7)
    np.random.seed(7)


@pytest.fixture
def default_signals():
    """Gives signals Python's handlers; what nohup starts ignores some.

    For tests that send some, to this process or to one that they start.
    """
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {n: signal.signal(n, each) for n, each in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of 24 images of two classes, in two splits."""
    counts = {"train/cat": 9, "train/dog": 9, "test/cat": 3, "test/dog": 3}
    write_folder(tmp_path / "images", counts)
    return tmp_path / "images"


@pytest.fixture
def workdir(tmp_path):
    """Returns where a run may write; there is nothing yet."""
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch):
    """Leaves out what a run in this process draws for TensorBoard."""
    for name in ("show_beginning", "show_predictions"):
        monkeypatch.setattr(reports, name, lambda *_: None)


@pytest.fixture
def small_net(monkeypatch):
    """Makes `resnet_tiny` tinier."""
    for argument, value in SMALL_NET.items():
        monkeypatch.setitem(VARIANTS["resnet_tiny"].arguments, argument, value)


@pytest.fixture
def run(capsys):
    """Returns a function that runs the program in this process.

    It takes arguments of the command line, and returns the exit status, what
    was printed, and what went to standard error.
    """

    def run_here(*arguments):
        capsys.readouterr()
        with flagsaver.flagsaver():
            main.FLAGS.unparse_flags()
            status = main.main(["main", *map(str, arguments)])
        return Ended(status, *capsys.readouterr())

    return run_here


class Ended(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def images():
    """Returns float32 [4, 32, 32, 3] with zero mean and unit variance."""
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("f4")
    images.flags.writeable = False
    return images


@pytest.fixture(scope="session")
def count_parameters():
    """Returns a function: name of a variant -> number of its parameters.

    Each is built once for all tests, and its weights get shapes, but no
    numbers: a tenth of the time, and no memory.
    """

    @functools.cache
    def count(name):
        with tf.keras.StatelessScope(initialize_variables=False):
            model = VARIANTS[name]()
            model.build((None, 224, 224, 3))
        # Else the end of the next scope would give them numbers.
        global_state.set_global_attribute("uninitialized_variables", [])
        return sum(v.shape.num_elements() for v in model.trainable_variables)

    return count


@pytest.fixture(scope="session")
def one_device():
    return tf.distribute.OneDeviceStrategy("/CPU:0")


@pytest.fixture(scope="session")
def two_replicas():
    strategy = mirrored()
    assert strategy.num_replicas_in_sync == 2
    return strategy
