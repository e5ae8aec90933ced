"""Runs, as Python sees them."""

import json
import random
import re

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from archives import expect_archives, write_imagenet, write_pets
from keras.src.applications import resnet
from samples import (
    ALONE,
    SMALL,
    encoded,
    read_checkpoint,
    read_metrics,
    write_folder,
)

from resnet_layers import VARIANTS, ResNet, load_weights, save_safetensors
from train_loop import Run, Settings, UserError, load_classifier
from train_loop.builders import phases
from train_loop.builders.data import open_data
from train_loop.builders.model import find_checkpoint
from train_loop.resolve import resolve
from train_loop.run import new_workdir
from train_loop.training.losses import sigmoid_cross_entropy
from train_loop.training.optimizers import LARS
from train_loop.workdir import Workdir, append_json_line

pytestmark = pytest.mark.usefixtures("small_net")


def settings(dataset, workdir, **others):
    return Settings(dataset=dataset, workdir=workdir, **others).over(SMALL)


def test_settings_reach_the_parts_they_speak_of(tmp_path):
    run = Run.create(
        Settings(
            workdir=tmp_path,
            weight_decay=0.003,
            label_smoothing=0.2,
            stochastic_depth=0.3,
            precision="mixed_bfloat16",
            synchronized_batch_norm=True,
            epochs=10,
            warmup_epochs=2,
            learning_rate=0.7,
        )
    )
    assert run.trainer.optimizer.l2 == 0.003
    assert run.trainer.training_loss.keywords == {"label_smoothing": 0.2}
    assert run.trainer.model.compute_dtype == "bfloat16"
    assert run.trainer.model.norm["synchronized"]
    assert run.trainer.model.stochastic_depth == 0.3
    assert run.trainer.strategy.num_replicas_in_sync == 2
    assert run.steps == round(10 * 1437 / 64)
    assert run.cadence[1:5] == (50, 150, 150, False)
    schedule = run.trainer.optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 45, run.steps)]
    assert rates == pytest.approx([0, 0.7, 0], abs=1e-6)


def test_training_settings_reach_the_trainer(tmp_path):
    counts = {"train/cat": 9, "train/dog": 3, "test/cat": 1, "test/dog": 1}
    write_folder(tmp_path / "pets", counts)
    run = Run.create(
        Settings(
            dataset=tmp_path / "pets",
            model="resnet_tiny",
            image_size=8,
            workdir=tmp_path / "run",
            strategy="one_device",
            batch_size=8,
            base_batch_size=4,
            learning_rate=0.3,
            optimizer="lars",
            momentum=0.8,
            schedule="step:0.5:1",
            warmup_epochs=0,
            loss="sigmoid",
            class_weights="balanced",
            label_smoothing=0,
        )
    )
    trainer = run.trainer
    assert isinstance(trainer.optimizer, LARS)
    assert trainer.optimizer.momentum == 0.8
    rates = trainer.optimizer._learning_rate
    # An epoch of the twelve images is one and a half steps.
    assert [float(rates(step)) for step in range(3)] == pytest.approx(
        [0.6, 0.6, 0.3]
    )
    labels, logits = tf.constant([0, 1]), tf.constant([[1.0, -2.0]] * 2)
    plain = sigmoid_cross_entropy(labels, logits)
    np.testing.assert_array_equal(
        trainer.evaluation_loss(labels, logits), plain
    )
    # Of nine cats and three dogs.
    np.testing.assert_allclose(
        trainer.training_loss(labels, logits), plain * [12 / 18, 12 / 6]
    )


def test_short_runs_do_not_warm_up_for_ever(tmp_path):
    run = Run.create(
        Settings(
            workdir=tmp_path,
            strategy="one_device",
            steps=10,
            learning_rate=0.4,
        )
    )
    assert (run.steps, run.trainer.strategy.num_replicas_in_sync) == (10, 1)
    schedule = run.trainer.optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 5, 10)]
    assert rates == pytest.approx([0, 0.4, 0], abs=1e-6)


