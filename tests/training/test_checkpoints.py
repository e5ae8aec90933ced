"""What survives a restart, and a broken file."""

import os
import pathlib
import platform
import types

import numpy as np
import pytest
import tensorflow as tf

from resnet_layers import VARIANTS, ResNet
from resnet_layers.weights.names import path_below
from train_loop import UserError
from train_loop.training.checkpoints import VALUE, Checkpoints, Evaluations
from train_loop.training.optimizers import OPTIMIZERS, MomentumSGD
from train_loop.training.update import AVERAGES, Average, Update
from train_loop.workdir import append_json_line

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


class ListModel(tf.keras.Model):
    """Keeps its layers where tf.train.Checkpoint does not find them."""

    def __init__(self):
        super().__init__()
        self.parts = {"body": [tf.keras.layers.Dense(3, name="body")]}

    def build(self, input_shape):
        self.parts["body"][0].build(input_shape)

    def call(self, inputs):
        return self.parts["body"][0](inputs)


def make_parts(make=None):
    if make is None:
        model = ResNet("basic", (1,), 3, width=4, stem="small")
        model.build((None, 8, 8, 3))
    else:
        model = make()
        model.build((None, 5))
    optimizer = MomentumSGD(0.1)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def fill(parts, value):
    for part in parts:
        for variable in part.variables:
            variable.assign(
                tf.cast(tf.fill(variable.shape, value), variable.dtype)
            )


def values(parts):
    return [np.asarray(v) for part in parts for v in part.variables]


@pytest.mark.parametrize("make", [None, ListModel])
def test_checkpoint_holds_everything(tmp_path, make):
    parts = make_parts(make)
    fill(parts, 3)
    checkpoints = Checkpoints(tmp_path, *parts)
    assert checkpoints.restore() == 0
    checkpoints.save(7)
    [(step, prefix)] = checkpoints.list()
    assert step == 7
    keys = [
        key
        for key, _ in tf.train.list_variables(prefix)
        if key.startswith(("model/", "optimizer/"))
    ]
    assert len(keys) == sum(len(part.variables) for part in parts)
    other = make_parts(make)
    assert Checkpoints(tmp_path, *other).restore() == 7
    assert all(np.all(value == 3) for value in values(other))


def save_three(directory):
    parts = make_parts()
    checkpoints = Checkpoints(directory, *parts, warn=pytest.fail)
    for step in (10, 20, 30):
        fill(parts, step)
        checkpoints.save(step)
    return checkpoints.list()


def truncate_data(prefix):
    path = pathlib.Path(f"{prefix}.data-00000-of-00001")
    path.write_bytes(path.read_bytes()[:-100])


def damage_data(prefix):
    path = pathlib.Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)


def remove_data(prefix):
    pathlib.Path(f"{prefix}.data-00000-of-00001").unlink()


def truncate_index(prefix):
    path = pathlib.Path(f"{prefix}.index")
    path.write_bytes(path.read_bytes()[:50])


def empty_index(prefix):
    pathlib.Path(f"{prefix}.index").write_bytes(b"")


DAMAGES = [truncate_data, damage_data, remove_data, truncate_index, empty_index]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_newest_readable_checkpoint_is_restored(tmp_path, damage):
    [(_, newest), *_] = save_three(tmp_path)
    damage(newest)
    parts = make_parts()
    warnings = []
    checkpoints = Checkpoints(tmp_path, *parts, warn=warnings.append)
    assert checkpoints.restore() == 20
    assert all(np.all(value == 20) for value in values(parts))
    [warning] = warnings
    assert "ckpt-30" in warning
    assert "\n" not in warning


def test_all_broken_checkpoints_are_an_error_that_removes_nothing(tmp_path):
    for _, prefix in save_three(tmp_path):
        truncate_data(prefix)
    checkpoints = Checkpoints(tmp_path, *make_parts(), warn=lambda line: None)
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        checkpoints.restore()
    assert len(checkpoints.list()) == 3


def test_list_does_not_depend_on_tensorflows_file(tmp_path):
    save_three(tmp_path)
    (tmp_path / "checkpoint").unlink()
    assert Checkpoints(tmp_path, *make_parts()).restore() == 30


