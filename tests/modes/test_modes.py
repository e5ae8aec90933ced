"""The modes, on the bundled digits and on folders of images."""

import json
import re
import types

import pytest
import tensorflow as tf
from samples import (
    SMALL_FLAGS,
    broken_files,
    read_metrics,
    write_folder,
    write_hand_signs,
)

from train_loop import Run, Settings, UserError
from train_loop.data.datasets import choose_splits, open_dataset
from train_loop.evaluation import chart_style
from train_loop.modes import data as data_mode
from train_loop.modes.train import final_table
from train_loop.resolve import resolve
from train_loop.workdir import Workdir, read_json_lines

pytestmark = pytest.mark.usefixtures("small_net")


@pytest.mark.slow
def test_train_prints_a_summary_and_where_files_are(folder, workdir, run):
    status, out, err = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--epochs=2",
        *SMALL_FLAGS,
    )
    assert status == 0, err
    first, second, third, *_ = out.splitlines()
    assert "18 training images, 6 evaluation images, 2 classes" in first
    assert "6 steps with batch size 6 on 1 replica(s)" in second
    assert third.startswith("Recipe images")
    table, *_, last = out.splitlines()[-5:]
    assert table.split() == ["split", "step", "loss", "accuracy", "images"]
    assert f"tensorboard --logdir={workdir}" in last
    # Progress bars are for terminals only.
    assert "step/s" not in err
    records = read_metrics(workdir)
    assert records[-1]["step"] == 6
    # Extends the run.
    status, out, _ = run(f"--workdir={workdir}", "--epochs=3")
    assert status == 0
    assert "from step 6" in out
    assert read_metrics(workdir)[-1]["step"] == 9
    # The final model is evaluated.
    status, out, _ = run("--mode=evaluate", f"--workdir={workdir}")
    assert status == 0
    report = json.loads((workdir / "report/report.json").read_text())
    last = read_metrics(workdir)[-1]
    assert (report["step"], report["examples"]) == (9, 6)
    for name in ("loss", "accuracy"):
        assert report[name] == pytest.approx(last[name], rel=1e-5)
    assert "Accuracy" in out
    status, out, _ = run(f"--workdir={workdir}")
    assert status == 0
    assert "The run is already finished, at step 9 of 9." in out


@pytest.mark.slow
def test_run_without_evaluation_split_trains(tmp_path, workdir, run):
    status, out, err = train_on_everything(tmp_path, workdir, run)
    assert status == 0, err
    assert "without evaluation (--validation_fraction=0).\n" in out
    assert "10 training images, no evaluation images" in out
    splits = [record["split"] for record in read_metrics(workdir)]
    assert splits == ["train", "train"]
    status, _, err = run("--mode=evaluate", f"--workdir={workdir}")
    assert status == 1
    [line] = err.splitlines()
    assert "has no evaluation split" in line
    evaluate = ("--mode=evaluate", "--eval_split=train")
    assert run(*evaluate, f"--workdir={workdir}").status == 0
    with pytest.raises(UserError, match="has no evaluation split"):
        Run.open(workdir).evaluate()


@pytest.mark.slow
def test_run_without_evaluation_split_resumes(tmp_path, workdir, run):
    others = ("--freeze=backbone", "--cache=disk", "--skip_bad_images")
    assert train_on_everything(tmp_path, workdir, run, *others).status == 0
    assert run(f"--workdir={workdir}", "--steps=3").status == 0
    splits = [record["split"] for record in read_metrics(workdir)]
    assert splits == ["train"] * 3


def train_on_everything(tmp_path, workdir, run, *others):
    write_folder(tmp_path / "images", {"cat": 5, "dog": 5})
    return run(
        f"--dataset={tmp_path / 'images'}",
        f"--workdir={workdir}",
        "--validation_fraction=0",
        "--steps=2",
        *SMALL_FLAGS,
        *others,
    )


