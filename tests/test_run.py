"""The Python API of runs."""

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
from train_loop import Run, Settings, UserError, fit, load_classifier
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


def test_settings_configure_the_parts_of_a_run(tmp_path):
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


def test_training_settings_configure_the_trainer(tmp_path):
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
    # Balanced weights of nine cats and three dogs.
    np.testing.assert_allclose(
        trainer.training_loss(labels, logits), plain * [12 / 18, 12 / 6]
    )


def test_warmup_is_at_most_half_of_a_short_run(tmp_path):
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
def test_seed_decides_weights_and_order_but_not_the_global_state(tmp_path):
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
def test_two_runs_in_one_process_are_independent(folder, tmp_path):
    """One run alone, and one while another is built and trained."""
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
    # Only the run's folder is needed, not the images.
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    classifier = load_classifier(trained)
    assert classifier.class_names == ("cat", "dog", "emu")
    assert classifier.preprocessing == expected
    image = tmp_path / "elsewhere/test/cat/0.jpeg"
    [prediction] = classifier(image)
    assert {name for name, _ in prediction} == {"cat", "dog", "emu"}
    assert prediction[0][1] >= prediction[1][1] >= prediction[2][1]
    assert sum(p for _, p in prediction) == pytest.approx(1)
    with PIL.Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    for again in classifier([image, pixels]):
        for (name, p), (expected, q) in zip(again, prediction, strict=True):
            assert (name, p) == (expected, pytest.approx(q, abs=1e-6))


@pytest.mark.slow
def test_metrics_of_a_run_are_arrays(trained):
    run = Run.open(trained)
    history = run.history()
    assert [*history] == ["train", "eval"]
    np.testing.assert_array_equal(history["eval"]["step"], [2, 4])
    assert history["train"]["gradient_norm"].dtype == float
    results = run.evaluate()
    assert history["eval"]["loss"][-1] == pytest.approx(results["loss"])
    best = np.argmax(history["eval"]["accuracy"])
    assert run.best_step == history["eval"]["step"][best]


@pytest.mark.slow
def test_fit_trains_and_returns_the_classifier(folder, tmp_path, small_net):
    given = SMALL.given | {"workdir": tmp_path / "run", "steps": 2}
    classifier = fit(folder, keep_best="loss", **given)
    assert classifier.class_names == ("cat", "dog")
    best = load_classifier(tmp_path / "run", step="best")
    image = np.zeros([9, 9, 3], np.uint8)
    assert classifier.predict_one(image) == best.predict_one(image)
    # Called again, it returns the classifier of the finished run.
    again = fit(folder, keep_best="loss", **given)
    assert again.predict_one(image) == best.predict_one(image)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no flags.txt"),
        (lambda folder: (folder / "flags.txt").touch(), "no checkpoint yet"),
    ],
)
def test_folder_without_a_run_is_an_error_in_one_line(
    tmp_path, prepare, message
):
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
def test_best_checkpoint_depends_on_the_weights_in_use(
    flags, averaged, best, tmp_path
):
    workdir = write_evaluations(tmp_path, flags, steps=[2, 4, 6])
    assert find_checkpoint(workdir, "best", averaged) == best