@pytest.mark.slow
def test_seed_draws_weights_and_order_and_leaves_the_callers_alone(tmp_path):
    kernels, batches = [], []
    state = random.getstate(), np.random.get_state()[1].tobytes()
    for seed in (0, 0, 1):
        run = Run.create(
            Settings(workdir=tmp_path, seed=seed, strategy="one_device")
        )
        kernels.append(np.array(run.classifier.model.head.kernel))
        images, _ = next(iter(run.training_batches()))
        batches.append(images.numpy())
    for values in (kernels, batches):
        np.testing.assert_array_equal(values[0], values[1])
        assert np.any(values[0] != values[2])
    assert state == (random.getstate(), np.random.get_state()[1].tobytes())


@pytest.mark.slow
def test_two_runs_do_not_know_of_each_other(folder, tmp_path):
    """One alone, and one that another is built and trained beside."""
    alone = Run.create(settings(folder, tmp_path / "alone", steps=4))
    alone.train()
    first = Run.create(settings(folder, tmp_path / "first", steps=4))
    second = Run.create(
        settings("digits", tmp_path / "second", steps=2, seed=3, image_size=8)
    )
    second.trainer.train(iter(second.training_batches()), tf.constant(2))
    first.train()
    expected = read_checkpoint(tmp_path / "alone", 4)
    values = read_checkpoint(tmp_path / "first", 4)
    assert values.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(values[key], value, err_msg=key)
    assert first.evaluate() == alone.evaluate()


@pytest.mark.slow
def test_finished_run_classifies_images(trained, tmp_path):
    expected = Run.open(trained).settings.preprocessing
    # From the folder alone: the images may be gone.
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    classifier = load_classifier(trained)
    assert classifier.class_names == ("cat", "dog", "emu")
    assert classifier.preprocessing == expected
    image = tmp_path / "elsewhere/test/cat/0.jpeg"
    [answer] = classifier(image)
    assert {name for name, _ in answer} == {"cat", "dog", "emu"}
    assert answer[0][1] >= answer[1][1] >= answer[2][1]
    assert sum(p for _, p in answer) == pytest.approx(1)
    with PIL.Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    for again in classifier([image, pixels]):
        for (name, p), (expected, q) in zip(again, answer, strict=True):
            assert (name, p) == (expected, pytest.approx(q, abs=1e-6))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "has no flags.txt"),
        (lambda folder: (folder / "flags.txt").touch(), "no checkpoint yet"),
    ],
)
def test_folder_that_is_no_run_is_one_clear_line(tmp_path, prepare, message):
    prepare(tmp_path)
    for function in (Run.open, load_classifier):
        with pytest.raises(UserError, match=message):
            function(tmp_path)


@pytest.mark.parametrize(
    ("flags", "averaged", "best"),
    [
        ({}, True, 4),
        ({"weight_average": "ema"}, True, 6),
        ({"weight_average": "ema"}, False, 4),
        ({"weight_average": "ema", "keep_best": "loss"}, True, 2),
    ],
)
def test_best_checkpoint_is_that_of_the_weights_taken(
    flags, averaged, best, tmp_path
):
    workdir = write_evaluations(tmp_path, flags, steps=[2, 4, 6])
    assert find_checkpoint(workdir, "best", averaged) == best


@pytest.mark.parametrize(
    ("steps", "lines", "message"),
    [
        ([2, 6], 3, "best .accuracy. at step 4, whose .* of step 2, 6 .*=STEP"),
        ([2, 6], 0, "no record of an evaluation .* of step 2, 6 .*=STEP"),
    ],
)
def test_best_checkpoint_that_is_not_known_is_one_clear_line(
    steps, lines, message, tmp_path
):
    workdir = write_evaluations(tmp_path, {}, steps, lines)
    with pytest.raises(UserError, match=message) as error:
        find_checkpoint(workdir, "best")
    assert "\n" not in str(error.value)


def write_evaluations(folder, flags, steps, lines=3):
    """Returns a `Workdir` with the records of a run, of steps 2, 4 and 6."""
    workdir = Workdir(folder)
    Settings(seed=1, **flags).write(workdir.flags)
    workdir.checkpoints.mkdir()
    for step in steps:
        (workdir.checkpoints / f"ckpt-{step}.index").touch()
    numbers = [(2, 0.1, 0.1, 0.1), (4, 0.2, 0.9, 0.1), (6, 0.3, 0.5, 0.8)]
    names = ("step", "loss", "accuracy", "ema_accuracy")
    for row in numbers[:lines]:
        record = {"split": "eval", **dict(zip(names, row, strict=True))}
        append_json_line(workdir.metrics, record)
    return workdir


