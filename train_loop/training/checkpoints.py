"""Checkpoints: the state from which a run resumes.

They hold the variables of the model, the optimizer and its update, by path, and
nothing else: the order of the data and the augmentation follow from the step.
"""

import contextlib
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import (
    TrackableObjectGraph,
)

from resnet_layers.weights.files import (
    AVERAGE,
    CHECKPOINT,
    MODEL,
    list_checkpoints,
    readable_prefix,
)
from resnet_layers.weights.names import path_below
from train_loop.errors import UserError
from train_loop.training.workers import Workers, unshared
from train_loop.workdir import (
    append_json_line,
    atomic_write,
    move_synced,
    read_json_lines,
    temporary_folder,
)

# Metric of an evaluation -> whether a larger value is better.
MORE_IS_BETTER = {
    "accuracy": True,
    "loss": False,
    "ema_accuracy": True,
    "ema_loss": False,
    "swa_accuracy": True,
    "swa_loss": False,
}

# The other parts of a checkpoint, and TensorFlow's suffix of a variable's name.
OPTIMIZER, LOSS_SCALE = "optimizer", "loss_scale"
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


class Checkpoints:
    """The checkpoints of a run, of which the newest few are kept.

    All workers call `resume`, `save`, `discard` and `remove_old` together; the
    chief writes.

    Args:
      directory: folder of the checkpoints.
      model: a built Keras model.
      optimizer: a built Keras optimizer.
      update: `Update` whose average and loss scale are saved, or None.
      workers: the `Workers` that train together; by default a single one.
      warn: called with a line of text if a checkpoint cannot be read.
      keep: number of checkpoints to keep.
      best: maps the newest step to that of the best checkpoint, which is kept
        too, or to None.
    """

    def __init__(
        self,
        directory,
        model,
        optimizer,
        update=None,
        *,
        workers=None,
        warn=print,
        keep=3,
        best=lambda step: None,
    ):
        self.directory = pathlib.Path(directory)
        self.workers = workers or Workers(tf.distribute.get_strategy())
        self.warn = warn
        self.keep = keep
        self.best = best
        # Each variable by its path: tf.train.Checkpoint follows attributes, and
        # misses layers in lists and dicts.
        self._parts = {MODEL: _by_path(model)}
        if update and update.average is not None:
            self._parts[AVERAGE] = update.average.by_path
        if update and update.loss_scale is not None:
            self._parts[LOSS_SCALE] = update.loss_scale.variables
        self._optimizer = _by_slot(optimizer, model)
        self._checkpoint = self._with_slots(self._optimizer)
        self._seen = self.list()[:1]

    def save(self, step, replica_state=None):
        """Writes the checkpoint of a step.

        It appears once all of it is on the disk: a kill or a power cut leaves
        the earlier ones unchanged.

        Args:
          step: number of steps taken.
          replica_state: {name: array} to resume this worker from a step between
            two reports, see `Trainer.replica_state`.

        Raises:
          SharedError: one of the workers could not write.
        """
        with self.workers.agreeing():
            if self.workers.is_chief:
                # A killed run may have left the state of this step.
                for path in self.directory.glob(
                    f"{CHECKPOINT.format(step)}.local-*"
                ):
                    path.unlink()
        with self.workers.agreeing():
            if replica_state:
                self._write_replica_state(step, replica_state)
        with self.workers.agreeing():
            if self.workers.is_chief:
                self._write(step)

    def discard(self):
        """Removes the newest checkpoint; returns the previous step, or 0."""
        step = 0
        with self.workers.agreeing():
            if self.workers.is_chief:
                [(_, newest), *earlier] = self.list()
                self._remove(newest)
                self._seen = earlier[:1]
                self._write_list()
                step = earlier[0][0] if earlier else 0
        return round(self.workers.from_chief(step))

    def remove_old(self):
        """Removes all checkpoints but the newest few and the best one.

        Call it once the newest one will not be discarded.
        """
        with self.workers.agreeing():
            found = self.list()
            if not (self.workers.is_chief and found):
                return
            best = self.best(found[0][0])
            for step, prefix in found[self.keep :]:
                if step != best:
                    self._remove(prefix)
            self._write_list()

    @unshared()
    def resume(self, trainer):
        """Restores a trainer from the newest checkpoint, if there is one.

        Raises:
          UserError: no checkpoint can be read, or workers find different ones.
        """
        with self.workers.agreeing():
            step = self.restore()
        is_same = step == self.workers.from_chief(step)
        with self.workers.agreeing():
            if not is_same:
                raise UserError(
                    f"{self.directory}: worker {self.workers.number} finds the "
                    f"checkpoint of step {step}, and the first worker another "
                    "one. Use the same --workdir for all workers, on a shared "
                    "disk."
                )
            state = self._replica_state(step)
        # On all workers or on none: the states belong together.
        if self.workers.all(state is not None):
            trainer.restore_replica_state(state)

    def restore(self):
        """Reads the newest checkpoint that can be read.

        Returns:
          Its step; 0 without any checkpoint.

        Raises:
          UserError: none of the checkpoints can be read.
        """
        prefixes = self.list()
        for step, prefix in prefixes:
            try:
                with readable_prefix(prefix) as readable:
                    listed = self._listed_slots(readable)
                    checkpoint = (
                        self._with_slots(listed) if listed else self._checkpoint
                    )
                    checkpoint.restore(readable).assert_consumed()
                return step
            except (
                tf.errors.OpError,
                AssertionError,
                ValueError,
                LookupError,
            ) as error:
                reason = str(error).strip().splitlines()[0]
                self.warn(
                    f"warning: {prefix}: broken checkpoint, skipped "
                    f"({reason[:200]})."
                )
        if prefixes:
            raise UserError(
                f"{self.directory}: none of the {len(prefixes)} checkpoints "
                "can be read. Restore one from a backup, or start a new run in "
                "another --workdir."
            )
        return 0

    def changed_by_others(self):
        """Tells whether another process has written a newer checkpoint."""
        return self.list()[:1] != self._seen

    def list(self):
        """Returns [(step, path prefix)], newest first."""
        found = list_checkpoints(self.directory)
        return [(step, str(prefix)) for step, prefix in found]

    def _with_slots(self, slots):
        return tf.train.Checkpoint(**{**self._parts, OPTIMIZER: slots})

    def _listed_slots(self, prefix):
        """Returns the optimizer's variables in the order of an earlier file.

        Earlier versions stored them as a list, with the names that TensorFlow
        recorded: OPTIMIZER/MODEL_PATH_SLOT. [] for later versions.
        """
        reader = tf.train.load_checkpoint(prefix)
        graph = TrackableObjectGraph.FromString(
            reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
        )
        recorded = {
            attribute.checkpoint_key: attribute.full_name
            for node in graph.nodes
            for attribute in node.attributes
        }
        [model] = {
            name.partition("/")[0]
            for key, name in recorded.items()
            if key.startswith(f"{MODEL}/")
        }
        flat = {_flat(name): value for name, value in self._optimizer.items()}
        slots = []
        while (key := f"{OPTIMIZER}/{len(slots)}/{VALUE}") in recorded:
            name = recorded[key].partition("/")[2].removeprefix(f"{model}_")
            slots.append(flat[name])
        return slots

    def _write(self, step):
        # tf.train.CheckpointManager ignores checkpoints of earlier processes,
        # does not flush files, and writes the index in place.
        self._checkpoint.save_counter.assign_add(1)
        name = CHECKPOINT.format(step)
        with temporary_folder(self.directory) as folder:
            self._checkpoint.write(str(folder / name))
            index = f"{name}.index"
            # A checkpoint exists if its index does.
            (self.directory / index).unlink(missing_ok=True)
            for path in folder.glob(f"{name}.data-*"):
                move_synced(path, self.directory / path.name)
            move_synced(folder / index, self.directory / index)
        self._seen = self.list()[:1]
        self._write_list()

    def _local_path(self, step):
        # Removed with the other files of the step.
        worker = f"{self.workers.number}-of-{self.workers.count}"
        return self.directory / f"{CHECKPOINT.format(step)}.local-{worker}.npz"

    def _write_replica_state(self, step, state):
        with (
            atomic_write(self._local_path(step)) as path,
            path.open("wb") as file,
        ):
            np.savez(file, **state)

    def _replica_state(self, step):
        """Returns the state of this worker at a step, or None."""
        path = self._local_path(step)
        if not path.is_file():
            return None
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self.warn(
                f"warning: {path}: damaged, skipped ({error}). The run resumes "
                "from its checkpoint, but not bitwise identically."
            )
            return None

    def _write_list(self):
        """Writes the list of checkpoints that TensorFlow's tools read."""
        kept = [prefix for _, prefix in reversed(self.list())]
        if not kept:
            (self.directory / "checkpoint").unlink(missing_ok=True)
            return
        # A full disk is no problem: resuming does not read it.
        with contextlib.suppress(OSError, tf.errors.ResourceExhaustedError):
            tf.compat.v1.train.update_checkpoint_state(
                str(self.directory), kept[-1], kept
            )

    def _remove(self, prefix):
        # First: without it, the other files are not a checkpoint.
        pathlib.Path(f"{prefix}.index").unlink(missing_ok=True)
        for path in self.directory.glob(f"{pathlib.Path(prefix).name}.*"):
            path.unlink()


