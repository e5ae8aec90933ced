"""The command line, as a user starts it."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import app, flags
from absl.testing import flagsaver
from archives import encode, write_imagenet, write_pets
from samples import read_checkpoint
from tensorboard.backend.event_processing import plugin_event_accumulator

from resnet_layers import VARIANTS, ResNet, save_safetensors
from train_loop import inputs, main, preprocessing, settings

ROOT = pathlib.Path(__file__).parents[1]
MODULE = ("-m", "train_loop.main")
# A run of two and a half epochs of the digits, with a save in mid-epoch.
SHORT = (
    "--steps=50",
    "--report_every=5",
    "--evaluate_every=20",
    "--checkpoint_every=10",
)


def start(*arguments, program=MODULE):
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, program=MODULE):
    process = start(*arguments, program=program)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def run_here(*arguments, capsys):
    """Runs in this process; returns the exit status and standard error."""
    with flagsaver.flagsaver():
        settings.FLAGS.unparse_flags()
        try:
            status = main.main(settings.parse(["main", *arguments]))
        except SystemExit as error:
            status = 1
            print(error, file=sys.stderr)
    return status, capsys.readouterr().err


@contextlib.contextmanager
def settled(*arguments):
    """Gives the flags the values that a run with these arguments has."""
    with flagsaver.flagsaver():
        settings.FLAGS.unparse_flags()
        settings.parse(["main", *arguments])
        settings.settle(None)
        yield


def read_metrics(workdir):
    """Returns the records of a run, without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("images_per_second", None)
        record.pop("input_wait", None)
    return records


def assert_same_run(workdir, other, step):
    expected, values = (
        read_checkpoint(other, step),
        read_checkpoint(workdir, step),
    )
    assert values.keys() == expected.keys()
    assert len(values) > 50
    for key, value in values.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    assert read_metrics(workdir) == read_metrics(other)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a run left alone, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    output, errors = run(*SHORT, f"--workdir={workdir}")
    return workdir, output, errors


def test_run_shows_progress_and_where_things_are(finished):
    workdir, output, errors = finished
    assert re.search(r"\d+/50 \[\d+:\d+<\d+:\d+, .*step/s, loss=\d", errors)
    table, *_, last = output.splitlines()[-5:]
    assert table.split() == ["split", "step", "loss", "accuracy", "pictures"]
    assert str(workdir) in last
    assert f"tensorboard --logdir={workdir}" in last
    assert "Traceback" not in errors
    assert "I0000" not in errors


def test_run_writes_metrics(finished):
    records = read_metrics(finished[0])
    trained = [r for r in records if r["split"] == "train"]
    evaluated = [r for r in records if r["split"] == "eval"]
    assert [r["step"] for r in trained] == list(range(5, 51, 5))
    assert [r["step"] for r in evaluated] == [20, 40, 50]
    for record in trained:
        assert {"loss", "accuracy", "learning_rate", "gradient_norm"} <= set(
            record
        )
    for record in evaluated:
        # Every one of the 360 pictures counted once.
        assert record["accuracy"] * 360 == pytest.approx(
            round(record["accuracy"] * 360), abs=1e-3
        )
    assert trained[-1]["loss"] < trained[0]["loss"]


def read_events(workdir, split):
    """Returns what TensorBoard reads from a run's event files."""
    events = plugin_event_accumulator.EventAccumulator(str(workdir / split))
    return events.Reload()


def test_event_files_hold_what_people_look_at(finished):
    workdir = finished[0]
    events = {split: read_events(workdir, split) for split in ("train", "eval")}
    records = read_metrics(workdir)
    for split, names in {
        "train": ("loss", "accuracy", "learning_rate", "gradient_norm"),
        "eval": ("loss", "accuracy"),
    }.items():
        expected = [r for r in records if r["split"] == split]
        for name in names:
            points = events[split].Tensors(name)
            assert [p.step for p in points] == [r["step"] for r in expected]
            values = [float(tf.make_ndarray(p.tensor_proto)) for p in points]
            assert values == pytest.approx([r[name] for r in expected])
    for name in ("images_per_second", "input_wait"):
        assert len(events["train"].Tensors(name)) == 10
    [text] = events["train"].Tensors("flags")
    assert b"| batch_size | `64` |" in text.tensor_proto.string_val[0]
    [images] = events["train"].Tensors("training_images")
    width, height, png = images.tensor_proto.string_val
    assert (int(width), int(height)) == (32, 32)
    assert tf.io.decode_png(png).numpy().std() > 10
    assert b"stage1_block1" in events["train"].Graph().SerializeToString()