@pytest.mark.slow
def test_run_refuses_images_that_it_did_not_begin_with(tmp_path):
    """It would hold out some that it was trained on."""
    folder, workdir = tmp_path / "images", tmp_path / "run"
    write_folder(folder, {"cat": 10, "dog": 10})
    Run.create(settings(folder, workdir, steps=1)).train()
    path = folder / "cat/new.png"
    path.write_bytes(encoded(np.zeros((9, 9, 3), "uint8"), "png"))
    with pytest.raises(UserError, match="are not those that") as error:
        Run.open(workdir)
    # Of the second, a fifth more is held out.
    assert "16 for train and 4 for eval, and are 16 for train and 5" in str(
        error.value
    )
    path.unlink()
    assert Run.open(workdir).trainer.step == 1


@pytest.mark.slow
def test_run_goes_on_where_its_images_were_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "elsewhere/new"
    write_folder(old, {"cat/2021": 10, "dog": 10})
    Run.create(settings(old, tmp_path / "run", steps=1)).train()
    alone = Run.create(settings(old, tmp_path / "alone", steps=2))
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(UserError, match="name its new place with --dataset"):
        Run.open(tmp_path / "run", steps=2)
    Run.open(tmp_path / "run", dataset=new, steps=2).train()
    # And does not have to be told again.
    assert Run.open(tmp_path / "run").settings.dataset == str(new)
    write_folder(tmp_path / "others", {"cat": 10, "dog": 10})
    with pytest.raises(UserError, match="names or labels are others"):
        Run.open(tmp_path / "run", dataset=tmp_path / "others")
    record = json.loads((tmp_path / "run/data.json").read_text())
    assert record == alone.data.contents


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("/data/photos [v2]", "photos-v2"),
        ("--x=y", "x-y"),
        ("a'b;c$(d)\n", "a-b-c-d"),
        ("été/日本.csv", "日本"),
        ("eurosat/rgb", "rgb"),
        ("cifar10:3.0.2", "cifar10-3.0"),
        ("[*]", "images"),
        ("x" * 250, "x" * 50),
    ],
)
def test_name_of_a_new_run_means_nothing_to_a_shell(dataset, name):
    assert re.fullmatch(
        rf"runs/{name}-\d{{8}}-\d{{6}}-\d{{6}}", new_workdir(dataset)
    )


@pytest.mark.slow
def test_folder_of_a_run_in_use_is_refused(folder, tmp_path):
    run = Run.create(settings(folder, tmp_path, steps=1))
    other = Run.create(settings(folder, tmp_path, steps=1))
    in_use = pytest.raises(UserError, match="another process is training here")
    with run.workdir.locked(), in_use:
        other.train()
    late = Run.create(settings(folder, tmp_path, steps=2))
    run.train()
    # What the other one has learned meanwhile is not lost.
    with pytest.raises(UserError, match="in the meantime"):
        late.train()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"freeze": "backbone"}, {"backbone_lr_factor": 0}], ids=str
)
def test_classifier_alone_is_trained(change, tmp_path):
    run = Run.create(
        Settings(
            workdir=tmp_path,
            steps=4,
            checkpoint_every=2,
            cached_embeddings=False,
            **change,
        )
    )
    run.train()
    early, late = read_checkpoint(tmp_path, 2), read_checkpoint(tmp_path, 4)
    moved = {
        key
        for key in early
        if key.startswith("model/") and np.any(early[key] != late[key])
    }
    if "backbone_lr_factor" in change:
        # Statistics go on moving where only the rate is zero.
        statistics = {key for key in moved if "moving" in key}
        assert statistics
        moved -= statistics
    assert len(moved) == 2
    assert all("head" in key for key in moved)


