"""The scripts in `benchmarks/`: what they make of what they measure."""

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


def told(seconds, memory=1e9):
    """Returns what a worker tells whose groups took so long per step."""
    return {
        "step_seconds": seconds,
        "first_step_seconds": {"process": 9.0, "imports": 3.0},
        "peak_memory_bytes": memory,
        "device": "CPU",
    }


def test_ratios_are_taken_within_a_round():
    """The machine was half as fast in the second one, for both."""
    found = {
        "ours": [told([1.0, 1.0, 5.0]), told([2.0]), told([1.0], 2e9)],
        "torch_eager": [told([1.5]), told([3.0]), told([1.6])],
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


def test_peers_take_turns_and_those_that_fail_are_left_out(monkeypatch, capsys):
    turns = []

    def measure(name, case):
        turns.append(name)
        if name == "torch_compile":
            raise ChildProcessError("no compiler")
        return told([1.0])

    monkeypatch.setitem(
        compare.PEERS, "nobody", compare.Peer("nobody", None, ("no_such_lib",))
    )
    monkeypatch.setattr(compare, "LIBRARIES", ())
    for name in ("ours", "torch_compile"):
        peer = compare.PEERS[name]._replace(libraries=())
        monkeypatch.setitem(compare.PEERS, name, peer)
    names = ["ours", "nobody", "keras_fit", "torch_compile"]
    found = compare.compare(CASE, names, 2, measure)
    assert turns == ["ours", "torch_compile", "ours"]
    assert {name: len(rounds) for name, rounds in found.items()} == {"ours": 2}
    out = capsys.readouterr().out
    assert "nobody is left out: no_such_lib is not installed" in out
    assert "keras_fit is left out: it has no resnet18" in out
    assert "torch_compile is left out: no compiler" in out


def test_worker_finds_what_the_user_has_put_on_the_path(monkeypatch):
    def told_path(command, env, **_):
        paths = json.dumps(env["PYTHONPATH"].split(os.pathsep))
        return subprocess.CompletedProcess(command, 0, paths, "")

    monkeypatch.setattr(subprocess, "run", told_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/own", "/other"]))
    root = str(compare.ROOT)
    assert compare.measure("ours", CASE) == [root, "/own", "/other"]
    # An empty one would be the folder that one stands in.
    monkeypatch.delenv("PYTHONPATH")
    assert compare.measure("ours", CASE) == [root]


def test_laps_leave_the_first_group_out():
    laps = compare.Laps(CASE)
    laps.imported()
    steps = []
    laps.run(steps.append)
    # The first step, one group to warm up, two to time.
    assert steps == [1, 3, 3, 3]
    assert len(laps.numbers()["step_seconds"]) == 2


@pytest.mark.parametrize("what", compare.WHAT)
def test_ours_is_measured(what, small_net, capsys):
    """In this process; the others are left to the script."""
    case = CASE._replace(model="resnet_tiny", what=what, image_size=16)
    compare.work("ours", case)
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(measured["step_seconds"]) == 2
    assert min(measured["step_seconds"]) > 0
    first = measured["first_step_seconds"]
    assert 0 < first["imports"] < first["process"]
    assert measured["peak_memory_bytes"] > 1e8
    assert measured["device"] == "CPU"


def test_exponents_and_efficiency_are_those_of_the_numbers():
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


def test_plot_of_scaling_is_drawn_though_a_point_is_missing(tmp_path):
    points = {1: [dict.fromkeys(scaling.MEASURES, 2.0)], 2: []}
    summary = scaling.summarize(scaling.SWEEPS["replicas"], points)
    assert summary["values"] == [1]
    scaling.draw(tmp_path / "plot.png", {"replicas": summary})
    with PIL.Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500
    assert "efficiency" in scaling.describe("replicas", summary)


def test_sweep_whose_first_point_failed_has_no_efficiency():
    points = {1: [], 2: [dict.fromkeys(scaling.MEASURES, 2.0)]}
    assert "efficiency" not in scaling.summarize(
        scaling.SWEEPS["workers"], points
    )


@pytest.mark.parametrize("failing", [{"replicas"}, {"replicas", "workers"}])
def test_sweep_that_fails_leaves_the_numbers_of_the_others(
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


def test_jpegs_are_found_in_capitals_and_by_their_contents(tmp_path):
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(file, "jpeg")
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764/n01440764_10026.JPEG").write_bytes(file.getvalue())
    (tmp_path / "folder.JPEG").mkdir()
    (tmp_path / "picture.JPEG").write_bytes(b"\x89PNG")
    assert input_pipeline.read_jpegs(tmp_path) == [file.getvalue()]


def test_folder_without_jpegs_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="there is no JPEG in"):
        input_pipeline.read_jpegs(tmp_path)


def test_parts_of_photos_are_jpegs_of_imagenets_size():
    photos = [*parts_of_photos(12)]
    assert len({*photos}) == 12
    for photo in photos:
        with PIL.Image.open(io.BytesIO(photo)) as image:
            assert (image.format, image.size) == ("JPEG", (500, 375))


@pytest.mark.slow
def test_what_a_format_cannot_hold_is_a_line_below_the_table(capsys):
    export_formats.compare(
        ["resnet20", "resnet50_v2"], ["safetensors"], export_formats.draw(2, 32)
    )
    out = capsys.readouterr().out.splitlines()
    [held] = [line for line in out if line.startswith("resnet20  ")]
    assert float(held.split()[-1]) < 1e-4
    [missing] = [line for line in out if line.startswith("resnet50_v2  ")]
    assert missing.split()[-1] == "-"
    assert out[-1].startswith("resnet50_v2: safetensors/model.safetensors: ")


def test_whole_run_is_held_to_its_bare_step(monkeypatch, capsys):
    def end(command, **_):
        flags = dict(flag[2:].split("=", 1) for flag in command[3:])
        if flags.get("mode") == "benchmark":
            measured = {"train": {"step_seconds": {"median": 2.0}}}
            file = pathlib.Path(flags["benchmark_file"])
            file.write_text(json.dumps(measured))
        else:
            pictures = pathlib.Path(flags["dataset"]).glob("*/*.jpg")
            assert len({path.parent for path in pictures}) == 2
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(whole_run, "PICTURES", 4)
    monkeypatch.setattr(subprocess, "run", end)
    monkeypatch.setattr(whole_run, "seconds_per_step", lambda workdir: 2.5)
    whole_run.main(["--rounds=2"])
    told = capsys.readouterr().out
    assert "is 0.800 (0.800 to 0.800) times as fast as its bare step" in told


def test_time_of_a_run_is_that_between_its_reports(tmp_path):
    began = time.perf_counter()
    report = TensorBoardReport(tmp_path, {"train": 0})
    for step in (5, 10, 15):
        report(step, "train", {"images_per_second": 1.0})
        time.sleep(0.05)
    report.close()
    whole = time.perf_counter() - began
    # Behind the first one come two of five steps each.
    assert 0.01 < whole_run.seconds_per_step(tmp_path) < whole / 10


def test_both_ways_to_gradients_of_kernels_are_timed(small_net, capsys):
    """Those in groups, and of the stem's large kernel, have but one."""
    small = ["--image_size=16", "--batch_size=2", "--rounds=1"]
    kernel_gradients.main(["--model=resnet_tiny", *small])
    table, total = capsys.readouterr().out.split("all as convolutions: ")
    assert "3 x 3 x 8 x 8" in table
    assert float(total.split()[0]) > 0
    net = ResNet(stage_sizes=(1,), width=32, groups=32, base_width=4)
    kernels = [
        call.kernel for call in kernel_gradients.calls_of(net, (2, 32, 32, 3))
    ]
    assert [kernel[:2] for kernel in kernels] == [(1, 1)] * 3


# Answers a line with the seconds of a step, and ends after so many.
WAITS = """
import os, sys
for _, line in zip(range(4), sys.stdin):
    print(os.environ["SECONDS"], flush=True)
sys.exit(3)
"""


def waiting_side(words):
    """Returns a `Side` whose process takes steps of a length that is told."""
    side = turns.Side(words, turns.read_options(["--", "--model=resnet_tiny"]))
    assert side.command[-3:-1] == ["--", "--model=resnet_tiny"]
    assert side.command[-1] == "--clip_norm=1"
    side.command = [sys.executable, "-c", WAITS]
    return side


def test_two_processes_take_a_step_each_in_turn():
    options = turns.read_options(["--first=SECONDS=2 --clip_norm=1"])
    with (
        waiting_side(options.first) as first,
        waiting_side(["--clip_norm=1", "SECONDS=3"]) as second,
    ):
        first.warm_up()
        turns.take_turns([first, second], 1)
        assert (first.seconds, second.seconds) == ([2.0], [3.0])
        # It has said why; its status is ours.
        first.process.wait()
        with pytest.raises(SystemExit) as ended:
            first.step()
        assert ended.value.code == 3


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("--first=--batch_size 8", "'8' is neither --flag=value nor VARIABLE"),
        ("--turns=0", "--turns=0: take at least 1"),
    ],
)
def test_turns_refuse_what_they_do_not_know(mistake, told, capsys):
    with pytest.raises(SystemExit):
        turns.read_options([mistake])
    assert told in capsys.readouterr().err


def test_turns_are_compared_one_by_one():
    """The machine was half as fast in the second one, for both."""
    told = turns.described([1.0, 2.0, 1.0], [1.5, 3.0, 1.2])
    assert "the first is 1.50 times as fast (1.20 to 1.50 in 3 turns)" in told


def test_steps_are_taken_when_told_to(small_net, capsys):
    flags = ["--model=resnet_tiny", "--image_size=16", "--batch_size=2"]
    with flagsaver.flagsaver():
        main.FLAGS.unparse_flags()
        turns.serve("train", [*flags, "--freeze=backbone"], "\n\n")
        told = capsys.readouterr()
        assert "what is frozen is random" in told.err
        seconds = told.out.split()
        assert len(seconds) == 2
        assert min(map(float, seconds)) > 0
        with pytest.raises(SystemExit, match="--model=resnetty: unknown"):
            turns.serve("train", ["--model=resnetty"], "\n")
