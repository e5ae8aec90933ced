"""The modes `evaluate` and `compare`."""

import csv
import json
import re
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from samples import SMALL, read_metrics, write_folder

from resnet_layers import Preprocessing
from train_loop import Run, Settings, compare, evaluate, load_classifier
from train_loop.benchmark import model_costs
from train_loop.builders import evaluation
from train_loop.builders.evaluation import Evaluator
from train_loop.data.split import Dataset
from train_loop.errors import UserError
from train_loop.evaluation import report
from train_loop.evaluation.metrics import METRICS
from train_loop.evaluation.predictions import TEST_TIME_AUGMENTATIONS
from train_loop.evaluation.report import report_folder
from train_loop.resolve import resolve
from train_loop.settings import to_text

pytestmark = pytest.mark.usefixtures("small_net", "no_charts")


@pytest.fixture
def no_charts(monkeypatch):
    """Skips the slow charts of reports, which test_modes.py covers."""
    monkeypatch.setattr(report, "write_charts", lambda *_: [])


def train(images, workdir):
    """Returns the folder of a run of a single step."""
    settings = Settings(dataset=images, workdir=workdir, steps=1)
    Run.create(settings.over(SMALL)).train()
    return workdir


def report_of(workdir, name="report"):
    return json.loads((workdir / name / "report.json").read_text())


def states(folder):
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "report" not in str(path.relative_to(folder))
    }


