"""Checkpoints: what a run keeps so that it can go on.

The variables of the model and of the optimizer, by name, and nothing else:
the order of the data and the augmentation follow from the step.
"""

import pathlib
import re
import shutil

import tensorflow as tf

from train_loop.errors import UserError


class Checkpoints:
    """The checkpoints of a run, the newest few of them kept.

    Args:
      directory: where they are written.
      model: a built Keras model.
      optimizer: a built Keras optimizer.
      warn: called with a line of text when a checkpoint cannot be read.
      keep: how many to keep.
    """

    def __init__(self, directory, model, optimizer, warn=print, keep=3):
        self.directory = pathlib.Path(directory)
        self.warn = warn
        self.keep = keep
        # Every variable by itself: the walk over attributes that
        # tf.train.Checkpoint does misses layers kept in lists and dicts.
        self._checkpoint = tf.train.Checkpoint(
            model=_by_path(model),
            optimizer=[variable.value for variable in optimizer.variables],
        )
        self._seen = self.list()[:1]
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(directory), max_to_keep=keep
        )

    def save(self, step):
        """Writes the checkpoint of a step and removes the oldest ones.

        TensorFlow writes beside the final name and renames at the end, so
        that a kill in between leaves the earlier checkpoints as they were.
        """
        self._manager.save(checkpoint_number=step)
        self._seen = self.list()[:1]
        # The manager forgets what an earlier process wrote, once its own file
        # is lost.
        for _, prefix in self.list()[self.keep :]:
            self._remove(prefix)

    def discard(self):
        """Removes the newest checkpoint; returns the step of the one before.

        0 where there was none.
        """
        [(_, newest), *earlier] = self.list()
        self._remove(newest)
        self._seen = earlier[:1]
        return earlier[0][0] if earlier else 0

    def restore(self):
        """Reads the newest checkpoint that can be read.

        Returns:
          Its step, or 0 where there is no checkpoint at all.

        Raises:
          UserError: there are checkpoints, and none of them can be read.
        """
        for unfinished in self.directory.glob("ckpt-*_temp"):
            shutil.rmtree(unfinished)
        prefixes = self.list()
        for step, prefix in prefixes:
            try:
                self._checkpoint.restore(prefix).assert_consumed()
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

    def _remove(self, prefix):
        for path in self.directory.glob(f"{pathlib.Path(prefix).name}.*"):
            path.unlink()


def _by_path(model):
    """Returns {path below the model: variable}."""
    by_path = {
        variable.path.partition("/")[2]: variable.value
        for variable in model.variables
    }
    if len(by_path) < len(model.variables):
        raise ValueError(
            "Variables cannot be told apart by their paths; give the model's "
            "layers different names."
        )
    return by_path
