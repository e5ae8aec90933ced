"""The mode `export`."""

import json
import re

import numpy as np
import onnxruntime
import pytest
from samples import encoded, smooth_pixels

from train_loop import UserError, load_classifier
from train_loop.exports.bundle import ExportedWeights as Weights
from train_loop.exports.formats import EXPORT_FORMATS
from train_loop.workdir import Workdir

pytestmark = [pytest.mark.usefixtures("small_net"), pytest.mark.slow]


@pytest.fixture
def trained(trained):
    """Returns the folder of a run in mixed precision."""
    flags = trained / "flags.txt"
    text = flags.read_text()
    assert "--precision=float32\n" in text
    flags.write_text(text.replace("=float32\n", "=mixed_bfloat16\n"))
    return trained


def test_export_is_verified_on_the_images_of_the_run(trained, run):
    folder = trained.parent / "images"
    # An unreadable image is skipped.
    (folder / "test/cat/0.jpeg").write_bytes(b"broken")
    status, out, err = run(
        "--mode=export",
        f"--workdir={trained}",
        "--format=onnx,safetensors,litert",
    )
    assert (status, err) == (0, "")
    table = [line for line in out.splitlines() if "%" in line]
    assert [line.split("  ")[0] for line in table] == [
        "the model itself",
        "onnx/model.onnx",
        "safetensors/model.safetensors",
        "litert/model.tflite",
        "litert/model_float16.tflite",
        "litert/model_int8.tflite",
    ]
    assert "Compared on 8 images" in out
    # The accuracy, which is the same for the same predictions.
    assert len({re.findall(r"[\d.]+%", line)[1] for line in table[:4]}) == 1
    made = trained / "export"
    assert sorted(path.name for path in made.iterdir()) == [
        *("litert", "model_card.md", "onnx", "safetensors"),
    ]
    card = (made / "model_card.md").read_text()
    assert "--dataset=images" in card
    assert str(folder.parent) not in card
    assert "onnx/model.onnx" in card
    # The files predict like the run.
    content = encoded(smooth_pixels(16, 16), "png")
    classifier = load_classifier(made / "safetensors/model.safetensors")
    session = onnxruntime.InferenceSession(made / "onnx/model.onnx")
    image = classifier.prepare(content).numpy()[np.newaxis]
    [probabilities] = session.run(None, {"images": image})[0]
    names = json.loads((made / "onnx/classifier.json").read_text())
    assert dict(
        zip(names["class_names"], probabilities, strict=True)
    ) == pytest.approx(dict(classifier(content)[0]), abs=1e-5)
    assert dict(classifier(content)[0]) == pytest.approx(
        dict(load_classifier(trained)(content)[0]), abs=0.05
    )


def test_other_images_replace_missing_training_data(trained, run, tmp_path):
    (tmp_path / "images").rename(tmp_path / "moved")
    arguments = (
        "--mode=export",
        f"--workdir={trained}",
        "--format=safetensors",
        f"--export_dir={tmp_path / 'there'}",
    )
    status, _, err = run(*arguments)
    assert status == 1
    [line] = err.splitlines()
    assert line.endswith(
        "Or pass other images to verify the files with --images."
    )
    status, out, err = run(*arguments, f"--images={tmp_path / 'moved'}")
    assert (status, err) == (0, "")
    assert "Compared on 27 images" in out
    assert (tmp_path / "there/safetensors/model.safetensors").is_file()
    assert not (trained / "export").exists()
    (tmp_path / "moved/broken.jpg").write_bytes(b"broken")
    status, _, err = run(*arguments, f"--images={tmp_path / 'moved'}")
    assert status == 1
    assert err.startswith(f"error: {tmp_path}/moved/broken.jpg: cannot be dec")


def test_card_describes_all_exported_files(trained, run, monkeypatch):
    """Also with a failed format, and with files of an earlier export."""

    def fail(*_):
        raise UserError("this model cannot be written")

    # A format without a runtime is quick to write.
    quick = EXPORT_FORMATS["safetensors"]
    monkeypatch.setitem(EXPORT_FORMATS, "keras", quick)
    monkeypatch.setitem(EXPORT_FORMATS, "onnx", quick._replace(write=fail))
    flags = ("--mode=export", f"--workdir={trained}")
    status, out, err = run(*flags, "--format=keras,onnx,safetensors")
    assert status == 1
    assert err.splitlines() == [
        "onnx/model.safetensors: this model cannot be written",
        "error: --format=keras,onnx,safetensors: 1 of 3 files failed; 2 "
        f"files are in {trained / 'export'}. Fix the errors above, or pass "
        "only the other formats.",
    ]
    assert not (trained / "export/onnx").exists()
    card = trained / "export/model_card.md"
    for name in ("keras", "safetensors"):
        assert f"{name}/model.safetensors" in out
        assert f"{name}/model.safetensors" in card.read_text()
    status, out, err = run(*flags, "--format=safetensors")
    assert (status, err) == (0, "")
    assert "keras/model" not in out
    assert card.read_text().count("/model.safetensors") == 2


@pytest.mark.parametrize(
    ("weights", "text", "found"),
    [
        (Weights(8, "none", True), "step 8", "report"),
        (
            Weights(6, "none", True),
            "step 6",
            "report-checkpoint=6",
        ),
        (
            Weights(8, "ema", True),
            "the average (`--weight_average=ema`) up to step 8",
            "report-use_weight_average=True",
        ),
        (
            Weights(4, "ema", False),
            "step 4 (`--use_weight_average=false`), not the average "
            "(`--weight_average=ema`)",
            None,
        ),
    ],
)
def test_card_describes_the_weights_and_finds_their_report(
    weights, text, found, tmp_path
):
    assert str(weights) == text
    for name, facts in {
        "report": {"step": 8},
        "report-checkpoint=6": {"step": 6, "average": "none"},
        "report-use_weight_average=True": {"step": 8, "average": "ema"},
        # On other images.
        "report-use_weight_average=False-eval_split=train": {"step": 6},
    }.items():
        (tmp_path / name).mkdir()
        content = json.dumps({**facts, "name": name})
        (tmp_path / name / "report.json").write_text(content)
    report = weights.find_report(Workdir(tmp_path))
    assert report.get("name") == found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--mode=export: requires --workdir"),
        (["--workdir=tests"], "no flags.txt"),
        (["--format=tflite"], f"Use one of: {', '.join(EXPORT_FORMATS)}"),
        (["--format=json"], "--format=json: unknown"),
        (
            ["--workdir=x", "--export_dir=/proc"],
            "--export_dir=/proc: cannot be written",
        ),
        (["--explain"], "--explain: requires --mode=predict"),
    ],
)
def test_invalid_flags_are_one_line(
    arguments, expected, run, monkeypatch, pytestconfig
):
    monkeypatch.chdir(pytestconfig.rootpath)
    workdir = [] if not arguments or "workdir" in arguments[0] else ["x"]
    status, _, err = run(
        "--mode=export", *(f"--workdir={x}" for x in workdir), *arguments
    )
    assert status == 1
    [line] = err.splitlines()
    assert expected in line
