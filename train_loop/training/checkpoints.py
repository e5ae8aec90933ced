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

from resnet_layers.weights.runs import readable_prefix
from train_loop.errors import UserError
from train_loop.training.variables import path_below
from train_loop.workdir import folder_aside, put_in_place, written_aside


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
        self._checkpoint = tf.train.Checkpoint(
            model=_by_path(model),
            optimizer=[variable.value for variable in optimizer.variables],
            **(memory or {}),
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
                    self._checkpoint.restore(readable).assert_consumed()
                return step
            except (
                tf.errors.OpError,
                AssertionError,
                ValueError,
                IndexError,
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
    by_path = {
        path_below(variable): variable.value for variable in model.variables
    }
    if len(by_path) < len(model.variables):
        raise ValueError(
            "Variables cannot be told apart by their paths; give the model's "
            "layers different names."
        )
    return by_path