@pytest.mark.slow
def test_embeddings_are_made_once(folder, tmp_path, monkeypatch):
    """And lead to what the whole network says."""
    calls = []
    embed = ResNet.embed

    def counted(self, inputs, training=None):
        tf.py_function(lambda: calls.append(1), [], [])
        return embed(self, inputs, training=training)

    monkeypatch.setattr(ResNet, "embed", counted)
    workdir = tmp_path / "run"
    given = settings(
        folder,
        workdir,
        strategy="mirrored",
        freeze="backbone",
        loss="sigmoid",
    )
    Run.create(Settings(epochs=1).over(given)).train()
    # 18 and 6 images, on each of two replicas a part of every batch.
    assert len(calls) == (3 + 1) * 2
    early = read_checkpoint(workdir, 3)
    calls.clear()
    run = Run.open(workdir, epochs=2)
    run.train()
    assert not calls
    monkeypatch.setattr(ResNet, "embed", embed)
    late = read_checkpoint(workdir, run.steps)
    moved = {k for k in early if np.any(early[k] != late[k])}
    assert {k for k in moved if k.startswith("model/")} == {
        k for k in early if k.startswith("model/head")
    }
    measured, last = run.evaluate(), read_metrics(workdir)[-1]
    for name in ("loss", "accuracy"):
        assert measured[name] == pytest.approx(last[name], rel=1e-4)


def test_backbone_is_known_by_its_weights(tmp_path):
    model = Run.create(Settings(workdir=tmp_path)).classifier.model
    name = phases.backbone_hash(model)
    model.head.kernel.assign_add(tf.ones_like(model.head.kernel))
    assert phases.backbone_hash(model) == name
    for weight in (model.weights[0], model.non_trainable_weights[-1]):
        kept = tf.identity(weight.value)
        weight.assign(kept + 1)
        assert phases.backbone_hash(model) != name
        weight.assign(kept)
    assert phases.backbone_hash(model) == name


@pytest.mark.slow
def test_changed_images_are_not_taken_for_those_that_were_kept(
    folder, tmp_path, run, capsys
):
    """Under the same names: in a cache, as embeddings, as broken ones."""
    workdir = tmp_path / "run"
    given = settings(
        folder,
        workdir,
        freeze="backbone",
        cache="disk",
        skip_bad_images=True,
        steps=2,
    )
    Run.create(given).train()
    kept = {
        path: path.stat().st_mtime_ns
        for path in (*workdir.glob("*/*/*.*"), workdir / "bad_images.jsonl")
        if "checkpoints" not in path.parts
    }
    assert {path.parts[-3] for path in kept} >= {"cache", "embeddings"}
    # Nothing is made again where nothing has changed.
    Run.open(workdir, steps=3).train()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for number in range(3):
        pixels = np.full((30, 30, 3), 9 + number, "uint8")
        path = folder / f"train/cat/{number}.jpeg"
        path.write_bytes(encoded(pixels, "jpeg"))
    (folder / "train/dog/0.jpeg").write_bytes(b"gone bad")
    capsys.readouterr()
    Run.open(workdir, steps=4).train()
    assert "Leaving out 1 broken images of 24" in capsys.readouterr().out
    for path, changed in kept.items():
        assert path.stat().st_mtime_ns > changed, path
    labels = np.load(workdir / "embeddings/train/labels.npy")
    assert len(labels) == 17
    # Half a line, as a kill might have left it.
    (workdir / "bad_images.jsonl").write_text('{"search')
    Run.open(workdir, steps=4)
    assert "Leaving out 1 broken images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["torch", "keras"])
