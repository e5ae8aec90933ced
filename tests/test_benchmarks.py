"""The scripts in `benchmarks/` and their summaries."""

import io
import json
import os
import pathlib
import subprocess
import sys
import time

import PIL.Image
import pytest
from absl.testing import flagsaver

from benchmarks import (
    compare,
    export_formats,
    input_pipeline,
    kernel_gradients,
    scaling,
    turns,
    whole_run,
)
from benchmarks.photos import parts_of_photos
from resnet_layers import ResNet
from train_loop import main
from train_loop.training.reports import TensorBoardReport

CASE = compare.Case("resnet18", "train", "float32", 8, 32, 2, 3)


def worker_results(seconds, memory=1e9):
    """Returns the results of a worker; `seconds` are per step of each group."""
    return {
        "step_seconds": seconds,
        "first_step_seconds": {"process": 9.0, "imports": 3.0},
        "peak_memory_bytes": memory,
        "device": "CPU",
    }


def test_ratios_are_computed_within_a_round():
    """The machine is half as fast in the second round."""
    found = {
        "ours": [
            worker_results([1.0, 1.0, 5.0]),
            worker_results([2.0]),
            worker_results([1.0], 2e9),
        ],
        "torch_eager": [worker_results([each]) for each in (1.5, 3.0, 1.6)],
    }
    summary = compare.summarize(CASE, found)
    ratio = summary["torch_eager"]["ours_is_faster"]
    assert ratio == pytest.approx({"median": 1.5, "least": 1.5, "most": 1.6})
    rates = summary["ours"]["images_per_second"]
    assert rates == {"median": 8.0, "least": 4.0, "most": 8.0}
    assert summary["ours"]["peak_memory_bytes"] == 2e9
    head, _, ours, theirs = compare.markdown([(CASE, summary)]).splitlines()
    assert head.count("|") == ours.count("|") == theirs.count("|")
    assert "1.50 (1.50 to 1.60)x" in theirs
    assert "| - |" in ours


def test_implementations_alternate_and_failing_ones_are_skipped(
    monkeypatch, capsys
):
    turns = []

    def measure(name, case):
        turns.append(name)
        if name == "torch_compile":
            raise ChildProcessError("no compiler")
        return worker_results([1.0])

    monkeypatch.setitem(
        compare.IMPLEMENTATIONS,
        "unknown",
        compare.Implementation("unknown", None, ("no_such_lib",)),
    )
    monkeypatch.setattr(compare, "LIBRARIES", ())
    for name in ("ours", "torch_compile"):
        entry = compare.IMPLEMENTATIONS[name]._replace(libraries=())
        monkeypatch.setitem(compare.IMPLEMENTATIONS, name, entry)
    names = ["ours", "unknown", "keras_fit", "torch_compile"]
    found = compare.compare(CASE, names, 2, measure)
    assert turns == ["ours", "torch_compile", "ours"]
    assert {name: len(rounds) for name, rounds in found.items()} == {"ours": 2}
    out = capsys.readouterr().out
    assert "Skipping unknown: no_such_lib is not installed." in out
    assert "Skipping keras_fit: it has no resnet18." in out
    assert "Skipping torch_compile: no compiler" in out


