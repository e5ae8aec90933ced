"""Checkpoints: what a run keeps so that it can go on.

The variables of the model, of the optimizer and of what else a trainer
remembers, by name, and nothing else: the order of the data and the augmentation
follow from the step.
"""

import contextlib
import pathlib
import re
import zipfile

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import (
    TrackableObjectGraph,
)

from resnet_layers.weights.runs import readable_prefix
from train_loop.errors import UserError
from train_loop.training.variables import path_below
from train_loop.workdir import folder_aside, put_in_place, written_aside

# What TensorFlow puts behind the name of a variable.
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


class Checkpoints:
    """The checkpoints of a run, the newest few of them kept.

    Args:
      directory: where they are written.
      model: a built Keras model.
      optimizer: a built Keras optimizer.
      memory: {name: variables} of what else there is, see `Trainer.memory`.
      warn: called with a line of text when a checkpoint cannot be read.
      keep: how many to keep.
    """

    def __init__(
        self, directory, model, optimizer, memory=None, *, warn=print, keep=3
    ):
        self.directory = pathlib.Path(directory)
        self.warn = warn
        self.keep = keep
        # Every variable by itself: the walk over attributes that
        # tf.train.Checkpoint does misses layers kept in lists and dicts.
        self._parts = {"model": _by_path(model), **(memory or {})}
        self._optimizer = _by_slot(optimizer, model)
        self._checkpoint = tf.train.Checkpoint(
            optimizer=self._optimizer, **self._parts
        )
        self._seen = self.list()[:1]

    def save(self, step):
        """Writes the checkpoint of a step.

        It appears when the disk has all of it: a kill or a power cut leaves
        the earlier ones as they were.
        """
        # tf.train.CheckpointManager would forget what an earlier process
        # wrote, syncs nothing, and gives the index its name at once.
        self._checkpoint.save_counter.assign_add(1)
        with folder_aside(self.directory) as aside:
            self._checkpoint.write(str(aside / f"ckpt-{step}"))
            index = f"ckpt-{step}.index"
            # It is what makes a checkpoint be there.
            (self.directory / index).unlink(missing_ok=True)
            for path in aside.glob("ckpt-*.data-*"):
                put_in_place(path, self.directory / path.name)
            put_in_place(aside / index, self.directory / index)
        self._seen = self.list()[:1]
        self._tell_others()

    def remove_old(self, spared=None):
        """Removes all but the newest few.

        Not before it is known that the newest will not be taken back.

        Args:
          spared: the step of one that is kept, however old.
        """
        for step, prefix in self.list()[self.keep :]:
            if step != spared:
                self._remove(prefix)
        self._tell_others()

    def save_local_state(self, step, state, workers):
        """Writes what a worker needs to go on from a step between two reports.

        Args:
          step: number of steps taken.
          state: {name: array}, see `Trainer.local_state`.
          workers: a `Workers`.
        """
        with (
            written_aside(self._local_path(step, workers)) as path,
            path.open("wb") as file,
        ):
            np.savez(file, **state)

    def remove_local_states(self, step):
        """Removes what `save_local_state` has written for a step."""
        for path in self.directory.glob(f"ckpt-{step}.local-*"):
            path.unlink()

    def local_state(self, step, workers):
        """Returns what `save_local_state` was given, or None."""
        path = self._local_path(step, workers)
        if not path.is_file():
            return None
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self.warn(
                f"warning: skipping the damaged {path} ({error}): the run "
                "resumes from its checkpoint, but not bitwise identically"
            )
            return None

    def discard(self):
        """Removes the newest checkpoint; returns the step of the one before.

        0 where there was none.
        """
        [(_, newest), *earlier] = self.list()
        self._remove(newest)
        self._seen = earlier[:1]
        self._tell_others()
        return earlier[0][0] if earlier else 0

    def restore(self):
        """Reads the newest checkpoint that can be read.

        Returns:
          Its step, or 0 where there is no checkpoint at all.

        Raises:
          UserError: there are checkpoints, and none of them can be read.
        """
        prefixes = self.list()
        for step, prefix in prefixes:
            try:
                with readable_prefix(prefix) as readable:
                    checkpoint = self._checkpoint
                    slots = self._listed_slots(readable)
                    if slots:
                        checkpoint = tf.train.Checkpoint(
                            optimizer=slots, **self._parts
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
                    f"warning: skipping the broken checkpoint {prefix} "
                    f"({reason[:200]})"
                )
        if prefixes:
            raise UserError(
                f"none of the {len(prefixes)} checkpoints in {self.directory} "
                "can be read; to start again from the beginning, name another "
                "--workdir"
            )
        return 0

    def changed_by_others(self):
        """Tells whether there are newer ones than this object has seen."""
        return self.list()[:1] != self._seen

    def list(self):
        """Returns [(step, path prefix)], newest first."""
        # Not the list that TensorFlow keeps in a file of its own, which can
        # be lost while the checkpoints are still there.
        found = [
            (int(match[1]), str(path.with_suffix("")))
            for path in self.directory.glob("ckpt-*.index")
            if (match := re.fullmatch(r"ckpt-(\d+)\.index", path.name))
        ]
        return sorted(found, reverse=True)

    def _listed_slots(self, prefix):
        """Returns the optimizer's variables in the order of an earlier file.

        Earlier versions stored them as a list. What each of them is, TensorFlow
        has recorded: OPTIMIZER/MODEL_PATH_SLOT.

        Returns:
          [] where the file stores them by name.
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
            if key.startswith("model/")
        }
        flat = {_flat(name): value for name, value in self._optimizer.items()}
        slots = []
        while (key := f"optimizer/{len(slots)}/{VALUE}") in recorded:
            name = recorded[key].partition("/")[2].removeprefix(f"{model}_")
            slots.append(flat[name])
        return slots

    def _local_path(self, step, workers):
        # Removed with the other files of the step.
        name = f"ckpt-{step}.local-{workers.number}-of-{workers.count}.npz"
        return self.directory / name

    def _tell_others(self):
        """Writes down which ones there are, for others' tools."""
        kept = [prefix for _, prefix in reversed(self.list())]
        if not kept:
            (self.directory / "checkpoint").unlink(missing_ok=True)
            return
        # Where there is no room for it, nobody needs it to go on.
        with contextlib.suppress(OSError, tf.errors.ResourceExhaustedError):
            tf.compat.v1.train.update_checkpoint_state(
                str(self.directory), kept[-1], kept
            )

    def _remove(self, prefix):
        # First: without it, what is left is no checkpoint.
        pathlib.Path(f"{prefix}.index").unlink(missing_ok=True)
        for path in self.directory.glob(f"{pathlib.Path(prefix).name}.*"):
            path.unlink()


def _by_path(model):
    """Returns {path below the model: variable}."""
    return _distinct((path_below(v), v.value) for v in model.variables)


def _by_slot(optimizer, model):
    """Returns {"iteration", "learning_rate" or "SLOT/PATH": variable}.

    By position, moving where a layer is made could swap two of one shape.
    """
    # Keras names a slot by the path of its weight: MODEL_LAYER_KERNEL_SLOT.
    paths = {v.path.replace("/", "_") + "_": v for v in model.variables}
    named = []
    for variable in optimizer.variables:
        name = variable.name
        found = [path for path in paths if name.startswith(path)]
        if found:
            path = max(found, key=len)
            name = f"{name.removeprefix(path)}/{path_below(paths[path])}"
        named.append((name, variable.value))
    return _distinct(named)


def _flat(name):
    """Returns a name of `_by_slot` as Keras writes it, without the model's."""
    slot, _, path = name.partition("/")
    return f"{path.replace('/', '_')}_{slot}" if path else name


def _distinct(named):
    """Returns {name: variable}, of all."""
    named = list(named)
    by_name = dict(named)
    if len(by_name) < len(named):
        raise ValueError(
            "Variables cannot be told apart by their paths; give the model's "
            "layers different names."
        )
    return by_name