def test_run_starts_from_weights_of_others(
    tmp_path, dialect, capsys, monkeypatch
):
    if dialect == "torch":
        theirs = VARIANTS["resnet_tiny"](num_classes=5)
        theirs.build((None, 32, 32, 3))
        # The folder, as the hub has it; its config names the model.
        weights, model = tmp_path, None
        save_safetensors(theirs, tmp_path / "model.safetensors")
        config = json.dumps({"architecture": "resnet_tiny"})
        (tmp_path / "config.json").write_text(config)
        kernel = theirs.stem.convs[0].kernel
    else:
        arguments = VARIANTS["resnet50_keras"].arguments
        monkeypatch.setitem(arguments, "stage_sizes", (1,))
        theirs = resnet.ResNet(
            lambda x: resnet.stack_residual_blocks_v1(
                x, 64, 1, 1, name="conv2"
            ),
            preact=False,
            use_bias=True,
            weights=None,
            classes=5,
            input_shape=(32, 32, 3),
        )
        weights, model = tmp_path / "model.weights.h5", "resnet50_keras"
        theirs.save_weights(weights)
        kernel = theirs.get_layer("conv1_conv").kernel
    run = Run.create(
        Settings(
            workdir=tmp_path / "run",
            model=model,
            weights=weights,
            image_size=32,
            batch_size=8,
        )
    )
    np.testing.assert_array_equal(
        run.classifier.model.stem.convs[0].kernel, kernel
    )
    normalization = {"torch": "imagenet", "keras": "caffe"}[dialect]
    assert run.settings.texts()["normalization"] == normalization
    out = capsys.readouterr().out
    assert "with a new classifier" in out
    assert f"normalised as {normalization}" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "is_taken", "told"),
    [
        (("cat", "dog", "emu"), True, "with its classifier, of the same class"),
        (("cat", "dog", "owl"), False, "with a new classifier: that of the we"),
        (("a", "b"), False, "with a new classifier;"),
    ],
)
def test_classifier_comes_along_where_its_classes_are_the_same(
    trained, tmp_path, capsys, ours, is_taken, told
):
    first = load_classifier(trained)
    loaded = load_weights(first.model, trained)
    assert loaded.preprocessing == first.preprocessing
    write_folder(tmp_path / "ours", dict.fromkeys(ours, 8))
    given = settings(tmp_path / "ours", tmp_path / "second")
    drawn = Run.create(given).classifier.model.head.kernel.numpy()
    capsys.readouterr()
    # Over two replicas.
    second = Run.create(
        Settings(weights=trained, strategy="mirrored").over(given)
    )
    assert told in capsys.readouterr().out
    assert second.trainer.step == 0
    model = second.classifier.model
    learned = first.model.head.kernel.numpy()
    np.testing.assert_array_equal(
        model.head.kernel, learned if is_taken else drawn
    )
    # The backbone is the run's, all of it.
    of_head = [variable.path for variable in model.head.variables]
    for own, other in zip(model.variables, first.model.variables, strict=True):
        if own.path not in of_head:
            np.testing.assert_array_equal(own, other)


@pytest.mark.slow
def test_classifier_of_unknown_classes_is_taken_with_a_word(
    folder, tmp_path, capsys
):
    theirs = VARIANTS["resnet_tiny"](num_classes=2)
    theirs.build((None, 16, 16, 3))
    path = tmp_path / "model.safetensors"
    save_safetensors(theirs, path)
    for names, is_taken, told in (
        (None, True, "of as many classes (2); which ones they are it does not"),
        (["cat", "dog"], True, "with its classifier, of the same classes"),
        (["dog", "cat"], False, "with a new classifier: that of the weights"),
    ):
        config = json.dumps({"label_names": names} if names else {})
        (tmp_path / "config.json").write_text(config)
        given = settings(folder, tmp_path / "run", weights=path)
        run = Run.create(given)
        head = run.classifier.model.head.kernel
        assert np.array_equal(head, theirs.head.kernel) == is_taken
        assert told in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_frozen_and_random_is_warned_of(tmp_path, capsys):
    Run.create(Settings(workdir=tmp_path / "plain"))
    assert "random" not in capsys.readouterr().out
    for frozen in ({"frozen_batch_norm": True}, {"freeze": "stem"}):
        given = Settings(workdir=tmp_path / "run", steps=1, **frozen)
        run = Run.create(given)
        lines = capsys.readouterr().out.splitlines()
        [line] = [each for each in lines if "what is frozen is random" in each]
        assert line.startswith(f"warning: --{[*frozen][0]}")
    run.train()
    capsys.readouterr()
    # What a run goes on with was said when it began.
    Run.create(given)
    assert "random" not in capsys.readouterr().out