def test_old_checkpoints_are_removed(tmp_path):
    parts = make_parts()
    checkpoints = Checkpoints(tmp_path, *parts, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step)
    assert [step for step, _ in checkpoints.list()] == [3, 2, 1]
    # Also after a restart.
    checkpoints = Checkpoints(tmp_path, *parts, keep=2, best={4: 1}.get)
    checkpoints.save(4)
    checkpoints.remove_old()
    assert [step for step, _ in checkpoints.list()] == [4, 3, 1]
    Checkpoints(tmp_path, *parts, keep=2).remove_old()
    assert [step for step, _ in checkpoints.list()] == [4, 3]


def test_replica_state_belongs_to_its_checkpoint(tmp_path):
    checkpoints, states = Checkpoints(tmp_path, *make_parts()), []
    trainer = types.SimpleNamespace(restore_replica_state=states.append)
    checkpoints.save(10, {"mean": np.ones(2)})
    checkpoints.resume(trainer)
    assert [state["mean"].tolist() for state in states] == [[1, 1]]
    # After a kill during a save, and without its own state.
    checkpoints.save(10)
    checkpoints.resume(trainer)
    assert len(states) == 1


def test_last_checkpoint_can_be_discarded(tmp_path):
    parts = make_parts()
    checkpoints = Checkpoints(tmp_path, *parts)
    checkpoints.save(10)
    checkpoints.save(20)
    assert checkpoints.discard() == 10
    assert not checkpoints.changed_by_others()
    assert [step for step, _ in checkpoints.list()] == [10]
    assert tf.train.latest_checkpoint(tmp_path).endswith("ckpt-10")
    checkpoints.save(20)
    assert Checkpoints(tmp_path, *parts).restore() == 20
    assert [checkpoints.discard(), checkpoints.discard()] == [10, 0]
    assert tf.train.latest_checkpoint(tmp_path) is None


@pytest.mark.slow
def test_files_of_killed_writes_are_removed(tmp_path):
    save_three(tmp_path)
    (tmp_path / "checkpoint").unlink()
    rest = tmp_path / f".unfinished-{platform.node()}-killed"
    rest.mkdir()
    (rest / "ckpt-40.index").touch()
    # Without its index, it is not a checkpoint.
    (tmp_path / "ckpt-40.data-00000-of-00001").touch()
    checkpoints = Checkpoints(tmp_path, *make_parts(), keep=2)
    assert checkpoints.restore() == 30
    checkpoints.save(40)
    checkpoints.remove_old()
    assert [step for step, _ in checkpoints.list()] == [40, 30]
    assert not rest.exists()
    assert Checkpoints(tmp_path, *make_parts()).restore() == 40


@pytest.mark.slow
def test_opening_a_run_keeps_checkpoints_of_another_process(
    tmp_path, monkeypatch
):
    save_three(tmp_path)
    checkpoints = Checkpoints(tmp_path, *make_parts())
    write = checkpoints._checkpoint._write

    def opened_meanwhile(prefix, options=None):
        # TensorFlow writes here first.
        temporary = pathlib.Path(f"{prefix}_temp")
        temporary.mkdir()
        assert Checkpoints(tmp_path, *make_parts()).restore() == 30
        assert temporary.exists()
        return write(prefix, options)

    monkeypatch.setattr(checkpoints._checkpoint, "_write", opened_meanwhile)
    checkpoints.save(40)
    assert Checkpoints(tmp_path, *make_parts()).restore() == 40


def test_checkpoint_is_flushed_before_its_rename(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, *make_parts())
    kept, renamed, fsync = set(), [], os.fsync

    def noted_fsync(descriptor):
        kept.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def replace(source, target):
        renamed.append(pathlib.Path(target).suffix)
        assert pathlib.Path(source).stat().st_ino in kept
        # The names before it are flushed too.
        assert not renamed[1:] or tmp_path.stat().st_ino in kept
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(os, "replace", replace)
        checkpoints.save(10)
    # The index comes last.
    assert renamed == [".data-00000-of-00001", ".index"]
    assert checkpoints.restore() == 10


# Glob patterns of TensorFlow, and other unusual names.
ODD_NAMES = [
    *("br[1]ack", "a*b", "a?b", "a\\b", "[", "{a,b}", "#a", "a%20b"),
    *("a'b\"c", "a\nb", "e\u0301", "-a", "$HOME", "a,b=c"),
]