class Evaluations(NamedTuple):
    """The evaluations of a run: the best one, and early stopping.

    Read from the run's records at every call, so that a restart changes
    nothing. `path` is that of `metrics.jsonl`; `metric`, a name in
    `MORE_IS_BETTER`, determines the best one. Training stops after `patience`
    evaluations in a row without improvement; None for never. Only evaluations
    after the step `begin` count.
    """

    path: pathlib.Path
    metric: str = "accuracy"
    patience: int | None = None
    begin: int = 0

    def up_to(self, step=None):
        """Returns the records of evaluations, in order; all by default."""
        return [
            record
            for record in read_json_lines(self.path)
            if record["split"] == "eval"
            and (step is None or record["step"] <= step)
        ]

    def has(self, step):
        """Tells whether a step was evaluated."""
        return step in [record["step"] for record in self.up_to(step)]

    def best_step(self, step=None):
        """Returns the step of the best evaluation, the first of equal ones.

        None without an evaluation.
        """
        records = self.up_to(step)
        if not records:
            return None
        sign = 1 if MORE_IS_BETTER[self.metric] else -1
        return max(records, key=lambda r: sign * r[self.metric])["step"]

    def have_stopped_improving(self, step):
        """Tells whether `patience` evaluations followed the best one."""
        if self.patience is None:
            return False
        steps = [record["step"] for record in self.up_to(step)]
        since = max(self.begin, self.best_step(step) or 0)
        return sum(step > since for step in steps) >= self.patience