@pytest.mark.slow
def test_pets_come_from_tfds_own_builder(tmp_path, monkeypatch):
    write_pets(tmp_path)
    expect_archives(tmp_path, monkeypatch.setattr)
    given = Settings(
        dataset="oxford_iiit_pet",
        data_dir=tmp_path / "data",
        manual_dir=tmp_path,
        workdir=tmp_path / "run",
        model="resnet_tiny",
        image_size=32,
        batch_size=4,
        steps=2,
    )
    run = Run.create(given)
    assert (run.data.train.num_examples, len(run.data.class_names)) == (9, 37)
    run.train()
    # Prepared now: the archives are not needed any more.
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    assert Run.open(tmp_path / "run").evaluate()["loss"] > 0


@pytest.mark.slow
def test_imagenet_comes_from_tfds_own_builder(tmp_path):
    manual_dir = tmp_path / "data/downloads/manual"
    manual_dir.mkdir(parents=True)
    write_imagenet(manual_dir)
    run = Run.create(
        Settings(
            dataset="imagenet2012",
            data_dir=tmp_path / "data",
            workdir=tmp_path / "run",
            model="resnet_tiny",
            image_size=32,
            batch_size=4,
            steps=2,
        )
    )
    assert run.data.train.num_examples == 6
    assert run.data.evaluation.num_examples == 5
    assert len(run.data.class_names) == 1000
    images, labels = next(iter(run.training_batches()))
    assert images.values[0].shape == (2, 32, 32, 3)
    assert set(labels.values[0].numpy()) <= {0, 1}


@pytest.mark.slow
def test_reports_say_what_they_measured(tmp_path, shown):
    given = Settings(image_size=16, steps=3, report_every=2)
    run = Run.create(Settings(workdir=tmp_path).over(given))
    run.train()
    records = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(r["step"], r["split"]) for r in records] == [
        (2, "train"),
        (3, "train"),
        (3, "eval"),
    ]
    assert records[0].keys() == {
        "step",
        "split",
        "loss",
        "accuracy",
        "gradient_norm",
        "learning_rate",
        "images_per_second",
        "input_wait",
        "epoch",
    }
    assert records[-1].keys() == {"step", "split", "loss", "accuracy", "epoch"}
    # Every one of the 360 images counted once.
    correct = records[-1]["accuracy"] * 360
    assert correct == pytest.approx(round(correct), abs=1e-3)


@pytest.mark.slow
def test_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    run = Run.create(
        Settings(
            workdir=tmp_path,
            steps=20,
            report_every=2,
            checkpoint_every=1,
            batch_size=8,
            warmup_epochs=0.1,
            learning_rate=1e12,
        )
    )
    with pytest.raises(UserError, match="not finite at step") as error:
        run.train()
    step = int(str(error.value).split("at step ")[1].split()[0])
    saved = max(
        int(path.stem.removeprefix("ckpt-"))
        for path in (tmp_path / "checkpoints").glob("*.index")
    )
    assert saved < step
    assert f"the checkpoint of step {saved} is kept" in str(error.value)
    for key, value in read_checkpoint(tmp_path, saved).items():
        assert np.all(np.isfinite(value)), key
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_new_run_warns_of_duplicates_and_spellings(tmp_path, capsys):
    root, workdir = tmp_path / "photos", Workdir(tmp_path / "run")
    write_folder(root, {f"{s}/{c}": 2 for s in ("train", "val") for c in "aA"})
    copy = root / "val/a/0.jpeg"
    copy.write_bytes((root / "train/a/1.jpeg").read_bytes())
    given = resolve(settings(root, workdir.path))
    data = open_data(given, workdir, ALONE)
    warnings = capsys.readouterr().out
    assert "warning: classes 'A' and 'a' differ in case only" in warnings
    assert (
        "warning: 1 images to evaluate on are exact duplicates of" in warnings
    )
    assert f"{copy} (eval, a)" in warnings
    # Not each time that it resumes, and a run of before stays readable.
    workdir.path.mkdir()
    workdir.flags.touch()
    workdir.data.write_text(json.dumps(data.contents))
    copy.unlink()
    copy.symlink_to(root / "train/a/1.jpeg")
    assert open_data(given, workdir, ALONE).contents == data.contents
    assert "duplicates" not in capsys.readouterr().out
    workdir.data.unlink()
    with pytest.raises(UserError, match="1 images to evaluate on are images"):
        open_data(given, workdir, ALONE)