@pytest.mark.slow
def test_unusual_folder_names_work(tmp_path):
    # A checkpoint with the same prefix, and folders that the patterns match.
    parts = make_parts(ListModel)
    for name in ("br1ack", "axb", "abc"):
        Checkpoints(tmp_path / name, *parts).save(1)
    for step, name in enumerate(ODD_NAMES, start=1):
        fill(parts, step)
        checkpoints = Checkpoints(tmp_path / name, *parts, warn=pytest.fail)
        checkpoints.save(step)
        checkpoints.save(step * 10)
        assert checkpoints.discard() == step
        fill(parts, 0)
        assert checkpoints.restore() == step
        assert all(np.all(value == step) for value in values(parts))


def test_damaged_replica_state_is_skipped(tmp_path):
    warnings = []
    checkpoints = Checkpoints(tmp_path, *make_parts(), warn=warnings.append)
    checkpoints.save(10, {"mean": np.ones(9)})
    [path] = tmp_path.glob("*.npz")
    content = path.read_bytes()
    for damaged in (b"", content[:90], b"?" + content[1:]):
        path.write_bytes(damaged)
        checkpoints.resume(trainer=None)
    assert len(warnings) == 3
    assert all("not bitwise" in warning for warning in warnings)


def test_replicas_start_from_the_same_statistics(tmp_path, two_replicas):
    with two_replicas.scope():
        parts = make_parts()
    checkpoints = Checkpoints(tmp_path, *parts)
    fill(parts, 2)
    checkpoints.save(1)
    fill(parts, 0)
    checkpoints.restore()
    for variable in parts[0].non_trainable_variables:
        for value in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_array_equal(value, tf.fill(value.shape, 2.0))


def test_checkpoints_of_another_process_are_detected(tmp_path):
    parts = make_parts()
    mine = Checkpoints(tmp_path, *parts)
    assert not mine.changed_by_others()
    mine.save(10)
    assert not mine.changed_by_others()
    other = Checkpoints(tmp_path, *parts)
    other.restore()
    # Both are at the same step until one continues.
    assert not other.changed_by_others()
    assert not mine.changed_by_others()
    other.save(20)
    assert not other.changed_by_others()
    assert mine.changed_by_others()


def test_missing_checkpoints_are_detected(tmp_path):
    checkpoints = Checkpoints(tmp_path, *make_parts())
    checkpoints.save(10)
    for path in tmp_path.glob("ckpt-*"):
        path.unlink()
    assert checkpoints.changed_by_others()


class TwoLayers(tf.keras.Model):
    """Two layers with equal shapes, created in either order."""

    def __init__(self, names=("one", "two")):
        super().__init__()
        for name in names:
            setattr(self, name, tf.keras.layers.Dense(3, name=name))

    def build(self, input_shape):
        self.one.build((None, 3))
        self.two.build((None, 3))

    def call(self, inputs):
        return self.two(self.one(inputs))


def numbered(model, optimizer):
    """Assigns distinct values to all variables."""
    for number, variable in enumerate([*model.variables, *optimizer.variables]):
        values = tf.range(tf.size(variable)) + 100 * number
        variable.assign(
            tf.reshape(tf.cast(values, variable.dtype), variable.shape)
        )


def slots_of(model, optimizer):
    """Returns {name without the model's: value}."""
    return {
        variable.name.removeprefix(f"{model.name}_"): np.asarray(variable)
        for variable in optimizer.variables
    }