@pytest.mark.parametrize("place", ["images", "images/new", "link/train/run"])
@pytest.mark.parametrize("mode", ["train", "data"])
def test_workdir_inside_the_dataset_is_an_error_and_writes_nothing(
    folder, place, mode, run
):
    """Its checkpoints and event files would count as classes."""
    (folder.parent / "link").symlink_to(folder)
    before = sorted(folder.rglob("*"))
    status, _, err = run(
        f"--mode={mode}",
        f"--dataset={folder}",
        f"--workdir={folder.parent / place}",
        *SMALL_FLAGS,
    )
    assert status == 1
    [line] = err.splitlines()
    assert "must be outside of --dataset=" in line
    assert sorted(folder.rglob("*")) == before


def test_default_workdir_inside_the_dataset_is_an_error(
    folder, run, monkeypatch
):
    monkeypatch.chdir(folder)
    status, _, err = run("--dataset=.", *SMALL_FLAGS)
    assert status == 1
    assert "Pass another --workdir." in err
    assert not (folder / "runs").exists()


def test_mistyped_workdir_is_an_error_in_one_line(workdir, run):
    for mode in ("train", "data"):
        status, _, err = run(f"--mode={mode}", f"--workdir={workdir}")
        assert status == 1
        [line] = err.splitlines()
        assert "not an existing run" in line
    assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--batch_size=200", "--epochs=2"], "make 0.18 steps"),
        (["--epochs=0"], "make 0 steps"),
        (["--steps=0"], "--steps=0"),
    ],
)
def test_run_without_a_step_is_an_error(folder, workdir, given, expected, run):
    status, out, err = run(
        f"--dataset={folder}", f"--workdir={workdir}", *SMALL_FLAGS, *given
    )
    assert status == 1
    [line] = err.splitlines()
    assert expected in line
    assert "already finished" not in out
    assert not workdir.exists()


@pytest.mark.slow
def test_hand_signs_are_trained_on(tmp_path, workdir, run):
    write_hand_signs(tmp_path)
    status, out, err = run(
        f"--dataset={tmp_path / 'train_signs.h5'}",
        f"--workdir={workdir}",
        "--steps=2",
        *SMALL_FLAGS,
    )
    assert status == 0, err
    assert "12 training images, 6 evaluation images, 6 classes" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Pass the --workdir of a run"),
        (["--workdir=tests"], "no flags.txt"),
    ],
)
def test_evaluate_requires_a_run(
    arguments, expected, run, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    status, _, err = run("--mode=evaluate", *arguments)
    assert status == 1
    [line] = err.splitlines()
    assert expected in line


@pytest.mark.slow
def test_changed_settings_are_printed_and_recorded(trained, run):
    status, out, err = run(
        f"--workdir={trained}", "--epochs=2", "--learning_rate=0.001"
    )
    assert status == 0, err
    [line] = [line for line in out.splitlines() if "Changed settings" in line]
    assert "--learning_rate is 0.001 (was 0.05)" in line
    assert "--steps is not set (was 4)" in line
    [record] = read_json_lines(trained / "history.jsonl")
    assert record["step"] == 4
    assert record["changes"]["learning_rate"] == ["0.05", "0.001"]
    # Fewer steps than trained: the settings of the run do not change.
    flags = (trained / "flags.txt").read_text()
    status, _, err = run(f"--workdir={trained}", "--steps=1")
    assert status == 1
    assert "has already trained 6 steps, more than the 1 steps requested" in err
    assert err.count("\n") == 1
    assert (trained / "flags.txt").read_text() == flags
    status, out, _ = run(f"--workdir={trained}")
    assert status == 0
    assert "Changed settings" not in out
    assert len(read_json_lines(trained / "history.jsonl")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "total"),
    [("resnet18", 224, "11,689,512"), ("resnet20", 32, "269,722")],
)
def test_summary_uses_the_image_size_of_the_model(run, model, size, total):
    status, out, _ = run("--mode=summary", f"--model={model}")
    assert status == 0
    assert f" {size} x {size}, " in out
    assert re.search(rf"total +\d+ +{total} ", out)