@pytest.mark.slow
def test_report_equals_the_last_evaluation_of_the_run(trained, run):
    before = states(trained)
    status, out, err = run("--mode=evaluate", f"--workdir={trained}")
    assert status == 0, err
    report, last = report_of(trained), read_metrics(trained)[-1]
    assert (report["step"], report["examples"]) == (4, 9)
    for name in ("loss", "accuracy"):
        assert report[name] == pytest.approx(last[name], rel=1e-5)
    assert set(METRICS) == set(report["intervals"])
    assert "Mean ROC-AUC" in out
    assert out.splitlines()[-1].endswith("report/report.html.")
    assert states(trained) == before
    with (trained / "report/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows].count("cat") == 4
    # The predictions are those of the classifier for each file.
    [[(name, probability), *_]] = load_classifier(trained)(rows[0]["image"])
    assert rows[0]["prediction"] == name
    assert float(rows[0]["probability"]) == pytest.approx(probability, abs=1e-5)


def test_batch_size_need_not_fit_gradient_accumulation(tmp_path):
    settings = Settings(gradient_accumulation_steps=4, strategy="one_device")
    resolve(settings).write(tmp_path / "flags.txt")
    Evaluator(Settings(workdir=tmp_path, batch_size=3))


@pytest.mark.slow
def test_written_summaries_are_returned(trained):
    report = evaluate(Settings(workdir=trained, report="returned"))
    assert report == report_of(trained, "returned")
    compared = compare(
        Settings(workdir=trained, with_=trained, report="returned too")
    )
    path = trained / "returned too/comparison.json"
    assert compared == json.loads(path.read_text())


@pytest.mark.slow
def test_report_depends_on_neither_batch_size_nor_replicas(trained, run):
    run("--mode=evaluate", f"--workdir={trained}")
    for flags in (["--batch_size=4"], ["--strategy=mirrored"]):
        run(*flags, "--mode=evaluate", f"--workdir={trained}", "--report=other")
        other, report = report_of(trained, "other"), report_of(trained)
        assert other.keys() == report.keys()
        for name in METRICS:
            assert other[name] == pytest.approx(report[name], rel=1e-5)


def test_run_of_several_workers_is_evaluated_on_one_machine(tmp_path):
    Settings(strategy="multi_worker").write(tmp_path / "flags.txt")
    evaluator = Evaluator(Settings(workdir=tmp_path))
    assert evaluator.strategy.num_replicas_in_sync == 2


@pytest.mark.slow
def test_report_with_other_settings_has_another_name(trained, run):
    flags = ("--mode=evaluate", f"--workdir={trained}", "--checkpoint=2")
    status, _, err = run(*flags, "--eval_split=train", "--image_size=20")
    assert status == 0, err
    name = "report-checkpoint=2-eval_split=train-image_size=20"
    report = report_of(trained, name)
    assert (report["step"], report["examples"]) == (2, 18)
    assert (report["split"], report["image_size"]) == ("train", 20)
    status, _, err = run(*flags, "--eval_split=test", f"--report={name}")
    assert status == 1
    [line] = err.splitlines()
    assert f"--report={name}: must be a new folder, or an earlier" in line
    assert "has --eval_split=train, --image_size=20. Pass another name." in line


def texts(settings):
    return {name: to_text(value) for name, value in settings.given.items()}


def reported(settings, **options):
    """Writes a report without metrics, and returns its name."""
    folder, subject = report_folder(texts(settings), **options)
    folder.mkdir(exist_ok=True)
    content = json.dumps({"examples": 1, "subject": subject})
    (folder / options.get("result", "report.json")).write_text(content)
    return folder.name


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Returns the current folder, with subfolders of equal names."""
    monkeypatch.chdir(tmp_path)
    for place in ("siteA/test", "siteB/test", "b/siteB/test", "run", "other"):
        (tmp_path / place).mkdir(parents=True)
    return tmp_path


def test_reports_on_folders_of_equal_names_have_different_names(places):
    expected = {
        "siteA/test": "report-dataset=test",
        "siteB/test": "report-dataset=siteB_test",
        "b/siteB/test": "report-dataset=b_siteB_test",
        "digits": "report-dataset=digits",
    }
    for _ in range(2):
        # The second report replaces the first one.
        for dataset, name in expected.items():
            assert reported(Settings(workdir="run", dataset=dataset)) == name
    # An absolute path is the same data set.
    again = Settings(workdir=places / "run", dataset=places / "siteB/test")
    assert reported(again) == expected["siteB/test"]
    assert {path.name for path in (places / "run").iterdir()} == set(
        expected.values()
    )


def test_links_are_resolved(places):
    settings = Settings(workdir="run", dataset="latest")
    (places / "latest").symlink_to("siteA/test")
    assert reported(settings) == reported(settings) == "report-dataset=latest"
    (places / "latest").unlink()
    (places / "latest").symlink_to("siteB/test")
    assert reported(settings).endswith("_latest")
    # A link to the run is the same run.
    (places / "link").symlink_to("run")
    assert reported(Settings(workdir="run")) == "report"
    assert reported(Settings(workdir="link")) == "report"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"weights": "a/x.h5"}, "report-weights=x.h5-dataset=test"),
        ({"weights": "b/x.h5"}, "report-weights=b_x.h5-dataset=siteA_test"),
        (
            {"weights": "a/x.h5", "model": "resnet18"},
            "report-weights=x.h5-dataset=test-model=resnet18",
        ),
        (
            {"weights": "a/x.h5", "skip_bad_images": True},
            "report-weights=x.h5-dataset=test-skip_bad_images=True",
        ),
    ],
)
def test_reports_on_different_weights_have_different_names(
    places, options, name
):
    for folder in ("a", "b"):
        (places / folder).mkdir(exist_ok=True)
        (places / folder / "x.h5").touch()
    reported(Settings(weights="a/x.h5", dataset="siteA/test"))
    assert reported(Settings(dataset="siteA/test", **options)) == name


def test_names_of_other_subjects_are_numbered(places):
    for number in ("", "-2", "-3"):
        moved = Settings(workdir="run", eval_split="b")
        assert reported(moved) == f"report-eval_split=b{number}"
        subject = {"workdir": "elsewhere"}
        path = places / "run" / f"report-eval_split=b{number}" / "report.json"
        path.write_text(json.dumps({"examples": 1, "subject": subject}))


def test_names_of_reports_are_limited_in_length(places):
    options = {"workdir": "run", "model": "resnet18"}
    for place, name in (
        ("a", "report-dataset=x"),
        ("b", "report-dataset=x-model=resnet18"),
        ("c", "report-dataset=x-2"),
    ):
        dataset = f"{place * 240}/x"
        (places / dataset).mkdir(parents=True)
        assert reported(Settings(dataset=dataset, **options)) == name


def test_comparisons_with_runs_of_equal_names_have_different_names(places):
    names = [
        reported(
            Settings(workdir="run", with_=place),
            result="comparison.json",
            name="comparison-test",
        )
        for place in ("siteA/test", "siteB/test", "siteA/test")
    ]
    assert names == [
        "comparison-test",
        "comparison-test-with=test",
        "comparison-test",
    ]


def test_named_report_is_replaced_only_by_the_same_settings(places):
    named = {"report": places / "shared"}
    settings = Settings(workdir="run", dataset="siteA/test", **named)
    assert reported(settings) == reported(settings) == "shared"
    for other in (
        Settings(workdir="run", dataset="siteB/test", **named),
        Settings(workdir="other", dataset="siteA/test", **named),
        Settings(workdir="run", **named),
    ):
        with pytest.raises(
            UserError, match=r"^--report=.*Pass another name\.$"
        ):
            report_folder(texts(other))


def test_report_of_an_early_version_is_replaced_only_by_the_same(places):
    """Such a report has no subject."""
    for name, dataset in (
        ("report", "anything"),
        ("report-dataset=test", "siteA/test"),
    ):
        folder = places / "run" / name
        folder.mkdir()
        old = {"dataset": dataset, "examples": 1}
        (folder / "report.json").write_text(json.dumps(old))
    for dataset, name in (
        ("siteB/test", "report-dataset=siteB_test"),
        ("siteA/test", "report-dataset=test"),
    ):
        assert reported(Settings(workdir="run", dataset=dataset)) == name
    assert reported(Settings(workdir="run")) == "report"


def test_report_moves_with_its_run(places):
    assert reported(Settings(workdir="run")) == "report"
    (places / "run").rename(places / "b/moved")
    assert reported(Settings(workdir="b/moved")) == "report"


@pytest.mark.slow
def test_classes_are_matched_by_name(trained, tmp_path, run):
    root = tmp_path / "some"
    write_folder(root, {"test/dog": 5, "test/emu": 3, "train/dog": 1})
    flags = ("--mode=evaluate", f"--workdir={trained}", "--report=some")
    status, out, err = run(*flags, f"--dataset={root}")
    assert status == 0, err
    assert "2 of the model's 3, matched by name" in out
    report = report_of(trained, "some")
    assert (report["examples"], report["classes_without_examples"]) == (8, 1)
    classifier = load_classifier(trained)
    right = [
        classifier(path, top_k=1)[0][0][0] == path.parent.name
        for path in (root / "test").rglob("*.jpeg")
    ]
    assert report["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_single_class_is_evaluated(trained, tmp_path, run):
    """Only the ROC-AUC is undefined."""
    write_folder(tmp_path / "one", {"dog": 5})
    flags = (f"--workdir={trained}", f"--dataset={tmp_path / 'one'}")
    status, out, err = run("--mode=evaluate", *flags, "--report=one")
    assert (status, err) == (0, "")
    assert "1 of the model's 3, matched by name" in out
    assert "All images are of one class: ROC-AUC is undefined" in out
    assert "nan" not in out
    report = report_of(trained, "one")
    undefined = [name for name in METRICS if report[name] is None]
    assert undefined == ["mean_roc_auc"]
    classifier = load_classifier(trained)
    dogs = [
        classifier(path, top_k=1)[0][0][0] == "dog"
        for path in (tmp_path / "one/dog").iterdir()
    ]
    assert report["accuracy"] == pytest.approx(np.mean(dogs))
    assert report["mean_class_accuracy"] == report["accuracy"]
    assert report["mean_average_precision"] == 1


@pytest.mark.slow
def test_changed_or_moved_images_are_evaluated(tmp_path, run):
    """With the split of the run; changed images cause a warning."""
    old, new = tmp_path / "old", tmp_path / "new"
    write_folder(old, {"cat": 10, "dog": 10})
    workdir = train(old, tmp_path / "run")
    flags = ("--mode=evaluate", f"--workdir={workdir}")
    assert "warning" not in run(*flags).out
    shutil.copy(old / "cat/0.jpeg", old / "cat/new.jpeg")
    status, out, err = run(*flags)
    assert status == 0, err
    [line] = [line for line in out.splitlines() if "warning" in line]
    assert "not the images that" in line
    assert "images was 16 for train and 4 for eval" in line
    (old / "cat/new.jpeg").unlink()
    old.rename(new)
    status, _, err = run(*flags, f"--dataset={new}", "--report=moved")
    assert status == 0, err
    report, last = report_of(workdir, "moved"), read_metrics(workdir)[-1]
    assert report["examples"] == 4
    assert report["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.slow
def test_table_with_duplicates_is_evaluated_by_an_existing_run(tmp_path, run):
    write_folder(tmp_path / "images", {"cat": 10, "dog": 10})
    table = tmp_path / "table.csv"
    paths = sorted((tmp_path / "images").rglob("*.jpeg"))
    lines = [f"{path},{path.parent.name}\n" for path in paths]
    table.write_text("image,label\n" + "".join(lines))
    workdir = train(table, tmp_path / "run")
    with table.open("a") as file:
        file.write(
            f"{tmp_path}/images/cat/../{paths[0].parent.name}/"
            f"{paths[0].name},dog\n"
        )
    flags = ("--mode=evaluate", f"--workdir={workdir}")
    status, out, err = run(*flags)
    assert status == 0, err
    assert re.search("warning: .*: line 22 repeats .* of line 2", out)
    status, _, err = run(*flags, f"--dataset={table}")
    assert status == 1
    assert "line 22 repeats" in err


@pytest.mark.slow
def test_temperature_is_fitted_on_other_images(trained, run):
    flags = ("--mode=evaluate", f"--workdir={trained}", "--report=calibrated")
    status, out, _ = run(*flags, "--calibration_split=train")
    assert status == 0
    assert "Temperature" in out
    found = report_of(trained, "calibrated")["with_temperature"]
    assert found["temperature"] > 0
    status, _, err = run(*flags, "--calibration_split=test")
    assert status == 1
    assert "must not share images with the evaluation split" in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--checkpoint=3"],
            "--checkpoint=3: not found",
        ),
        (
            ["--dataset=digits"],
            "10 of 10 classes are unknown to the model, such as '0'",
        ),
        (["--image_size=0"], "at least"),
        (["--report=checkpoints"], "not an earlier report"),
        (["--eval_split=missing"], "--eval_split=missing: unknown split"),
        (["--with=x"], "--with: requires --mode=compare"),
    ],
)
def test_invalid_flags_are_one_line(flags, expected, trained, run):
    before = states(trained)
    status, _, err = run("--mode=evaluate", f"--workdir={trained}", *flags)
    assert status == 1
    [line] = err.splitlines()
    assert expected in line
    assert states(trained) == before


def test_weights_without_a_dataset_are_an_error(run):
    status, _, err = run("--mode=evaluate", "--weights=x.h5")
    assert status == 1
    assert "Pass the --workdir of a run, or --weights and a --dataset" in err


@pytest.mark.slow
def test_two_runs_are_compared(trained, run):
    """The second run is the first one after two steps."""
    other = shutil.copytree(trained, trained.parent / "other")
    for path in other.glob("checkpoints/ckpt-4*"):
        path.unlink()
    status, out, err = run(
        "--mode=compare", f"--workdir={trained}", f"--with={other}"
    )
    assert status == 0, err
    folder = trained / "comparison-other"
    found = json.loads((folder / "comparison.json").read_text())
    assert found["models"] == ["run", "other"]
    assert found["examples"] == 9
    evaluated = {
        r["step"]: r for r in read_metrics(trained) if r["split"] == "eval"
    }
    values = found["measures"]["loss"]["values"]
    assert values == pytest.approx(
        [evaluated[s]["loss"] for s in (4, 2)], rel=1e-5
    )
    assert found["facts"]["Parameters"][0] == found["facts"]["Parameters"][1]
    assert min(found["facts"]["Images per second"]) > 0
    low, high = found["ranges"]["Images per second"]
    assert 0 < low <= high
    assert "McNemar's exact test" in out
    assert (folder / "comparison.html").is_file()


def test_models_alternate_when_they_are_timed(monkeypatch):
    """A machine that slows down affects both models alike.

    The first model takes twice as long.
    """
    clock, called = [0.0], []

    def model(name, work):
        def logits(images):
            tf.py_function(lambda: take(name, work), [], [])
            return images

        size = types.SimpleNamespace(image_size=4)
        return types.SimpleNamespace(logits=logits, preprocessing=size)

    def take(name, work):
        called.append(name)
        clock[0] += work * 1.05 ** len(called)

    perf_counter = types.SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(model_costs, "time", perf_counter)
    models = [model("first", 2.0), model("second", 1.0)]
    speeds = model_costs.images_per_second(
        models, tf.distribute.get_strategy(), 8, rounds=4
    )
    assert called == ["first", "second"] * 5
    assert speeds.shape == (4, 2)
    np.testing.assert_allclose(speeds[:, 0] / speeds[:, 1], 1.05 / 2)


@pytest.mark.slow
def test_run_does_not_differ_from_itself(trained, run):
    status, _, err = run(
        "--mode=compare", f"--workdir={trained}", f"--with={trained}"
    )
    assert status == 0, err
    [path] = trained.glob("comparison-run*/comparison.json")
    found = json.loads(path.read_text())
    assert found["mcnemar"]["p_value"] == 1
    assert all(
        metric["difference"] == 0 and metric["interval"] == [0, 0]
        for metric in found["measures"].values()
    )


def test_comparison_requires_a_second_model(trained, run):
    status, _, err = run("--mode=compare", f"--workdir={trained}")
    assert status == 1
    assert "--mode=compare: requires --with" in err
    status, _, err = run(
        "--mode=compare", f"--workdir={trained}", "--with=nowhere"
    )
    assert status == 1
    assert "nowhere: not an existing run" in err


def test_comparison_requires_common_classes(trained, tmp_path, run):
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    text = (other / "data.json").read_text()
    for name in ("cat", "dog", "emu"):
        text = text.replace(f'"{name}"', f'"{name.upper()}"')
    (other / "data.json").write_text(text)
    status, _, err = run(
        "--mode=compare", f"--workdir={trained}", f"--with={other}"
    )
    assert status == 1
    assert "has no class name in common" in err
    assert err.count("\n") == 1


def test_probabilities_of_augmented_views_are_averaged():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")

    def model(views):
        # Two classes: the brightness of the first pixel, and the mean.
        views = tf.cast(views, tf.float32) / 64
        return tf.stack(
            [views[:, 0, 0, 0], tf.reduce_mean(views, [1, 2, 3])], axis=1
        )

    ten = TEST_TIME_AUGMENTATIONS["ten_crops"]
    assert ten.preprocessing(
        Preprocessing(image_size=7, crop_fraction=0.875)
    ) == Preprocessing(image_size=8, crop_fraction=1.0)
    crops = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]
    views = [images[:, t : t + 7, left : left + 7] for t, left in crops]
    views += [view[:, :, ::-1] for view in views]
    expected = np.mean([tf.nn.softmax(model(view)) for view in views], axis=0)
    logits = ten.logits(model, tf.constant(images), 7)
    np.testing.assert_allclose(np.exp(logits), expected, rtol=1e-5)
    alone = TEST_TIME_AUGMENTATIONS["none"].logits(
        model, tf.constant(images), 8
    )
    np.testing.assert_array_equal(alone, model(images))


def test_classes_of_equal_names_are_matched_only_by_index():
    """A run of an early version may have them."""
    stored = Dataset(("a", "b", "a"), {})
    labels, note = evaluation.match_classes(stored, ("a", "b", "a"))
    assert (labels.tolist(), note) == ([0, 1, 2], "")
    for theirs, ours in (("ab", "aba"), ("aba", "ab"), ("aba", "aab")):
        with pytest.raises(UserError, match="but several are named 'a'"):
            evaluation.match_classes(Dataset(tuple(theirs), {}), tuple(ours))
    # Names that are not matched may occur twice.
    labels, _ = evaluation.match_classes(Dataset(("b",), {}), ("a", "b", "a"))
    assert labels.tolist() == [1]
