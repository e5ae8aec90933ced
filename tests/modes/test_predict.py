"""Prediction, as a user and other programs start it."""

import csv
import io
import json
import re
import shutil
import sys
from unittest import mock

import pytest
from samples import encoded, smooth_pixels

from train_loop import load_classifier
from train_loop.builders import model as model_builder
from train_loop.workdir import Workdir

pytestmark = pytest.mark.usefixtures("small_net")


@pytest.fixture
def trained(trained):
    """Returns the folder of a run whose dataset is deleted."""
    shutil.rmtree(trained.parent / "images")
    return trained


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        content = encoded(smooth_pixels(30 + number, 40), "jpeg")
        (folder / f"{number}.jpg").write_bytes(content)
    return folder


@pytest.mark.slow
def test_predictions_are_the_classifiers_in_every_format(
    trained, photos, run, monkeypatch
):
    arguments = ("--mode=predict", f"--workdir={trained}", "--top_k=1")
    paths = sorted(map(str, photos.iterdir()))
    expected = [
        prediction for [prediction] in load_classifier(trained)(paths, top_k=1)
    ]
    folding = mock.Mock(wraps=model_builder.fold_batch_norms)
    monkeypatch.setattr(model_builder, "fold_batch_norms", folding)
    for others in ((), ("--fast_paths=false",)):
        status, out, err = run(
            *arguments, f"--images={photos}/*.jpg", "--format=json", *others
        )
        assert (status, err) == (0, "")
        assert folding.call_count == 1
        for record, path, (label, part) in zip(
            json.loads(out), paths, expected, strict=True
        ):
            [prediction] = record.pop("predictions")
            assert record == {"image": path}
            assert prediction["label"] == label
            assert prediction["probability"] == pytest.approx(part, abs=1e-6)
    # A folder, and a list from another program.
    status, out, _ = run(*arguments, f"--images={photos}", "--format=csv")
    assert status == 0
    assert [
        (row["image"], row["label"]) for row in csv.DictReader(io.StringIO(out))
    ] == list(zip(paths, [label for label, _ in expected], strict=True))
    listed = io.BytesIO("\n".join(paths[::-1]).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
    status, out, _ = run(*arguments, "--images=-")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "image",
        *paths[::-1],
    ]


@pytest.mark.slow
def test_broken_images_are_listed_and_the_others_predicted(
    trained, photos, run
):
    (photos / "1.jpg").write_bytes(b"not an image")
    arguments = ("--mode=predict", f"--workdir={trained}")
    images = f"--images={photos},{photos}/gone.jpg"
    for output_format, count in (("json", 4), ("csv", 7), ("table", 3)):
        status, out, err = run(
            *arguments, images, f"--format={output_format}", "--top_k=2"
        )
        assert status == 1
        broken, missing, last = err.splitlines()
        assert broken == (
            f"{photos}/1.jpg: cannot be decoded (not an image file)"
        )
        assert missing == (
            f"{photos}/gone.jpg: cannot be read (No such file or directory)"
        )
        assert ": 2 of 4 images cannot be read. The others are done." in last
        if output_format == "json":
            records = json.loads(out)
            assert [*records[1]] == ["image", "error"]
            assert records[1]["error"].startswith("cannot be decoded (")
        else:
            assert len(out.splitlines()) == count


def test_standard_output_contains_only_predictions(
    trained, photos, run, monkeypatch
):
    def load_and_talk(*arguments, **options):
        print("Downloading ...")
        return load_classifier(*arguments, **options)

    # In the package, the name refers to the function.
    module = sys.modules["train_loop.modes.predict"]
    monkeypatch.setattr(module, "load_classifier", load_and_talk)
    arguments = ("--mode=predict", f"--workdir={trained}", "--format=json")
    status, out, err = run(*arguments, f"--images={photos}")
    assert (status, err) == (0, "Downloading ...\n")
    assert len(json.loads(out)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, "where"])
def test_explanations_are_drawn(trained, photos, given, run, tmp_path):
    folder = tmp_path / given if given else trained / "explanations"
    where = [f"--explain_dir={folder}"] if given else []
    status, out, err = run(
        "--mode=predict",
        f"--workdir={trained}",
        f"--images={photos}",
        "--explain",
        *where,
    )
    assert status == 0
    assert err == f"Explanations are in {folder}.\n"
    assert len(out.splitlines()) == 4
    assert sorted(path.name for path in folder.iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--images=x.jpg"], "requires --images, and --workdir or --weights"),
        (["--workdir=RUN"], "requires --images"),
        (
            ["--workdir=RUN", "--images=*.gif"],
            "--images=*.gif: no matching file",
        ),
        (["--workdir=tests", "--images=README.md"], "no flags.txt"),
        (["--format=onnx", "--images=x"], "Use one of: table, json, csv"),
        (["--top_k=0"], "--top_k=0"),
        (["--export_dir=x"], "--export_dir: requires --mode=export"),
        (
            ["--workdir=RUN", "--images=x", "--explain", "--explain_dir=/proc"],
            "--explain_dir=/proc: cannot be written",
        ),
    ],
)
def test_mistakes_are_an_error_in_one_line(
    arguments, expected, trained, run, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    status, out, err = run(
        "--mode=predict",
        *(argument.replace("RUN", str(trained)) for argument in arguments),
    )
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert expected in line


def test_flags_of_prediction_are_not_saved_in_the_run(trained, photos, run):
    before = Workdir(trained).flags.read_text()
    assert not re.search(r"--(images|format|top_k|explain|export)", before)
    run("--mode=predict", f"--workdir={trained}", f"--images={photos}")
    assert Workdir(trained).flags.read_text() == before


@pytest.mark.parametrize("flag", ["images=x", "format=json", "explain"])
def test_flags_of_another_mode_start_no_training(flag, run, tmp_path):
    status, _, err = run(f"--workdir={tmp_path / 'new'}", f"--{flag}")
    assert status == 1
    assert err.startswith(
        f"error: --{flag.split('=')[0]}: requires --mode=predict"
    )
    assert not (tmp_path / "new").exists()