def test_worker_inherits_the_python_path_of_the_user(monkeypatch):
    def print_path(command, env, **_):
        paths = json.dumps(env["PYTHONPATH"].split(os.pathsep))
        return subprocess.CompletedProcess(command, 0, paths, "")

    monkeypatch.setattr(subprocess, "run", print_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/own", "/other"]))
    root = str(compare.ROOT)
    assert compare.measure("ours", CASE) == [root, "/own", "/other"]
    # An empty path would be the current folder.
    monkeypatch.delenv("PYTHONPATH")
    assert compare.measure("ours", CASE) == [root]


def test_laps_exclude_the_warm_up():
    laps = compare.Laps(CASE)
    laps.imported()
    steps = []
    laps.run(steps.append)
    # The first step, a warm-up group, two timed groups.
    assert steps == [1, 3, 3, 3]
    assert len(laps.numbers()["step_seconds"]) == 2


@pytest.mark.parametrize("what", compare.WHAT)
def test_ours_is_measured(what, small_net, capsys):
    """In this process, without the other implementations."""
    case = CASE._replace(model="resnet_tiny", what=what, image_size=16)
    compare.work("ours", case)
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(measured["step_seconds"]) == 2
    assert min(measured["step_seconds"]) > 0
    first = measured["first_step_seconds"]
    assert 0 < first["imports"] < first["process"]
    assert measured["peak_memory_bytes"] > 1e8
    assert measured["device"] == "CPU"


def test_exponents_and_efficiency_are_computed():
    points = {
        value: [
            dict.fromkeys(scaling.MEASURES, 3 * value**power) for _ in range(2)
        ]
        for value, power in ((1, 2), (2, 2), (4, 2))
    }
    summary = scaling.summarize(scaling.SWEEPS["batch_size"], points)
    assert [*summary["exponents"].values()] == pytest.approx([2, 2, 2])
    assert "efficiency" not in summary
    shared = scaling.summarize(scaling.SWEEPS["workers"], points)
    assert shared["efficiency"] == pytest.approx([1, 1 / 4, 1 / 16])


def test_plot_of_scaling_skips_a_missing_point(tmp_path):
    points = {1: [dict.fromkeys(scaling.MEASURES, 2.0)], 2: []}
    summary = scaling.summarize(scaling.SWEEPS["replicas"], points)
    assert summary["values"] == [1]
    scaling.draw(tmp_path / "plot.png", {"replicas": summary})
    with PIL.Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500
    assert "efficiency" in scaling.describe("replicas", summary)


def test_sweep_without_its_first_point_has_no_efficiency():
    points = {1: [], 2: [dict.fromkeys(scaling.MEASURES, 2.0)]}
    assert "efficiency" not in scaling.summarize(
        scaling.SWEEPS["workers"], points
    )


@pytest.mark.parametrize("failing", [{"replicas"}, {"replicas", "workers"}])
def test_failed_sweep_does_not_affect_the_others(
    failing, tmp_path, monkeypatch
):
    def measure(command, *_):
        is_mirrored = "--strategy=mirrored" in command[1]
        if ("replicas" if is_mirrored else "workers") in failing:
            return None
        return dict.fromkeys(scaling.MEASURES, 2.0)

    monkeypatch.setattr(scaling, "measure", measure)
    files = tmp_path / "s.json", tmp_path / "s.png"
    flags = f"--output={files[0]}", f"--plot={files[1]}"
    scaling.main(["--sweep", "replicas", "workers", *flags])
    sweeps = json.loads(files[0].read_text())["sweeps"]
    assert {*sweeps} == {"replicas", "workers"} - failing
    assert files[1].exists() == bool(sweeps)


def test_jpegs_are_found_by_suffix_and_content(tmp_path):
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(file, "jpeg")
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764/n01440764_10026.JPEG").write_bytes(file.getvalue())
    (tmp_path / "folder.JPEG").mkdir()
    (tmp_path / "image.JPEG").write_bytes(b"\x89PNG")
    assert input_pipeline.read_jpegs(tmp_path) == [file.getvalue()]


def test_folder_without_jpegs_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="no JPEG found"):
        input_pipeline.read_jpegs(tmp_path)


def test_parts_of_photos_have_the_size_of_imagenet():
    photos = [*parts_of_photos(12)]
    assert len({*photos}) == 12
    for photo in photos:
        with PIL.Image.open(io.BytesIO(photo)) as image:
            assert (image.format, image.size) == ("JPEG", (500, 375))


@pytest.mark.slow
def test_failed_export_is_a_line_below_the_table(capsys):
    export_formats.compare(
        ["resnet20", "resnet50_v2"], ["safetensors"], export_formats.draw(2, 32)
    )
    out = capsys.readouterr().out.splitlines()
    [written] = [line for line in out if line.startswith("resnet20  ")]
    assert float(written.split()[-1]) < 1e-4
    [missing] = [line for line in out if line.startswith("resnet50_v2  ")]
    assert missing.split()[-1] == "-"
    assert out[-1].startswith("resnet50_v2: safetensors/model.safetensors: ")


