"""The mode `benchmark`, on a tiny model."""

import json
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from samples import ALONE, together

from resnet_layers import BatchNormalization, PaddedConv2D
from resnet_layers.normalization import foldable_batch_norms
from train_loop import Settings
from train_loop.benchmark import machine, tasks
from train_loop.benchmark.machine import Limits
from train_loop.benchmark.model_costs import graph_of
from train_loop.benchmark.tasks import TASKS, Task
from train_loop.builders.model import build_classifier
from train_loop.errors import UserError
from train_loop.modes import benchmark
from train_loop.resolve import resolve

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
    """Shortens the measurements of the machine and the warm-up."""
    monkeypatch.setattr(benchmark, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(machine, "LARGEST_MATRIX", 1024)
    monkeypatch.setattr(machine, "SECONDS_PER_MEASUREMENT", 0.001)
    monkeypatch.setattr(machine, "REPETITIONS", 1)
    monkeypatch.setattr(machine, "BYTES", {"CPU": 2**20})


def check(found, name):
    """Asserts that the numbers of a task are consistent."""
    numbers = found[name]
    rates, steps = numbers["images_per_second"], numbers["step_seconds"]
    assert rates["mean"] * numbers["seconds"] == pytest.approx(
        numbers["images"]
    )
    assert numbers["images"] == 4 * numbers["steps"]
    assert 0 < rates["p10"] <= rates["median"] <= rates["p90"]
    assert 0 < steps["p10"] <= steps["median"] <= steps["p90"]
    assert 0 <= (numbers["input_wait"] or 0) <= 1
    first = numbers["first_step_seconds"]
    assert first["task"] > 0
    assert numbers["peak_memory_bytes"] > 1e8
    assert numbers["peak_device_memory_bytes"] is None
    least = numbers["roofline"]
    assert least["products_seconds"] == pytest.approx(
        least["flops"] / numbers["limits"]["flops_per_second"]
    )
    parts = least["products_seconds"], least["memory_seconds"]
    # The order of summation causes rounding errors.
    assert max(parts) <= least["least_seconds"] * (1 + 1e-9)
    assert least["least_seconds"] <= sum(parts) * (1 + 1e-9)
    assert least["share"] == pytest.approx(
        least["least_seconds"] / steps["median"]
    )
    assert max(numbers["share_of_flops"], numbers["share_of_bandwidth"]) > 0


@pytest.mark.slow
def test_benchmark_measures_all_tasks(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Batches are prefetched to the devices, as in a run.
    distributing = mock.Mock(wraps=tasks.distribute)
    monkeypatch.setattr(tasks, "distribute", distributing)
    status, out, err = run(
        *SMALL,
        "--strategy=one_device",
        f"--benchmark={','.join(TASKS)}",
        "--benchmark_file=b.json",
    )
    assert status == 0, err
    assert distributing.call_count == 2
    assert "synthetic images, 1 replica(s)" in out
    assert "fraction of the roofline" in out
    found = json.loads((tmp_path / "b.json").read_text())
    for name in TASKS:
        check(found, name)
    # No other files remain.
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    # The forward pass and two gradients, except that of the images.
    ratio = found["train"]["roofline"]["flops"]
    ratio /= found["evaluate"]["roofline"]["flops"]
    assert 2 < ratio < 3
    assert found["train"]["input_wait"] is not None
    assert found["configuration"]["image_size"] == "16"
    assert "dataset" not in found["configuration"]
    # The limits of a task on one device are those of the device.
    limits = found["limits"]["flops_per_second"]["float32"]
    assert limits == found["predict"]["limits"]["flops_per_second"]
    for name in {*TASKS} - {"train"}:
        assert found[name]["first_step_seconds"]["process"] is None
    first = found["train"]["first_step_seconds"]
    assert first["task"] <= first["process"]
    # Flags that change the speed are recorded.
    names = {"loss", "gradient_checkpointing", "deterministic", "fast_paths"}
    assert names <= {*found["configuration"]}


@pytest.mark.slow
def test_benchmark_reads_the_images_of_a_dataset(folder, tmp_path, run):
    """On the two replicas of the test machine."""
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
def test_benchmark_does_not_change_the_run(trained, run, monkeypatch):
    before = contents(trained)
    # An epoch of synthetic images is shorter than one of the run.
    monkeypatch.setattr(tasks, "SYNTHETIC_BATCHES", 1)
    for data in ("real", "synthetic"):
        status, out, err = run(
            "--mode=benchmark",
            f"--workdir={trained}",
            "--benchmark=predict,train",
            f"--benchmark_data={data}",
            "--benchmark_rounds=1",
        )
        assert status == 0, err
        assert f"batch size 6, float32, {data} images" in out
        assert contents(trained) == before


def prediction_of(workdir, **options):
    """Returns the task of predicting on synthetic images."""
    settings = Settings(
        model="resnet_tiny",
        image_size=16,
        batch_size=4,
        strategy="one_device",
        workdir=workdir,
        **options,
    )
    return TASKS["predict"](settings, is_synthetic=True)


@pytest.mark.slow
@pytest.mark.parametrize("fast_paths", [False, True])
def test_fast_paths_are_used_unless_disabled(fast_paths):
    settings = Settings(model="resnet18", fast_paths=fast_paths)
    model = build_classifier(resolve(settings), ["a", "b"]).model
    layers = model._flatten_layers()
    inputs = tf.keras.KerasTensor((None, 8, 8, 64))
    is_fast = {
        BatchNormalization: lambda layer: layer.runs_fused(inputs),
        PaddedConv2D: lambda layer: layer.kernel_products,
    }
    for kind, of_layer in is_fast.items():
        found = [of_layer(each) for each in layers if isinstance(each, kind)]
        assert found == [fast_paths] * 20


def test_new_model_is_timed_like_a_trained_one(tmp_path):
    """TensorFlow would remove zero offsets, and then fuse nothing."""
    model = prediction_of(tmp_path).classifier.model
    for _, norm in foldable_batch_norms(model):
        assert np.all(norm.beta.numpy() != 0)


def test_predict_is_timed_with_folded_norms_by_default(tmp_path):
    types, works = {}, {}
    for folds in (None, False):
        task = prediction_of(tmp_path, fast_paths=folds)
        _, operations = graph_of(task.classifier.model, 16)
        types[folds] = {operation.type for operation in operations}
        works[folds] = task.minimum_work()
    assert not {"FusedBatchNormV3", "Rsqrt"} & types[None]
    assert "Rsqrt" in types[False]
    # The minimum work does not include norms.
    assert works[None] == works[False]


@pytest.mark.parametrize(
    ("flags", "model", "folds"),
    [
        ([], "resnet50", None),
        (["--recipe=cifar_he2015", "--fast_paths=false"], "resnet20", 0),
        (
            ["--dataset=digits", "--benchmark_data=synthetic"],
            "resnet_tiny",
            None,
        ),
    ],
)
def test_model_follows_the_flags(flags, model, folds, run, monkeypatch):
    found = []

    def stop(settings, is_synthetic):
        assert is_synthetic
        found.append((resolve(settings).model, settings.fast_paths))
        raise UserError("stop here")

    monkeypatch.setitem(TASKS, "train", stop)
    assert run("--mode=benchmark", *flags).status == 1
    assert found == [(model, folds)]


def test_limits_are_those_of_the_devices_of_a_task():
    """Two workers have two replicas each; each predicts by itself."""

    def limits(workers, replicas):
        task = Task(None, None, None, workers, replicas, None)
        return task.limits(Limits(2.0, 3.0))

    on_gpus = mock.patch.object(
        tf.config, "list_logical_devices", return_value=["GPU:0", "GPU:1"]
    )
    with on_gpus:
        assert together(lambda w: limits(w, 4)) == [Limits(8.0, 12.0)] * 2
        assert together(lambda w: limits(w, 1)) == [Limits(2.0, 3.0)] * 2
        assert limits(ALONE, 2) == Limits(4.0, 6.0)
        assert limits(ALONE, 1) == Limits(2.0, 3.0)
    # The replicas of a CPU worker share its cores.
    assert limits(ALONE, 2) == Limits(2.0, 3.0)
    assert together(lambda w: limits(w, 4)) == [Limits(4.0, 6.0)] * 2
    assert together(lambda w: limits(w, 1)) == [Limits(2.0, 3.0)] * 2


def contents(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--benchmark=fly"], "--benchmark=fly: unknown. Use one of: train"),
        (
            ["--benchmark_file=/dev/null/b"],
            "--benchmark_file=/dev/null: ",
        ),
        (["--benchmark_data=unreal"], "Use one of: synthetic, real"),
    ],
)
def test_invalid_flags_are_one_line(flags, expected, run):
    status, _, err = run(*SMALL, *flags)
    assert status == 1
    [line] = err.splitlines()
    assert expected in line
