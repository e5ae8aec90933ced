"""The mode that measures, on a net that takes no time."""

import json

import pytest
from samples import SMALL_FLAGS

from train_loop.speed import machine
from train_loop.timing import TASKS

pytestmark = pytest.mark.usefixtures("small_net", "small_machine")

SMALL = (
    "--mode=benchmark",
    "--model=resnet_tiny",
    "--image_size=16",
    "--batch_size=4",
    "--benchmark_rounds=2",
)


@pytest.fixture
def small_machine(monkeypatch):
    """Measures the machine with next to nothing."""
    monkeypatch.setattr(machine, "LARGEST_MATRIX", 1024)
    monkeypatch.setattr(machine, "SECONDS_PER_CALL", 0.001)
    monkeypatch.setattr(machine, "ROUNDS", 1)
    monkeypatch.setattr(machine, "BYTES", {"CPU": 2**20})


def check(found, name):
    """Asserts that the numbers of a task belong together."""
    numbers, limits = found[name], found["limits"]
    rates, steps = numbers["images_per_second"], numbers["step_seconds"]
    assert rates["mean"] * numbers["seconds"] == pytest.approx(
        numbers["images"]
    )
    assert numbers["images"] == 4 * numbers["steps"]
    assert 0 < rates["p10"] <= rates["median"] <= rates["p90"]
    assert 0 < steps["p10"] <= steps["median"] <= steps["p90"]
    assert 0 <= (numbers["input_wait"] or 0) <= 1
    first = numbers["first_step_seconds"]
    assert 0 < first["build"] <= first["process"]
    assert numbers["peak_memory_bytes"] > 1e8
    assert numbers["peak_device_memory_bytes"] is None
    least = numbers["roofline"]
    assert least["products_seconds"] == pytest.approx(
        least["flops"] / limits["flops_per_second"]["float32"]
    )
    parts = least["products_seconds"], least["memory_seconds"]
    # Sums of many numbers, in two orders.
    assert max(parts) <= least["least_seconds"] * (1 + 1e-9)
    assert least["least_seconds"] <= sum(parts) * (1 + 1e-9)
    assert least["share"] == pytest.approx(
        least["least_seconds"] / steps["median"]
    )
    assert max(numbers["share_of_flops"], numbers["share_of_bandwidth"]) > 0


def test_benchmark_measures_all_that_a_model_does(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(
        *SMALL,
        "--strategy=one_device",
        f"--benchmark={','.join(TASKS)}",
        "--benchmark_file=b.json",
    )
    assert status == 0, err
    assert "synthetic images, 1 replica(s)" in out
    assert "share of the roofline" in out
    found = json.loads((tmp_path / "b.json").read_text())
    for name in TASKS:
        check(found, name)
    # Nothing else is left behind.
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    # Forward, and two gradients, but for that of the images.
    ratio = found["train"]["roofline"]["flops"]
    ratio /= found["evaluate"]["roofline"]["flops"]
    assert 2 < ratio < 3
    assert found["train"]["input_wait"] is not None
    assert found["configuration"]["image_size"] == "16"
    assert "dataset" not in found["configuration"]


@pytest.mark.slow
def test_benchmark_reads_the_images_that_are_named(folder, tmp_path, run):
    """On two replicas, which is what there are here."""
    status, out, err = run(
        *SMALL,
        f"--dataset={folder}",
        "--benchmark=train,evaluate,predict",
        f"--benchmark_file={tmp_path / 'b.json'}",
    )
    assert status == 0, err
    assert "real images, 2 replica(s)" in out
    found = json.loads((tmp_path / "b.json").read_text())
    for name in TASKS:
        check(found, name)
    assert found["configuration"]["dataset"] == str(folder)


@pytest.mark.slow
def test_benchmark_of_a_run_leaves_it_as_it_is(folder, workdir, run):
    new = (f"--dataset={folder}", "--steps=1", *SMALL_FLAGS)
    assert run(f"--workdir={workdir}", *new).status == 0
    before = contents(workdir)
    for data in ("real", "synthetic"):
        status, out, err = run(
            "--mode=benchmark",
            f"--workdir={workdir}",
            "--benchmark=predict,train",
            f"--benchmark_data={data}",
            "--benchmark_rounds=1",
        )
        assert status == 0, err
        assert f"batches of 6, float32, {data} images" in out
        assert contents(workdir) == before


def contents(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--benchmark=fly"], "--benchmark=fly is unknown. It takes: train"),
        (["--benchmark_file=/dev/null/b"], "--benchmark_file=/dev/null cannot"),
        (["--benchmark_data=unreal"], "takes: synthetic, real"),
    ],
)
def test_what_cannot_be_measured_is_one_line(given, expected, run):
    status, _, err = run(*SMALL, *given)
    assert status == 1
    [line] = err.splitlines()
    assert expected in line