def test_whole_run_is_compared_with_its_bare_step(monkeypatch, capsys):
    def end(command, **_):
        flags = dict(flag[2:].split("=", 1) for flag in command[3:])
        if flags.get("mode") == "benchmark":
            measured = {"train": {"step_seconds": {"median": 2.0}}}
            file = pathlib.Path(flags["benchmark_file"])
            file.write_text(json.dumps(measured))
        else:
            images = pathlib.Path(flags["dataset"]).glob("*/*.jpg")
            assert len({path.parent for path in images}) == 2
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(whole_run, "NUM_IMAGES", 4)
    monkeypatch.setattr(subprocess, "run", end)
    monkeypatch.setattr(whole_run, "seconds_per_step", lambda workdir: 2.5)
    whole_run.main(["--rounds=2"])
    out = capsys.readouterr().out
    assert "relative to its bare step 0.800 (0.800 to 0.800)." in out


def test_time_of_a_run_is_the_difference_of_its_reports(tmp_path):
    began = time.perf_counter()
    report = TensorBoardReport(tmp_path, {"train": 0})
    for step in (5, 10, 15):
        report(step, "train", {"images_per_second": 1.0})
        time.sleep(0.05)
    report.close()
    whole = time.perf_counter() - began
    # The first report is followed by two of five steps each.
    assert 0.01 < whole_run.seconds_per_step(tmp_path) < whole / 10


def test_both_methods_for_kernel_gradients_are_timed(small_net, capsys):
    """Grouped convolutions and the large kernel of the stem have only one."""
    small = ["--image_size=16", "--batch_size=2", "--rounds=1"]
    kernel_gradients.main(["--model=resnet_tiny", *small])
    table, total = capsys.readouterr().out.split("all as convolutions: ")
    assert "3 x 3 x 8 x 8" in table
    assert float(total.split()[0]) > 0
    model = ResNet(stage_sizes=(1,), width=32, groups=32, base_width=4)
    kernels = [
        call.kernel for call in kernel_gradients.calls_of(model, (2, 32, 32, 3))
    ]
    assert [kernel[:2] for kernel in kernels] == [(1, 1)] * 3


# Prints the seconds of a step for each line, and ends after four.
WAITS = """
import os, sys
for _, line in zip(range(4), sys.stdin):
    print(os.environ["SECONDS"], flush=True)
sys.exit(3)
"""


def waiting_side(words):
    """Returns a `Side` whose process reports steps of a given duration."""
    side = turns.Side(words, turns.read_options(["--", "--model=resnet_tiny"]))
    assert side.command[-3:-1] == ["--", "--model=resnet_tiny"]
    assert side.command[-1] == "--clip_norm=1"
    side.command = [sys.executable, "-c", WAITS]
    return side


def test_two_processes_alternate_step_by_step():
    options = turns.read_options(["--first=SECONDS=2 --clip_norm=1"])
    with (
        waiting_side(options.first) as first,
        waiting_side(["--clip_norm=1", "SECONDS=3"]) as second,
    ):
        first.warm_up()
        turns.take_turns([first, second], 1)
        assert (first.seconds, second.seconds) == ([2.0], [3.0])
        # Its exit status becomes that of the benchmark.
        first.process.wait()
        with pytest.raises(SystemExit) as ended:
            first.step()
        assert ended.value.code == 3


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (
            "--first=--batch_size 8",
            "'8': must be --flag=value or VARIABLE=value.",
        ),
        ("--turns=0", "--turns=0: must be at least 1."),
    ],
)
def test_invalid_options_of_turns_are_an_error(mistake, expected, capsys):
    with pytest.raises(SystemExit):
        turns.read_options([mistake])
    assert expected in capsys.readouterr().err


def test_speedup_is_computed_within_a_turn():
    """The machine is half as fast in the second turn."""
    text = turns.describe([1.0, 2.0, 1.0], [1.5, 3.0, 1.2])
    assert "speedup of the first: 1.50x (1.20 to 1.50 in 3 turns)" in text


def test_worker_runs_a_step_per_line(small_net, capsys):
    flags = ["--model=resnet_tiny", "--image_size=16", "--batch_size=2"]
    with flagsaver.flagsaver():
        main.FLAGS.unparse_flags()
        turns.serve("train", [*flags, "--freeze=backbone"], "\n\n")
        printed = capsys.readouterr()
        assert "freezes random weights" in printed.err
        seconds = printed.out.split()
        assert len(seconds) == 2
        assert min(map(float, seconds)) > 0
        with pytest.raises(SystemExit, match="--model=resnetty: unknown"):
            turns.serve("train", ["--model=resnetty"], "\n")