def write_as_list(directory, model, optimizer, step=5):
    """Writes a checkpoint as earlier versions did."""
    checkpoint = tf.train.Checkpoint(
        model={path_below(model, v): v.value for v in model.variables},
        optimizer=[variable.value for variable in optimizer.variables],
    )
    checkpoint.save_counter.assign_add(1)
    checkpoint.write(str(directory / f"ckpt-{step}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_find_their_slots_whatever_order_layers_have(
    tmp_path, two_replicas, name
):
    def make(names):
        with two_replicas.scope():
            model = TwoLayers(names)
            model.build((None, 3))
            optimizer = OPTIMIZERS[name](0.1, 0.0)
            optimizer.build(model.trainable_variables)
        return model, optimizer

    saved, restored = make(("one", "two")), make(("two", "one"))
    numbered(*saved)
    Checkpoints(tmp_path / "by_path", *saved).save(5)
    write_as_list(tmp_path / "list", *saved)
    expected = slots_of(*saved)
    for folder in ("by_path", "list"):
        fill(restored, 0)
        checkpoints = Checkpoints(
            tmp_path / folder, *restored, warn=pytest.fail
        )
        assert checkpoints.restore() == 5
        slots = slots_of(*restored)
        assert list(slots) != list(expected)
        assert slots.keys() == expected.keys()
        for slot, value in slots.items():
            np.testing.assert_array_equal(value, expected[slot], err_msg=slot)


@pytest.mark.slow
def test_earlier_run_finds_its_slots_and_keeps_them(tmp_path):
    folder = FIXTURES / "format_1/run/checkpoints"
    reader = tf.train.load_checkpoint(str(folder / "ckpt-240"))
    model = VARIANTS["resnet_tiny"](num_classes=10)
    model.build((None, 16, 16, 3))
    model.freeze("stage1")
    optimizer = MomentumSGD(lambda: 0.1)
    optimizer.build(model.trainable_variables)
    average = Average(model, AVERAGES["ema"](0.9, 240))
    parts = [model, optimizer, Update(average=average)]
    checkpoints = Checkpoints(folder, *parts, warn=pytest.fail)
    assert checkpoints.restore() == 240
    assert int(optimizer.iterations.numpy()) == 240

    def assert_restored():
        # The variables of the earlier version, in its order.
        assert len(optimizer.variables) == 27
        for number, variable in enumerate(optimizer.variables):
            value = reader.get_tensor(f"optimizer/{number}/{VALUE}")
            np.testing.assert_array_equal(variable, value)

    assert_restored()
    Checkpoints(tmp_path, *parts).save(241)
    keys = dict(tf.train.list_variables(str(tmp_path / "ckpt-241")))
    assert f"optimizer/velocity.Shead.Skernel/{VALUE}" in keys
    assert f"optimizer/iteration/{VALUE}" in keys
    fill(parts[:2], 0)
    assert Checkpoints(tmp_path, *parts).restore() == 241
    assert_restored()


def test_variables_with_equal_paths_are_rejected(tmp_path):
    class Twins(ListModel):
        def __init__(self):
            super().__init__()
            self.parts["body"].append(tf.keras.layers.Dense(3, name="body"))

        def build(self, input_shape):
            for layer in self.parts["body"]:
                layer.build(input_shape)

    with pytest.raises(ValueError, match="different names"):
        Checkpoints(tmp_path, *make_parts(Twins))


@pytest.fixture
def evaluations(tmp_path):
    """Returns a function: (metric, values of every tenth step) -> records."""

    def write(metric, values, **options):
        path = tmp_path / "metrics.jsonl"
        path.unlink(missing_ok=True)
        for number, value in enumerate(values, start=1):
            for split in ("train", "eval"):
                record = {"step": 10 * number, "split": split, metric: value}
                append_json_line(path, record)
        return Evaluations(path, metric, **options)

    return write


@pytest.mark.parametrize(
    ("metric", "values", "step", "later"),
    [
        ("accuracy", [0.5, 0.7, 0.6], 20, 1),
        ("loss", [2.0, 1.0, 1.5, 3.0], 20, 2),
        ("ema_accuracy", [0.1, 0.2, 0.3], 30, 0),
        # Equal is not better.
        ("accuracy", [0.5, 0.5, 0.5], 10, 2),
    ],
)
def test_best_evaluation_is_found(evaluations, metric, values, step, later):
    found = evaluations(metric, values)
    last = 10 * len(values)
    assert found.best_step() == found.best_step(last) == step
    assert found.best_step(10) == 10
    assert found.has(10)
    assert not found.has(15)
    for patience in range(1, 4):
        found = evaluations(metric, values, patience=patience)
        assert found.have_stopped_improving(last) == (later >= patience)


def test_run_without_evaluations_has_no_best(evaluations):
    found = evaluations("loss", [], patience=1)
    assert found.best_step() is None
    assert not found.have_stopped_improving(10)


@pytest.mark.parametrize(("begin", "later"), [(0, 3), (20, 2), (40, 0)])
def test_evaluations_count_from_a_step_on(evaluations, begin, later):
    losses = [1.0, 2.0, 3.0, 1.5]
    for patience in range(1, 5):
        found = evaluations("loss", losses, patience=patience, begin=begin)
        assert found.have_stopped_improving(40) == (later >= patience)
