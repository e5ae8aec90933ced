"""What the layout and the published models promise."""

import ast
import configparser
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from archives import expect_archives, write_pets
from keras.src.backend.common import global_state
from layout_counts import (
    MODULES,
    ROOT,
    TRAIN,
    TREES,
    imported,
    imports_of,
    reached,
)

import resnet_layers
import train_loop
from resnet_layers import VARIANTS

# From the top down: a layer imports from those below it. Folders of one layer
# never import one another; modules of one may, without circles.
LAYERS = (
    ("__main__", "main", "help", "launch"),
    ("modes",),
    ("exports", "benchmark"),
    ("run",),
    ("builders",),
    ("resolve", "recipes", "settings"),
    ("prediction",),
    ("data", "training", "evaluation"),
    ("workdir", "values", "console", "errors", "process"),
)
LAYER_OF = {
    name: number for number, names in enumerate(LAYERS) for name in names
}


def is_module(name):
    return (ROOT / "train_loop" / f"{name}.py").exists()


def test_imports_go_downward():
    for name in MODULES.keys() - {"train_loop"}:
        for other in imports_of(name, late=True):
            assert is_below(other, name), (name, other)


def is_below(other, name):
    if not name.startswith("train_loop"):
        return other.startswith("resnet_layers")
    if not other.startswith("train_loop."):
        # Only its submodules have names.
        return other != "train_loop"
    own, its = name.split(".")[1], other.split(".")[1]
    are_modules = f"train_loop.{own}" == name and is_module(its)
    lowest = LAYER_OF[own] + (not are_modules)
    return own == its or LAYER_OF[its] >= lowest


def test_training_imports_neither_exports_nor_benchmarks():
    seen = reached([TRAIN], imports_of)
    parts = {name.split(".")[1] for name in seen if "." in name}
    assert "run" in parts
    assert not {"exports", "benchmark"} & parts


def test_there_are_no_circles():
    seen, path = set(), []

    def visit(name):
        assert name not in path, [*path, name]
        if name in seen:
            return
        seen.add(name)
        path.append(name)
        for other in imports_of(name, late=True):
            # A package's face gathers what stands in it.
            if other not in ("train_loop", "resnet_layers"):
                visit(other)
        path.pop()

    for name in MODULES:
        visit(name)


def test_public_functions_have_the_name_of_no_module():
    """Importing the module would put it in the function's place."""
    modules = {
        module.name for module in pkgutil.iter_modules(train_loop.__path__)
    }
    assert not modules & {*train_loop.__all__}


@pytest.mark.parametrize(
    "name",
    [
        f"{package.__name__}:{name}"
        for package in (resnet_layers, train_loop)
        for name in package.__all__
    ],
)
def test_public_functions_have_types(name):
    """mypy checks them, see `public_types.py`."""
    public = pkgutil.resolve_name(name)
    if inspect.isclass(public):
        public = public.__init__
    # Not the constructors of Keras and Python, nor tables.
    module = getattr(public, "__module__", "") if callable(public) else ""
    if module.startswith(name.partition(":")[0]):
        signature = inspect.signature(public)
        parameters = [*signature.parameters.values()]
        untyped = [
            each.name
            for each in parameters
            if each.annotation is inspect.Parameter.empty
        ]
        assert untyped in ([], ["self"])
        assert signature.return_annotation is not inspect.Signature.empty


def test_only_the_command_line_knows_flags():
    for name in MODULES:
        modules = imported(name, late=True).values()
        uses = any(module.startswith("absl") for module in modules)
        assert uses == (name == "train_loop.main"), name


def test_versions_are_those_of_the_requirements():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].splitlines()
    for library, bounds in resnet_layers.VERSIONS.items():
        assert f"{library}{bounds}" in required


def test_files_say_what_they_are():
    for name, tree in TREES.items():
        first = ast.get_docstring(tree).splitlines()[0]
        assert first.endswith("."), name
        assert not first.startswith("This "), name


@pytest.mark.slow
def test_layout_is_counted():
    """Printed, to be read by those who move things."""
    script = ROOT / "tests/layout_counts.py"
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True
    )
    counts = [int(line.split()[0]) for line in ended.stdout.splitlines()]
    assert len(counts) == 4
    assert min(counts) > 0


# Of torchvision, timm and keras.applications; of the CIFAR nets, He et al.'s
# table 6 prints 0.27, 0.46, 0.66, 0.85 and 1.7 million.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet50d": 25_576_264,
    "seresnet50": 28_088_024,
    "resnet50_v2": 25_568_360,
    "resnet101_v2": 44_577_896,
    "resnet152_v2": 60_236_904,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    # Published by nobody.
    "resnet_tiny": 382_072,
}


# To make as many layers takes a second.
DEEP = {name for name in PUBLISHED if re.search(r"1[015]|44|56", name)}


# Their layers are those of the shallower ones, repeated.
LONG = (pytest.mark.slow, pytest.mark.long)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=LONG) if name in DEEP else name
        for name in PUBLISHED
    ],
)
def test_parameter_counts_are_the_published_ones(name):
    assert count_parameters(name) == PUBLISHED[name]


def count_parameters(name):
    """Returns how many a variant has, whose weights get shapes, no numbers.

    That takes a tenth of the time, and no memory.
    """
    with tf.keras.StatelessScope(initialize_variables=False):
        model = VARIANTS[name]()
        model.build((None, 224, 224, 3))
    # Else the end of the next scope would give them numbers.
    global_state.set_global_attribute("uninitialized_variables", [])
    return sum(v.shape.num_elements() for v in model.trainable_variables)


def test_contributing_draws_the_layout_as_it_is():
    """Every folder of `train_loop`, and every module at its top."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [_, drawing] = guide.split("## Layout\n")
    lines = drawing.split("```")[1].split("resnet_layers/")[0].splitlines()
    drawn = {
        name
        for line in lines
        if line.startswith("  ")
        for name in re.split(r"\s{2,}", line.strip())[0].split(", ")
    }
    there = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "train_loop").iterdir()
        if path.name[0] not in "_." and (path.is_dir() or path.suffix == ".py")
    }
    assert drawn == there


# With a smaller encoder.
SEGMENTATION = """
import runpy
from resnet_layers import VARIANTS
VARIANTS["resnet18"].arguments.update(stage_sizes=(1, 1, 1, 1), width=8)
runpy.run_module("examples.segmentation", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.long
def test_segmentation_example_runs(tmp_path, monkeypatch):
    write_pets(tmp_path)
    expect_archives(tmp_path, monkeypatch.setattr)
    config = tfds.download.DownloadConfig(manual_dir=str(tmp_path))
    builder = tfds.builder("oxford_iiit_pet", data_dir=tmp_path)
    builder.download_and_prepare(download_config=config)
    ended = subprocess.run(
        [
            *(sys.executable, "-c", SEGMENTATION, f"--data_dir={tmp_path}"),
            *("--steps=2", "--batch_size=2", "--image_size=32"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "step 2/2  loss" in ended.stdout
