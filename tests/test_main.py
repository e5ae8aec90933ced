"""The command line, as a user starts it."""

import dataclasses
import re
import subprocess
import sys

import pytest
from absl import app, flags
from absl.testing import flagsaver

from train_loop import Settings, main
from train_loop.errors import FEW
from train_loop.recipes import RECIPES
from train_loop.settings import flag_name


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--dataset=digit", "did you mean digits?"),
        ("--mode=evalate", "did you mean evaluate"),
        ("--recipe=imagenet", "did you mean imagenet2012"),
        ("--batch_size=many", "--batch_size=many is not possible"),
        ("--batch_size=5", "take 4 or 6"),
        ("--batch_size=1", "take 2"),
        ("--image_size=3", "take at least 4"),
        ("--train_split=tarin", "--train_split=tarin cannot be read"),
        ("--eval_split=train[:50%]", "share 718 images"),
        ("--train_split=train[:9]+train[:5]", "names 5 images more than once"),
        ("--freeze=stage4", "It takes: none, stem, stage1, stage2, stage3"),
        ("--weights=none.h5", "none.h5 is not a file"),
        ("--data_service=grpc://localhost:1", "cannot be reached"),
        ("--data_service=localhost:5050", "must begin with grpc://"),
        ("--virtual_devices=3", "has begun with 2"),
        ("--workdir=/proc/run", "--workdir=/proc/run cannot be written"),
        ("--workdir=README.md", "--workdir=README.md cannot be written"),
        (f"--workdir={'x' * 300}", "cannot be written"),
        ("digits", "'digits' is not a flag"),
    ],
)
def test_mistakes_are_one_clear_line(argument, expected, run, pytestconfig):
    runs = set(pytestconfig.rootpath.glob("runs/*"))
    status, _, errors = run(argument)
    assert status == 1
    [line] = errors.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert set(pytestconfig.rootpath.glob("runs/*")) == runs


def test_flag_that_does_not_exist_is_one_clear_line():
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        main.parse(["main", "--bach_size=3"])
    assert "Did you mean: batch_size" in ended.value.code
    assert "\n" not in ended.value.code


def test_imagenet_without_its_files_is_one_clear_line(run):
    status, _, errors = run("--dataset=imagenet2012", "--data_dir=/nowhere")
    assert status == 1
    [line] = errors.splitlines()
    assert "/nowhere/downloads/manual/ILSVRC2012_img_val.tar" in line


def test_help_is_no_failure():
    app.define_help_flags()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        main.parse(["main", "--help"])
    assert ended.value.code == 0


def test_every_setting_is_a_flag_that_says_what_it_may_be():
    for field in dataclasses.fields(Settings):
        text = flags.FLAGS[flag_name(field.name)].help
        assert text.startswith(field.metadata["help"])
        for choice in list(field.metadata["choices"] or ())[:FEW]:
            assert choice in text
    assert "Default: 224; digits: 8." in flags.FLAGS["image_size"].help
    for name in RECIPES:
        assert name in flags.FLAGS["recipe"].help
    for name in main.MODES:
        assert f"{name}: " in flags.FLAGS["mode"].help


def test_flags_that_are_given_become_settings(run, monkeypatch):
    seen = []
    monkeypatch.setitem(main.MODES, "train", seen.append)
    run("--steps=3", "--nodeterministic", "--augment=flip,mixup:0.4")
    assert seen == [
        Settings(steps=3, deterministic=False, augment="flip,mixup:0.4")
    ]


@pytest.mark.slow
def test_program_starts_from_its_module_and_says_its_flags():
    ended = subprocess.run(
        [sys.executable, "-m", "train_loop.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"--batch_size: Images per step", ended.stdout)
    assert "python -m train_loop.main --dataset=oxford_iiit_pet" in ended.stdout
    assert ended.stderr == ""