def test_summary_of_a_run_has_its_model_size_and_classes(
    run, tmp_path, monkeypatch
):
    resolve(Settings(image_size=16)).write(tmp_path / "flags.txt")
    contents = {"class_names": ["cat", "dog"], "splits": {}}
    (tmp_path / "data.json").write_text(json.dumps(contents))
    with monkeypatch.context() as patch:
        # Nothing is written: the folder may be read-only.
        patch.setattr(Workdir, "check_writable", None)
        status, out, _ = run("--mode=summary", f"--workdir={tmp_path}")
    assert status == 0
    assert "resnet_tiny, 2 classes, 16 x 16" in out
    status, _, err = run("--mode=summary", f"--workdir={tmp_path}/mistyped")
    assert status == 1
    assert "mistyped: not an existing run" in err


@pytest.fixture
def drawn(monkeypatch):
    """Returns the titles of the drawn grids, with their labels."""
    titles = {}

    def note(path, groups):
        titles.update({title: labels for title, (_, labels) in groups.items()})

    monkeypatch.setattr(data_mode, "write_image_grid", note)
    return titles


@pytest.mark.slow
def test_data_counts_and_draws(folder, workdir, run, monkeypatch):
    arguments = (
        "--mode=data",
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--image_size=16",
        "--augment=random_resized_crop:0.5,mixup",
    )
    status, out, err = run(*arguments)
    assert status == 0, err
    assert re.search(r"cat +9 +3\n", out)
    image = tf.io.decode_png((workdir / "pictures.png").read_bytes())
    assert min(image.shape[:2]) > 500
    monkeypatch.setattr(data_mode, "write_image_grid", lambda *_: None)
    (folder / "train/owl").mkdir()
    status, out, err = run(*arguments)
    assert status == 0
    assert re.search("train/owl, .*test/owl: no images found.", out)
    assert "warning: train: owl has 0 images" in out


@pytest.mark.slow
def test_many_classes_are_counted_in_a_file(tmp_path, workdir, drawn, run):
    for number in range(40):
        for split in ("train", "test"):
            write_folder(tmp_path / "images", {f"{split}/c{number:03}": 1})
    for number in range(12):
        (tmp_path / f"images/train/empty{number}").mkdir()
    # It would clear the screen, and be a formula in a spreadsheet.
    (tmp_path / "images/train/=A1\x1b[2J").mkdir()
    status, out, err = run(
        "--mode=data",
        f"--dataset={tmp_path / 'images'}",
        f"--workdir={workdir}",
        *SMALL_FLAGS,
    )
    assert status == 0, err
    assert len(out.splitlines()) < 24
    assert "train: smallest c000 (1), c001 (1)" in out
    assert r"; 13 empty: =A1\x1b[2J, empty0, empty1" in out
    assert "\x1b" not in out
    assert (
        f"The counts of all classes are in {workdir / 'class_counts.csv'}."
        in out
    )
    rows = (workdir / "class_counts.csv").read_text().splitlines()
    assert rows[:3] == [
        "class,train,eval",
        r"'=A1\x1b[2J,0,0",
        "c000,1,1",
    ]
    assert len(rows) == 54


@pytest.mark.slow
def test_class_names_without_a_font_are_drawn_as_numbers(
    tmp_path, workdir, drawn, run, monkeypatch
):
    ascii_only = frozenset(range(128))
    monkeypatch.setattr(chart_style, "_letters", lambda: ascii_only)
    write_folder(tmp_path / "images", {"cat": 5, "猫": 5})
    status, out, err = run(
        "--mode=data",
        f"--dataset={tmp_path / 'images'}",
        f"--workdir={workdir}",
        *SMALL_FLAGS,
    )
    assert (status, err) == (0, "")
    assert "no installed font has their letters: #1 for 猫." in out
    assert {*drawn["Training"]} == {"cat", "#1"}


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_data_lists_broken_images_and_draws_the_others(
    folder, workdir, drawn, skip, run
):
    for number, (name, content) in enumerate(broken_files().items()):
        part = ("train/cat", "train/dog", "test/dog")[number % 3]
        (folder / part / name).write_bytes(content)
    status, out, err = run(
        "--mode=data",
        f"--dataset={folder}",
        f"--workdir={workdir}",
        f"--skip_bad_images={skip}",
        *SMALL_FLAGS,
    )
    named = dict(re.findall(r"broken: .*/(.*?): (.*)\n", out))
    assert sorted(named) == sorted(broken_files())
    assert all(named.values())
    assert len(drawn["Training"]) == 16
    assert sorted(drawn["Evaluation"]) == 3 * ["cat"] + 3 * ["dog"]
    if skip:
        assert (status, err) == (0, "")
        assert "Skipping 7 broken images of 31.\n" in out
        # Only the remaining images are counted.
        assert re.search(r"dog +9 +3\n", out)
    else:
        assert status == 1
        [line] = err.splitlines()
        assert ": 7 images cannot be decoded. Fix" in line
        assert "--skip_bad_images" in line
        # All but the empty file, which is not an image.
        assert re.search(r"cat +11 +3\ndog +11 +5\n", out)


