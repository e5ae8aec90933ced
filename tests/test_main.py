"""The command line, as a user starts it."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from train_loop import Settings, main
from train_loop import help as help_module
from train_loop.errors import FEW
from train_loop.modes import MODES, train
from train_loop.recipes import RECIPES
from train_loop.settings import flag_name


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--dataset=digit", "Did you mean digits?"),
        ("--mode=evalate", "Did you mean evaluate"),
        ("--recipe=imagenet", "Did you mean imagenet2012"),
        ("--optimizer=adam", "--optimizer=adam: requires --learning_rate."),
        ("--beta_1=0.5", "cannot be combined with --optimizer=sgd, which"),
        ("--schedule=step:30:60", "factor=30.0: must be"),
        ("--batch_size=many", "--batch_size=many: must be"),
        ("--batch_size=5", "Try --batch_size=4 or --batch_size=6."),
        ("--batch_size=1", "Try --batch_size=2."),
        ("--image_size=3", "must be at least 4"),
        ("--image_size=200000", "requires 38,400 GB for its images"),
        ("--train_split=tarin", "--train_split=tarin: unknown split"),
        ("--eval_split=train[:50%]", "shares 718 images"),
        (
            "--train_split=train[:9]+train[:5]",
            "contains 5 images more than once",
        ),
        ("--freeze=stage4", "Use one of: none, stem, stage1, stage2, stage3"),
        ("--weights=none.h5", "error: --weights=none.h5: not found"),
        (
            "--unfreeze_after_epochs=3",
            "requires --freeze. Add it, such as",
        ),
        ("--data_service=grpc://localhost:1", "not reachable"),
        ("--data_service=localhost:5050", "must begin with grpc://"),
        ("--virtual_devices=3", "has started with 2"),
        ("--workdir=/proc/run", "--workdir=/proc/run: cannot be written"),
        ("--workdir=README.md", "--workdir=README.md: cannot be written"),
        (f"--workdir={'x' * 300}", "cannot be written"),
        ("digits", "'digits': not a flag"),
        (
            "--bach_size=3",
            "--bach_size: unknown flag. Did you mean --batch_size",
        ),
        ("--nokernel_products", "--kernel_products: removed. Use --fast_paths"),
        ("--fused_batch_norm=1", "--fused_batch_norm: removed. Use --fast_pa"),
        ("--fold_batch_norm", "--fold_batch_norm: removed. Use --fast_paths"),
        ("--constant_weights", "--constant_weights: removed. In Python, use"),
        ("--averaged", "requires --mode=evaluate or compare or predict"),
        ("--seed", "Run --help for all flags."),
        ("--help=trainin", "Did you mean training"),
        ("--model=xxxxxxxx", ": unknown. Use one of: resnet_tiny"),
        ("--dataset=xxxxxxxx", "nor a TFDS data set. Pass digits"),
        ("--dataset=eurosat/rbg", "Use one of: eurosat/rgb, eurosat/all"),
        ("--dataset=cifar10/plain", "Use one of: cifar10"),
        ("--dataset=mnist:9.9.9", "9.9.9: TFDS cannot open it (Dataset m"),
        ("--flagfile=/nowhere", "error: Unable to open flagfile"),
        ("--top_k=3", "requires --mode=predict or export"),
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


def test_imagenet_without_its_files_is_one_clear_line(run):
    status, _, errors = run("--dataset=imagenet2012", "--data_dir=/nowhere")
    assert status == 1
    [line] = errors.splitlines()
    assert "/nowhere/downloads/manual/ILSVRC2012_img_val.tar" in line


def test_help_begins_with_examples_and_has_a_line_per_flag(run):
    status, output, errors = run("--help")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert len(lines) <= 140
    assert max(map(len, lines)) <= 80
    first = output.index("python -m train_loop.main --dataset=photos")
    assert first < output.index("--mode=train ")
    words = output.split()
    for name in MODES:
        assert words.count(f"--mode={name}") >= 1
    for field in dataclasses.fields(Settings):
        assert output.count(f"\n  {help_module.usage(field)} ") == 1


def test_package_is_the_program(run):
    result = subprocess.run(
        [sys.executable, "-m", "train_loop", "--help"],
        capture_output=True,
        text=True,
    )
    _, output, _ = run("--help")
    assert result.stdout == output


def test_help_of_a_group_explains_its_flags_and_no_others(run):
    explained = {}
    for group in help_module.grouped():
        status, output, _ = run(f"--help={group}")
        assert status == 0
        explained[group] = re.findall(r"^--\S+", output, re.MULTILINE)
        assert all(
            len(line) <= 80 or len(line.split()) == 1
            for line in output.splitlines()
        )
    assert "--learning_rate" in explained["training"]
    assert "--[no]deterministic" in explained["devices"]
    assert "--with" in explained["modes"]
    everything = [flag for group in explained.values() for flag in group]
    assert len(everything) == len(dataclasses.fields(Settings))
    for argument in ("--help=all", "--helpfull"):
        _, output, _ = run(argument)
        assert re.findall(r"^--\S+", output, re.MULTILINE) == everything


def test_help_of_a_flag_has_its_marks_and_choices(run):
    for field in dataclasses.fields(Settings):
        _, output, _ = run(f"--help={flag_name(field.name)}")
        assert output.startswith(help_module.usage(field))
        assert ("[fixed on resume]" in output) == field.metadata["fixed"]
        for choice in list(field.metadata["choices"] or ())[:FEW]:
            assert str(choice) in output
    _, output, _ = run("--help=image_size")
    assert "Default: 224\n    By recipe: digits: 8, signs_adam: 64," in output
    _, output, _ = run("--help=steps")
    assert "--steps INT [none resets it on resume]\n" in output
    _, output, _ = run("--help=top_k")
    assert "--top_k INT [--mode=predict, export]\n" in output
    _, output, _ = run("--help=mode")
    assert all(f"  --mode={name} " in output for name in MODES)
    _, output, _ = run("--help=dataset")
    assert "oxford_iiit_pet" in output
    _, output, _ = run("--help=augment")
    assert "rand_augment:NUM_LAYERS:MAGNITUDE" in output
    _, output, _ = run("--help=recipe")
    for name in RECIPES:
        assert name in output


def test_flagfile_of_an_earlier_run_is_accepted(tmp_path, run):
    path = tmp_path / "flags.txt"
    path.write_text("--recipe=digits\n--kernel_products=True\n")
    flags = ("--mode=recipes", f"--flagfile={path}")
    status, output, err = run(*flags)
    assert (status, err) == (0, "")
    assert "--dataset=digits" in output
    path.write_text("--recipe=digits\n--kernel_products=False\n")
    assert "--kernel_products: removed" in run(*flags).err


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--lr=0.1", "Use --learning_rate."),
        ("--wd=0.1", "Use --weight_decay."),
        ("--resume", "Use --workdir=FOLDER"),
        ("--output_dir=x", "Use --workdir=FOLDER"),
        ("--pretrained", "Use --weights=imagenet"),
        ("--amp", "Use --precision=mixed_bfloat16"),
        ("--drop-path=0.1", "Use --stochastic_depth."),
        ("--num_classes=3", "the data set defines the number of classes."),
        ("--device=0", "Use --strategy"),
        ("--batch-size=3", "Did you mean --batch_size?"),
        ("--zyxw", "Run --help for all flags."),
    ],
)
def test_unknown_flags_find_what_people_type_from_habit(run, flag, hint):
    status, _, errors = run(flag)
    assert status == 1
    name = flag.partition("=")[0]
    assert errors.startswith(f"error: {name}: unknown flag. ")
    assert hint in errors


def test_hints_for_habits_name_flags_that_exist():
    for hint in main.HABITS.values():
        for name in re.findall(r"--(?!help)(\w+)", hint):
            assert name in main.FLAGS, hint
    assert not {*main.HABITS} & {*main.FLAGS}


def test_old_names_of_flags_work_with_a_warning(tmp_path, run):
    path = tmp_path / "flags.txt"
    path.write_text("--recipe=digits\n--average=ema\n--noremat\n")
    status, output, err = run("--mode=recipes", f"--flagfile={path}")
    assert (status, err) == (0, "")
    assert "warning" not in output
    flags = ("--mode=recipes", "--recipe=digits", "--accumulate_steps=2")
    status, output, err = run(*flags)
    assert (status, err) == (0, "")
    assert output.startswith(
        "warning: --accumulate_steps: renamed to "
        "--gradient_accumulation_steps. Use the new name.\n"
    )


def test_table_of_modes_points_to_functions():
    for mode in MODES.values():
        assert mode.function.__doc__


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "run/x"), "disk full .*run"),
        (
            tf.errors.ResourceExhaustedError(
                None, None, "{{node}} ckpt-30/part; No space left on device"
            ),
            r"disk full \(ckpt-30",
        ),
        (
            tf.errors.ResourceExhaustedError(
                None, None, "OOM when allocating\ntensor with shape[64,9]"
            ),
            r"memory .*shape\[64,9\].*--batch_size.*--gradient_accum",
        ),
        (MemoryError(), "memory"),
    ],
)
def test_exhausted_memory_and_disk_are_one_clear_line(
    run, monkeypatch, error, expected
):
    def run_out(settings):
        raise error

    monkeypatch.setattr(train, "train", run_out)
    status, _, errors = run("--steps=1")
    assert status == 1
    [line] = errors.splitlines()
    assert re.match(f"error: .*{expected}", line)


def test_bugs_keep_their_traceback(run, monkeypatch):
    monkeypatch.setattr(train, "train", lambda settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--steps=1")


def test_explicit_flags_become_settings(run, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", seen.append)
    run("--steps=3", "--nodeterministic", "--augment=flip,mixup:0.4")
    assert seen == [
        Settings(steps=3, deterministic=False, augment="flip,mixup:0.4")
    ]


HEAVY = ("tensorflow", "keras", "numpy", "sklearn", "matplotlib", "PIL")


def test_help_and_errors_import_nothing_heavy():
    script = f"""
import sys
from train_loop import main
statuses = [main.main(["main", argument]) for argument in sys.argv[1:]]
assert not {{*{HEAVY}}} & {{*sys.modules}}
sys.exit(statuses != [0, 0, 1, 1, 1, 1])
"""
    works = ("--help", "--mode=recipes")
    mistakes = ("--bach_size=3", "--mode=evalate", "--seed=x", "x")
    ended = subprocess.run(
        [sys.executable, "-c", script, *works, *mistakes],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stderr.splitlines()) == 4


def start(*arguments, **options):
    """Starts the program in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "train_loop.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def long_import(tmp_path, monkeypatch):
    """Replaces TensorFlow by a module whose import never ends."""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    library = tmp_path / "tensorflow.py"
    library.write_text("import sys\nprint('importing')\nsys.stdin.read()\n")


def test_ctrl_c_during_imports_is_one_line(long_import, default_signals):
    process = start("--steps=1", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("", "error: interrupted by Ctrl-C\n")
    assert process.returncode == 130


def test_ignored_ctrl_c_stays_ignored_during_imports(
    long_import, default_signals
):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start("--steps=1", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    # The import ended; the module is empty.
    assert "cannot be imported" in process.stderr.read()