def test_flags_file_repeats_the_run(finished, tmp_path):
    workdir = tmp_path / "again"
    run(f"--flagfile={finished[0] / 'flags.txt'}", f"--workdir={workdir}")
    assert_same_run(workdir, finished[0], 50)


def test_evaluate_measures_what_the_run_reported(finished):
    workdir = finished[0]
    output, _ = run("--mode=evaluate", f"--workdir={workdir}")
    report = json.loads((workdir / "report" / "report.json").read_text())
    last = read_metrics(workdir)[-1]
    assert (report["step"], report["examples"]) == (50, 360)
    for name in ("loss", "accuracy"):
        assert report[name] == last[name]
    assert "accuracy" in output


def test_flags_reach_the_parts_they_speak_of(tmp_path):
    with settled(
        "--weight_decay=0.003",
        "--label_smoothing=0.2",
        "--stochastic_depth=0.3",
        "--precision=mixed_bfloat16",
        "--synchronized_batch_norm",
        "--epochs=10",
        "--warmup_epochs=2",
        "--learning_rate=0.7",
    ):
        trainer, steps = main.build(tmp_path)[1:3]
    assert trainer.optimizer.l2 == 0.003
    assert trainer.label_smoothing == 0.2
    assert trainer.model.compute_dtype == "bfloat16"
    assert trainer.model.synchronized
    assert trainer.model.stochastic_depth == 0.3
    assert trainer.strategy.num_replicas_in_sync == 2
    assert steps == round(10 * 1437 / 64)
    schedule = trainer.optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 45, steps)]
    assert rates == pytest.approx([0, 0.7, 0], abs=1e-6)


def test_short_runs_do_not_warm_up_for_ever(tmp_path):
    with settled("--strategy=one_device", "--steps=10", "--learning_rate=0.4"):
        trainer, steps = main.build(tmp_path)[1:3]
    assert (steps, trainer.strategy.num_replicas_in_sync) == (10, 1)
    schedule = trainer.optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 5, 10)]
    assert rates == pytest.approx([0, 0.4, 0], abs=1e-6)


def test_seed_draws_weights_and_order(tmp_path):
    kernels, batches = [], []
    for seed in (0, 0, 1):
        with settled(f"--seed={seed}", "--strategy=one_device"):
            built = main.build(tmp_path)
            kernels.append(np.array(built.trainer.model.head.kernel))
            images, _ = next(
                iter(
                    inputs.training_batches(
                        built.source, built.trainer.strategy, 0
                    )
                )
            )
            batches.append(images.numpy())
    for values in (kernels, batches):
        np.testing.assert_array_equal(values[0], values[1])
        assert np.any(values[0] != values[2])


def test_pictures_are_prepared_as_the_flags_say():
    encoded = encode("jpeg", 0)
    common = ("--image_size=32", "--crop_fraction=0.5", "--normalization=caffe")
    with settled(*common, "--augment="):
        plain = inputs.prepare_for_training(encoded, [1, 2])
        evaluated = inputs.prepare_for_evaluation(encoded)
    expected = np.round(preprocessing.center_crop(encoded, 32, 0.5))
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(evaluated, expected)
    for names in (["random_resized_crop"], ["flip"], ["shift", "flip"]):
        with settled(*common, f"--augment={','.join(names)}"):
            results = [
                inputs.prepare_for_training(encoded, [1, index]).numpy()
                for index in range(12)
            ]
            again = inputs.prepare_for_training(encoded, [1, 3])
        np.testing.assert_array_equal(results[3], again)
        assert len({result.tobytes() for result in results}) > 1