def test_data_reports_duplicates(tmp_path, capsys, monkeypatch):
    for place in ("train/a/1", "train/a/2", "train/b/3", "test/a/4"):
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" if place[-1] in "14" else b"y")
    data = choose_splits(open_dataset(str(tmp_path)))
    path = tmp_path / "duplicates.csv"
    data_mode.print_duplicates(data, path)
    between_splits, between_classes = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"duplicates between splits: .*1.png \(train, a\) = .*4.png .eval, a.",
        between_splits,
    )
    assert between_classes.startswith("duplicates between classes: ")
    assert not path.exists()
    monkeypatch.setattr(data_mode, "MANY", 1)
    monkeypatch.setattr(data_mode.check, "MAX_CLASSES", 0)
    data_mode.print_duplicates(data, path)
    assert capsys.readouterr().out.splitlines() == [
        "duplicates between splits: 1 other groups",
        "duplicates between classes: 1 other groups",
        f"All duplicates are listed in {path}.",
    ]
    head, *rows = path.read_text().splitlines()
    assert head == "group,image,split,class"
    assert f"0,{tmp_path / 'train/a/1.png'},train,a" in rows
    assert len(rows) == 4


@pytest.mark.slow
def test_data_draws_nothing_of_a_split_that_is_all_broken(
    folder, workdir, drawn, run
):
    arguments = (f"--dataset={folder}", f"--workdir={workdir}", *SMALL_FLAGS)
    for path in folder.glob("test/*/*"):
        path.write_bytes(b"not an image")
    status, _, err = run("--mode=data", *arguments)
    assert status == 1
    assert ": 6 images cannot be decoded. Fix" in err
    assert list(drawn) == ["Training"]
    for mode in ("data", "train"):
        status, _, err = run(
            f"--mode={mode}", "--skip_bad_images", "--steps=1", *arguments
        )
        assert status == 1
        assert "no image of the eval split can be decoded. Fix" in err
    # Without images, nothing is drawn.
    drawn.clear()
    for path in folder.glob("train/*/*"):
        path.write_bytes(b"not an image")
    status, out, err = run("--mode=data", *arguments)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert out.count("broken: ") == 24
    assert not drawn


def test_final_training_metrics_are_means_over_an_epoch(tmp_path):
    """Not only of the last batch, and with the number of images."""
    reports = {50: (1.0, 0.5), 84: (0.4, 0.8), 85: (3.0, 0.0)}
    records = [
        {"step": step, "split": "train", "loss": loss, "accuracy": accuracy}
        for step, (loss, accuracy) in reports.items()
    ]
    records.append({"step": 85, "split": "eval", "loss": 1, "accuracy": 0.75})
    workdir = Workdir.of(tmp_path)
    workdir.metrics.write_text("\n".join(map(json.dumps, records)))
    splits = {
        split: types.SimpleNamespace(num_examples=images)
        for split, images in (("train", 538), ("eval", 60))
    }
    update = types.SimpleNamespace(average=None)
    run = types.SimpleNamespace(
        workdir=workdir,
        batch_size=32,
        data=types.SimpleNamespace(splits=splits),
        trainer=types.SimpleNamespace(update=update),
    )
    assert [line.split() for line in final_table(run).splitlines()] == [
        ["split", "step", "loss", "accuracy", "images"],
        # 34 steps and the last one.
        ["train", "85", "0.4743", "77.71%", "1,120"],
        ["eval", "85", "1.0000", "75.00%", "60"],
    ]