class SkippedBatches(NamedTuple):
    """The batches that training skips, one record per rollback.

    Args:
      path: path of the JSON lines file.
      limit: maximum number of rollbacks; 0 for none.
    """

    path: pathlib.Path
    limit: int = 0

    def records(self):
        """Returns {"step": ..., "batches": [...]} of each rollback."""
        return read_json_lines(self.path)

    @property
    def numbers(self):
        """The numbers of all skipped batches, from 0."""
        batches = [number for r in self.records() for number in r["batches"]]
        return tuple(dict.fromkeys(batches))

    def add(self, step, numbers):
        """Appends the record of a rollback."""
        append_json_line(self.path, {"step": step, "batches": numbers})


def _by_path(model):
    """Returns {path below the model: variable}."""
    return _distinct((path_below(model, v), v.value) for v in model.variables)


def _by_slot(optimizer, model):
    """Returns {"iteration", "learning_rate" or "SLOT/PATH": variable}.

    By position, a layer created elsewhere could swap two of the same shape.
    """
    # Keras names a slot by the path of its weight: MODEL_LAYER_KERNEL_SLOT.
    paths = {v.path.replace("/", "_") + "_": v for v in model.variables}
    named = []
    for variable in optimizer.variables:
        name = variable.name
        found = [path for path in paths if name.startswith(path)]
        if found:
            path = max(found, key=len)
            slot = name.removeprefix(path)
            name = f"{slot}/{path_below(model, paths[path])}"
        named.append((name, variable.value))
    return _distinct(named)


def _flat(name):
    """Returns a name of `_by_slot` as Keras writes it, without the model."""
    slot, _, path = name.partition("/")
    return f"{path.replace('/', '_')}_{slot}" if path else name


def _distinct(named):
    """Returns {name: variable}; names must be distinct."""
    named = list(named)
    by_name = dict(named)
    if len(by_name) < len(named):
        raise ValueError(
            "Variables cannot be told apart by their paths; give the model's "
            "layers different names."
        )
    return by_name
