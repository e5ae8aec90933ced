"""Every test sees two logical CPUs, so that replicas are real."""

import gc
import os
import random
import shutil
import signal
from typing import NamedTuple

# One core for each of two test processes: more threads are slower.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# Tests are not a worker of their parent process, and draw their own bars.
for name in {*os.environ}:
    if name in ("TF_CONFIG", "TQDM_DISABLE") or name.startswith("SLURM_"):
        del os.environ[name]

from train_loop import process

process.prepare()

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from samples import SMALL, SMALL_NET, write_folder

from resnet_layers import VARIANTS
from train_loop import Run, Settings, main
from train_loop.builders import reports
from train_loop.data import transforms
from train_loop.training.strategies import mirrored, split_cpu

split_cpu(2)
tf.random.set_seed(7)


def pytest_collection_modifyitems(items):
    """Puts tests of a slow fixture first, so that processes share the rest."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")


def pytest_collection_finish():
    """Excludes imported objects from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    """Seeds every test, so that it does not depend on earlier ones.

    Keras takes its initializers' seeds from Python's. TensorFlow's own seed is
    left alone: what is under test draws without state, and setting the seed
    throws away all of TensorFlow's kernels, a quarter of many a test's time.
    """
    random.seed(7)
    np.random.seed(7)


@pytest.fixture
def default_signals():
    """Sets Python's signal handlers: a parent such as nohup ignores some.

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
    """Returns a path for a run, without a folder."""
    return tmp_path / "run"


SHOWN = {
    name: vars(reports)[name] for name in ("show_beginning", "show_predictions")
}


@pytest.fixture(scope="session", autouse=True)
def quick():
    """Disables figures and graphs, most of the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        # Figures for TensorBoard; the fixture `shown` restores them.
        for name in SHOWN:
            patch.setattr(reports, name, lambda *_: None)
        # Every evaluation traces how an image is decoded: here, the first.
        traced = tf.function(transforms.center_crop, autograph=False)
        patch.setattr(transforms, "center_crop", traced)
        yield


@pytest.fixture
def shown(monkeypatch):
    """Restores the figures for TensorBoard."""
    for name, function in SHOWN.items():
        monkeypatch.setattr(reports, name, function)


@pytest.fixture
def small_net(monkeypatch):
    """Makes `resnet_tiny` smaller."""
    shrink(monkeypatch)


def shrink(patch):
    for argument, value in SMALL_NET.items():
        patch.setitem(VARIANTS["resnet_tiny"].arguments, argument, value)


@pytest.fixture(scope="session")
def first_trained(tmp_path_factory):
    """Returns a folder with `images` and a `run`, for `trained` to copy."""
    root = tmp_path_factory.mktemp("trained")
    counts = {"train/cat": 6, "train/dog": 6, "train/emu": 6}
    counts |= {"test/cat": 4, "test/dog": 3, "test/emu": 2}
    write_folder(root / "images", counts)
    settings = Settings(
        dataset=root / "images",
        workdir=root / "run",
        steps=4,
        evaluate_every=2,
        checkpoint_every=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        Run.create(settings.over(SMALL)).train()
    return root


@pytest.fixture
def trained(first_trained, tmp_path, small_net):
    """Returns the folder of a run of four steps, beside its `images`.

    It has checkpoints and evaluations of step 2 and 4, of a small net for three
    classes, and evaluates on nine images.
    """
    shutil.copytree(first_trained, tmp_path, dirs_exist_ok=True)
    flags = tmp_path / "run/flags.txt"
    text = flags.read_text().replace(str(first_trained), str(tmp_path))
    flags.write_text(text)
    return tmp_path / "run"


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
    """Exit status and output of a program."""

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
def one_device():
    return tf.distribute.OneDeviceStrategy("/CPU:0")


@pytest.fixture(scope="session")
def two_replicas():
    strategy = mirrored()
    assert strategy.num_replicas_in_sync == 2
    return strategy