@pytest.mark.parametrize(
    ("steps", "lines", "message"),
    [
        ([2, 6], 3, "best accuracy at step 4, .* one of 2, 6"),
        ([2, 6], 0, "requires an evaluation .* one of 2, 6"),
    ],
)
def test_unknown_best_checkpoint_is_an_error_in_one_line(
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
def test_resuming_with_other_images_is_an_error(tmp_path):
    """It would evaluate on some training images."""
    folder, workdir = tmp_path / "images", tmp_path / "run"
    write_folder(folder, {"cat": 10, "dog": 10})
    Run.create(settings(folder, workdir, steps=1)).train()
    path = folder / "cat/new.png"
    path.write_bytes(encoded(np.zeros((9, 9, 3), "uint8"), "png"))
    with pytest.raises(UserError, match="must have the images that") as error:
        Run.open(workdir)
    # In the second dataset, the evaluation split is larger by a fifth.
    before, now = "16 for train and 4 for eval", "16 for train and 5 for eval"
    assert f"was {before}, and is now {now}" in str(error.value)
    path.unlink()
    assert Run.open(workdir).trainer.step == 1


@pytest.mark.slow
def test_run_resumes_after_its_images_were_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "elsewhere/new"
    write_folder(old, {"cat/2021": 10, "dog": 10})
    Run.create(settings(old, tmp_path / "run", steps=1)).train()
    alone = Run.create(settings(old, tmp_path / "alone", steps=2))
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(UserError, match="if it was moved, its new path"):
        Run.open(tmp_path / "run", steps=2)
    Run.open(tmp_path / "run", dataset=new, steps=2).train()
    # The new path is saved.
    assert Run.open(tmp_path / "run").settings.dataset == str(new)
    write_folder(tmp_path / "others", {"cat": 10, "dog": 10})
    with pytest.raises(UserError, match="names or labels differ"):
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
def test_name_of_a_new_run_needs_no_shell_quoting(dataset, name):
    assert re.fullmatch(
        rf"runs/{name}-\d{{8}}-\d{{6}}-\d{{6}}", new_workdir(dataset)
    )


@pytest.mark.slow
def test_folder_of_a_run_in_use_is_an_error(folder, tmp_path):
    run = Run.create(settings(folder, tmp_path, steps=1))
    other = Run.create(settings(folder, tmp_path, steps=1))
    in_use = pytest.raises(UserError, match="another process is training here")
    with run.workdir.locked(), in_use:
        other.train()
    late = Run.create(settings(folder, tmp_path, steps=2))
    run.train()
    # The progress of the other run is not lost.
    with pytest.raises(UserError, match="in the meantime"):
        late.train()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"freeze": "backbone"}, {"backbone_lr_factor": 0}], ids=str
)
def test_frozen_backbone_trains_only_the_head(change, tmp_path):
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
        # With a learning rate of 0, statistics still change.
        statistics = {key for key in moved if "moving" in key}
        assert statistics
        moved -= statistics
    assert len(moved) == 2
    assert all("head" in key for key in moved)


@pytest.mark.slow
def test_embeddings_are_computed_once(folder, tmp_path, monkeypatch):
    """The head on embeddings predicts like the whole network."""
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
    # 18 and 6 images; each of two replicas has a part of every batch.
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


def test_hash_of_the_backbone_depends_on_its_weights(tmp_path):
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
def test_changed_images_get_new_embeddings(folder, tmp_path, run, capsys):
    """In a cache, as embeddings, and in the list of broken images."""
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
    # Nothing is computed again without changes.
    Run.open(workdir, steps=3).train()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for number in range(3):
        pixels = np.full((30, 30, 3), 9 + number, "uint8")
        path = folder / f"train/cat/{number}.jpeg"
        path.write_bytes(encoded(pixels, "jpeg"))
    (folder / "train/dog/0.jpeg").write_bytes(b"gone bad")
    capsys.readouterr()
    Run.open(workdir, steps=4).train()
    assert "Skipping 1 broken images of 24" in capsys.readouterr().out
    for path, changed in kept.items():
        assert path.stat().st_mtime_ns > changed, path
    labels = np.load(workdir / "embeddings/train/labels.npy")
    assert len(labels) == 17
    # Half a line, as a kill might have left it.
    (workdir / "bad_images.jsonl").write_text('{"search')
    Run.open(workdir, steps=4)
    assert "Skipping 1 broken images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["torch", "keras"])
def test_run_starts_from_third_party_weights(
    tmp_path, dialect, capsys, monkeypatch
):
    if dialect == "torch":
        source_model = VARIANTS["resnet_tiny"](num_classes=5)
        source_model.build((None, 32, 32, 3))
        # A folder as on the hub; its config has the model's name.
        weights, model = tmp_path, None
        save_safetensors(source_model, tmp_path / "model.safetensors")
        config = json.dumps({"architecture": "resnet_tiny"})
        (tmp_path / "config.json").write_text(config)
        kernel = source_model.stem.convs[0].kernel
    else:
        arguments = VARIANTS["resnet50_keras"].arguments
        monkeypatch.setitem(arguments, "stage_sizes", (1,))
        source_model = resnet.ResNet(
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
        source_model.save_weights(weights)
        kernel = source_model.get_layer("conv1_conv").kernel
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
    assert "new classification head" in out
    assert f"normalization {normalization}" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "is_loaded", "printed"),
    [
        (("cat", "dog", "emu"), True, "its own classification head (same"),
        (("cat", "dog", "owl"), False, "new classification head (the weights"),
        (("a", "b"), False, "new classification head; images"),
    ],
)
def test_head_is_loaded_if_its_classes_are_the_same(
    trained, tmp_path, capsys, names, is_loaded, printed
):
    first = load_classifier(trained)
    loaded = load_weights(first.model, trained)
    assert loaded.preprocessing == first.preprocessing
    write_folder(tmp_path / "ours", dict.fromkeys(names, 8))
    given = settings(tmp_path / "ours", tmp_path / "second")
    drawn = Run.create(given).classifier.model.head.kernel.numpy()
    capsys.readouterr()
    # On two replicas.
    second = Run.create(
        Settings(weights=trained, strategy="mirrored").over(given)
    )
    assert printed in capsys.readouterr().out
    assert second.trainer.step == 0
    model = second.classifier.model
    learned = first.model.head.kernel.numpy()
    np.testing.assert_array_equal(
        model.head.kernel, learned if is_loaded else drawn
    )
    # The whole backbone is that of the run.
    head_paths = [variable.path for variable in model.head.variables]
    for own, other in zip(model.variables, first.model.variables, strict=True):
        if own.path not in head_paths:
            np.testing.assert_array_equal(own, other)