def test_digits_are_learned(tmp_path):
    run(f"--workdir={tmp_path}")
    last = read_metrics(tmp_path)[-1]
    assert (last["step"], last["split"]) == (1347, "eval")
    assert last["accuracy"] >= 0.985


def test_interrupted_run_says_how_to_go_on(tmp_path):
    process = start(*SHORT, "--steps=100000", f"--workdir={tmp_path}")
    while not list((tmp_path / "checkpoints").glob("*.index")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"--workdir={tmp_path} goes on" in errors.splitlines()[-1]


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    first = start(*SHORT, "--steps=100000", f"--workdir={tmp_path}")
    while not list((tmp_path / "checkpoints").glob("*.index")):
        assert first.poll() is None
        time.sleep(0.01)
    status, errors = run_here(*SHORT, f"--workdir={tmp_path}", capsys=capsys)
    first.kill()
    first.communicate()
    assert status == 1
    assert errors.startswith("error: another process is training in")
    assert errors.count("\n") == 1


def test_run_can_be_made_longer(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    workdir = f"--workdir={tmp_path}"
    status, _ = run_here(
        workdir, "--epochs=3", "--strategy=one_device", capsys=capsys
    )
    assert status == 0
    assert read_metrics(tmp_path)[-1]["step"] == round(3 * 1437 / 64)


def kill_once_past(process, workdir, step):
    """Sends SIGKILL as soon as the run has reported a step."""
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None:
        text = metrics.read_text() if metrics.exists() else ""
        if re.search(rf'"step": {step},', text):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("replicas", [1, 2])
def test_run_resumes_where_it_stopped(finished, tmp_path, replicas):
    devices = f"--virtual_devices={replicas}"
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    kills = (15, 25)
    if replicas == 1:
        alone = finished[0]
    else:
        run(*SHORT, devices, f"--workdir={alone}")
        kills = (25,)
    for step in kills:
        process = start(*SHORT, devices, f"--workdir={killed}")
        kill_once_past(process, killed, step)
    # What a kill in the middle of a write leaves behind.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "spl')
    run(*SHORT, devices, f"--workdir={killed}")
    assert_same_run(killed, alone, 50)
    # TensorBoard shows one curve, not the steps that were taken twice.
    steps = [
        point.step for point in read_events(killed, "train").Tensors("loss")
    ]
    assert steps == list(range(5, 51, 5))


def test_broken_checkpoint_costs_only_the_work_since_the_one_before(
    finished, tmp_path
):
    workdir = tmp_path / "broken"
    shutil.copytree(finished[0], workdir)
    for path in (workdir / "checkpoints").glob("ckpt-50.data*"):
        path.write_bytes(path.read_bytes()[:1000])
    # With the run's own flags.
    output, _ = run(f"--workdir={workdir}")
    assert "ckpt-50" in output
    assert "from step 40" in output
    assert_same_run(workdir, finished[0], 50)


def test_pets_come_from_tfds_own_builder(tmp_path):
    write_pets(tmp_path)
    program = (str(ROOT / "tests" / "archives.py"), str(tmp_path))
    common = (
        "--dataset=oxford_iiit_pet",
        f"--data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        "--model=resnet18",
        "--image_size=32",
        "--batch_size=4",
        "--virtual_devices=2",
    )
    output, _ = run(*common, "--steps=2", program=program)
    assert "9 pictures to train on, 6 to evaluate on, 37 classes" in output
    # Prepared now: neither archives nor network are needed any more.
    output, _ = run(*common, "--steps=4")
    assert "from step 2" in output
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == [2, 2, 4, 4]
    output, _ = run(
        f"--data_dir={tmp_path / 'data'}",
        "--steps=2",
        "--batch_size=2",
        "--image_size=64",
        program=("-m", "examples.segmentation"),
    )
    assert "step 2/2  loss" in output


def test_imagenet_comes_from_tfds_own_builder(tmp_path):
    manual_dir = tmp_path / "data" / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    write_imagenet(manual_dir)
    output, _ = run(
        "--dataset=imagenet2012",
        f"--data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        "--model=resnet18",
        "--image_size=32",
        "--batch_size=4",
        "--steps=2",
    )
    assert "6 pictures to train on, 5 to evaluate on, 1000 classes" in output


@pytest.mark.parametrize(
    "flag", ["--freeze=backbone", "--backbone_lr_factor=0"]
)
def test_classifier_alone_is_trained(flag, tmp_path, capsys):
    arguments = (f"--workdir={tmp_path}", "--steps=4", "--checkpoint_every=2")
    status, _ = run_here(*arguments, flag, capsys=capsys)
    assert status == 0
    early, late = read_checkpoint(tmp_path, 2), read_checkpoint(tmp_path, 4)
    moved = {
        key
        for key in early
        if key.startswith("model/") and np.any(early[key] != late[key])
    }
    if flag.startswith("--backbone_lr_factor"):
        # Statistics go on moving where only the rate is zero.
        statistics = {key for key in moved if "moving" in key}
        assert statistics
        moved -= statistics
    assert len(moved) == 2
    assert all("head" in key for key in moved)


@pytest.mark.parametrize("dialect", ["torch", "keras"])
def test_run_starts_from_weights_of_others(tmp_path, dialect, capsys):
    """With a rate of zero, so that they can be found in the checkpoint."""
    name = {"torch": "resnet18", "keras": "resnet50_keras"}[dialect]
    if dialect == "torch":
        theirs = VARIANTS[name](num_classes=5)
        theirs.build((None, 32, 32, 3))
        weights = tmp_path / "model.safetensors"
        save_safetensors(theirs, weights)
        kernel = theirs.stem.convs[0].kernel
    else:
        theirs = tf.keras.applications.ResNet50(
            weights=None, classes=5, input_shape=(32, 32, 3)
        )
        weights = tmp_path / "model.weights.h5"
        theirs.save_weights(weights)
        kernel = theirs.get_layer("conv1_conv").kernel
    workdir = tmp_path / "run"
    arguments = (
        f"--workdir={workdir}",
        f"--model={name}",
        f"--weights={weights}",
        "--eval_split=test[:8]",
        "--image_size=32",
        "--steps=1",
        "--batch_size=8",
        "--learning_rate=0",
    )
    status, _ = run_here(*arguments, capsys=capsys)
    assert status == 0
    values = read_checkpoint(workdir, 1)
    [key] = [k for k in values if "stem" in k and "conv1" in k and "model" in k]
    np.testing.assert_array_equal(values[key], kernel)
    # The normalisation that belongs to the weights stays with the run.
    normalization = {"torch": "imagenet", "keras": "caffe"}[dialect]
    flags_of_run = (workdir / "flags.txt").read_text()
    assert f"--normalization={normalization}" in flags_of_run


def start_from(weights, workdir, *arguments, capsys):
    """Starts a run from weights; returns its flags and what went wrong."""
    status, errors = run_here(
        f"--workdir={workdir}",
        f"--weights={weights}",
        "--eval_split=test[:8]",
        "--steps=1",
        "--batch_size=8",
        "--learning_rate=0",
        *arguments,
        capsys=capsys,
    )
    if status:
        return {}, errors
    return settings.read(workdir / "flags.txt"), errors


def test_preprocessing_of_timm_travels_with_the_weights(tmp_path, capsys):
    model = VARIANTS["resnet_tiny"](num_classes=5)
    model.build((None, 32, 32, 3))
    weights = tmp_path / "model.safetensors"
    save_safetensors(model, weights)
    config = {
        "input_size": [3, 40, 40],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    text = json.dumps({"pretrained_cfg": config})
    (tmp_path / "config.json").write_text(text)
    expected = {
        "image_size": "40",
        "crop_fraction": "0.95",
        "interpolation": "bicubic",
        "normalization": "symmetric",
    }
    values, _ = start_from(weights, tmp_path / "run", capsys=capsys)
    assert values.items() >= expected.items()
    # It stays when the run goes on, and when others start from the run.
    run_here(f"--workdir={tmp_path / 'run'}", "--steps=2", capsys=capsys)
    values = settings.read(tmp_path / "run" / "flags.txt")
    assert values.items() >= expected.items()
    for weights_of_run in (
        tmp_path / "run",
        tmp_path / "run/checkpoints/ckpt-2",
    ):
        name = f"from-{weights_of_run.name}"
        values, _ = start_from(weights_of_run, tmp_path / name, capsys=capsys)
        assert values.items() >= expected.items()
        own, theirs = (
            read_checkpoint(tmp_path / folder, step)
            for folder, step in ((name, 1), ("run", 2))
        )
        for key, value in theirs.items():
            if key.startswith("model/") and "moving" not in key:
                np.testing.assert_array_equal(own[key], value, err_msg=key)
    # A flag wins.
    values, _ = start_from(
        weights, tmp_path / "own", "--image_size=16", capsys=capsys
    )
    assert values["image_size"] == "16"
    assert values["crop_fraction"] == "0.95"


@pytest.mark.parametrize(
    ("key", "value", "flag"),
    [
        ("mean", [0.1, 0.2, 0.3], "--normalization"),
        ("interpolation", "lanczos", "--interpolation"),
    ],
)
def test_unknown_preprocessing_is_not_guessed(
    tmp_path, key, value, flag, capsys
):
    model = VARIANTS["resnet_tiny"](num_classes=5)
    model.build((None, 32, 32, 3))
    weights = tmp_path / "model.safetensors"
    save_safetensors(model, weights)
    config = {"mean": [0.5] * 3, "std": [0.5] * 3, key: value}
    text = json.dumps({"pretrained_cfg": config})
    (tmp_path / "config.json").write_text(text)
    _, errors = start_from(weights, tmp_path / "run", capsys=capsys)
    assert f"choose one of these with {flag}" in errors.splitlines()[-1]


@pytest.mark.parametrize("replicas", [1, 2])
def test_embeddings_are_made_once(tmp_path, replicas, capsys, monkeypatch):
    """And lead to what the whole network says."""
    calls = []
    embed = ResNet.embed

    def counted(self, inputs, training=None):
        tf.py_function(lambda: calls.append(1), [], [])
        return embed(self, inputs, training=training)

    monkeypatch.setattr(ResNet, "embed", counted)
    arguments = (
        f"--workdir={tmp_path}",
        "--batch_size=60",
        "--strategy=" + {1: "one_device", 2: "mirrored"}[replicas],
    )
    status, errors = run_here(
        *arguments, "--freeze=backbone", "--epochs=3", capsys=capsys
    )
    assert status == 0, errors
    # 1,437 and 360 pictures, on each replica a part of every batch.
    assert len(calls) <= (24 + 6) * replicas + 2
    early = read_checkpoint(tmp_path, 72)
    calls.clear()
    status, errors = run_here(*arguments, "--epochs=5", capsys=capsys)
    assert status == 0, errors
    assert not calls
    steps = read_metrics(tmp_path)[-1]["step"]
    late = read_checkpoint(tmp_path, steps)
    moved = {k for k in early if np.any(early[k] != late[k])}
    assert {k for k in moved if k.startswith("model/")} == {
        k for k in early if k.startswith("model/head")
    }
    monkeypatch.setattr(ResNet, "embed", embed)
    status, _ = run_here(*arguments, "--mode=evaluate", capsys=capsys)
    report = json.loads((tmp_path / "report/report.json").read_text())
    last = read_metrics(tmp_path)[-1]
    for name in ("loss", "accuracy"):
        assert report[name] == pytest.approx(last[name], rel=1e-4)


def test_embeddings_are_kept_for_the_very_weights_that_made_them(tmp_path):
    with settled("--model=resnet_tiny", "--freeze=backbone"):
        built = main.build(tmp_path)
        model, split = built.trainer.model, built.source.train

        def name_of_embeddings():
            return inputs.fingerprint(split, inputs.backbone_hash(model))

        name = name_of_embeddings()
        model.head.kernel.assign_add(tf.ones_like(model.head.kernel))
        assert name_of_embeddings() == name
        for weight in (model.weights[0], model.non_trainable_weights[-1]):
            kept = tf.identity(weight.value)
            weight.assign(kept + 1)
            assert name_of_embeddings() != name
            weight.assign(kept)
        assert name_of_embeddings() == name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset=digit"], "did you mean digits?"),
        (["--model=resnet_50"], "did you mean resnet50"),
        (["--recipe=imagenet"], "did you mean imagenet2012"),
        (["--schedule=cosin"], "did you mean cosine"),
        (["--augment=shift,flop"], "did you mean flip"),
        (["--mode=evalate"], "did you mean evaluate"),
        (["--batch_size=many"], "--batch_size=many"),
        (["--bach_size=3"], "Did you mean: batch_size"),
        (["--epochs=-1"], "--epochs=-1"),
        (["digits"], "'digits' is not a flag"),
        (["--batch_size=5"], "take 4 or 6"),
        (["--batch_size=1"], "take 2 or"),
        (["--image_size=3"], "take at least 4"),
        (["--workdir=/proc/run"], "--workdir=/proc/run cannot be written"),
        (["--workdir=README.md"], "--workdir=README.md cannot be written"),
        (["--cached_embeddings"], "needs --freeze=backbone"),
        (["--freeze=stage4"], "It takes: none, stem, stage1, stage2, stage3"),
        (["--seed=-1"], "--seed=-1"),
        (["--epochs=nan"], "--epochs=nan is not a number"),
        ([f"--workdir={'x' * 300}"], "cannot be written"),
        (["--weights=none.h5"], "none.h5 is not a file"),
        (["--weights=imagenet"], "has no weights for resnet_tiny"),
        (["--weights=README.md"], "cannot be read as weights"),
        (["--mode=evaluate"], "needs the --workdir of a run"),
        (["--mode=evaluate", "--workdir=tests"], "has no flags.txt"),
        (
            ["--dataset=imagenet2012", "--data_dir=/nowhere"],
            "/nowhere/downloads/manual/ILSVRC2012_img_val.tar",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_clear_line(arguments, expected, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = set(ROOT.glob("runs/*"))
    status, errors = run_here(*arguments, capsys=capsys)
    assert status == 1
    [line] = errors.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert set(ROOT.glob("runs/*")) == runs


@pytest.mark.parametrize(
    "argument",
    [
        "--model=resnet18",
        "--dataset=oxford_iiit_pet",
        "--batch_size=32",
        "--seed=3",
        f"--weights={ROOT / 'README.md'}",
    ],
)
def test_run_is_not_mixed_with_another(finished, capsys, argument):
    workdir = finished[0]
    before = read_metrics(workdir)
    status, errors = run_here(argument, f"--workdir={workdir}", capsys=capsys)
    assert status == 1
    [line] = errors.splitlines()
    assert argument in line
    assert "name another --workdir" in line
    assert read_metrics(workdir) == before


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, capsys):
    flags_of_run = (
        f"--workdir={tmp_path}",
        "--steps=20",
        "--report_every=2",
        "--checkpoint_every=1",
        "--batch_size=8",
        "--warmup_epochs=0.1",
    )
    status, errors = run_here(
        *flags_of_run, "--learning_rate=1e12", capsys=capsys
    )
    assert status == 1
    *_, line = errors.splitlines()
    [step] = re.findall(r"not finite at step (\d+) of 20", line)
    saved = max(
        int(path.stem.removeprefix("ckpt-"))
        for path in (tmp_path / "checkpoints").glob("*.index")
    )
    assert saved < int(step)
    assert f"the checkpoint of step {saved} is kept" in line
    for key, value in read_checkpoint(tmp_path, saved).items():
        assert np.all(np.isfinite(value)), key
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_help_is_no_failure():
    app.define_help_flags()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        settings.parse(["main", "--help"])
    assert ended.value.code == 0


def test_every_flag_has_help():
    for flag in flags.FLAGS.get_key_flags_for_module(settings):
        assert flag.help, flag.name