@pytest.mark.slow
def test_head_is_new_if_its_classes_are_unknown(folder, tmp_path, capsys):
    """The same number of classes does not make them the same."""
    source_model = VARIANTS["resnet_tiny"](num_classes=2)
    source_model.build((None, 16, 16, 3))
    path = tmp_path / "model.safetensors"
    save_safetensors(source_model, path)
    for names, is_loaded, printed in (
        (None, False, "new classification head (the weights have classes wi"),
        (["cat", "dog"], True, "its own classification head (same classes)"),
        (["dog", "cat"], False, "new classification head (the weights have o"),
    ):
        config = json.dumps({"label_names": names} if names else {})
        (tmp_path / "config.json").write_text(config)
        given = settings(folder, tmp_path / "run", weights=path)
        run = Run.create(given)
        head = run.classifier.model.head.kernel
        assert np.array_equal(head, source_model.head.kernel) == is_loaded
        assert printed in capsys.readouterr().out


@pytest.mark.slow
def test_frozen_random_weights_print_a_warning(tmp_path, capsys):
    Run.create(Settings(workdir=tmp_path / "plain"))
    assert "random" not in capsys.readouterr().out
    for frozen in ({"frozen_batch_norm": True}, {"freeze": "stem"}):
        given = Settings(workdir=tmp_path / "run", steps=1, **frozen)
        run = Run.create(given)
        lines = capsys.readouterr().out.splitlines()
        [line] = [each for each in lines if "freezes random weights" in each]
        assert line.startswith(f"warning: --{[*frozen][0]}")
    run.train()
    capsys.readouterr()
    # A resumed run does not print the warning again.
    Run.create(given)
    assert "random" not in capsys.readouterr().out


@pytest.mark.slow
def test_pets_use_the_builder_of_tfds(tmp_path, monkeypatch):
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
    # After preparation, the archives are not needed.
    for path in tmp_path.glob("*.gz"):
        path.unlink()
    assert Run.open(tmp_path / "run").evaluate()["loss"] > 0


@pytest.mark.slow
def test_imagenet_uses_the_builder_of_tfds(tmp_path):
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
def test_reports_contain_the_metrics(tmp_path, shown):
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
    # Each of the 360 images counts once.
    correct = records[-1]["accuracy"] * 360
    assert correct == pytest.approx(round(correct), abs=1e-3)


@pytest.mark.slow
def test_nonfinite_loss_keeps_the_last_checkpoint(tmp_path):
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
    with pytest.raises(
        UserError, match="training diverged at step .* not finite"
    ) as error:
        run.train()
    step = int(str(error.value).split("at step ")[1].split()[0])
    saved = max(
        int(path.stem.removeprefix("ckpt-"))
        for path in (tmp_path / "checkpoints").glob("*.index")
    )
    assert saved < step
    assert f"The checkpoint of step {saved} is kept" in str(error.value)
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
    assert "warning: classes 'A' and 'a': differ only in case," in warnings
    assert (
        "warning: eval: 1 images are exact duplicates of training" in warnings
    )
    assert f"{copy} (eval, a)" in warnings
    # Not when it resumes; runs of earlier versions stay readable.
    workdir.path.mkdir()
    workdir.flags.touch()
    workdir.data.write_text(json.dumps(data.contents))
    copy.unlink()
    copy.symlink_to(root / "train/a/1.jpeg")
    assert open_data(given, workdir, ALONE).contents == data.contents
    assert "duplicates" not in capsys.readouterr().out
    workdir.data.unlink()
    with pytest.raises(UserError, match="1 evaluation images are the same"):
        open_data(given, workdir, ALONE)
