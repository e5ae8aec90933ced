"""A run: data, a classifier, a trainer and checkpoints, made from settings."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from resnet_layers import make_config
from train_loop import process
from train_loop.builders.data import (
    check_has_evaluation,
    check_outside_of_images,
    embedding_facts,
    make_batching,
    make_transforms,
    open_data,
)
from train_loop.builders.model import (
    build_classifier,
    check_image_size,
    class_names_of,
    existing_run,
    freeze,
    load_initial_weights,
    unfreeze,
    warn_of_random_weights,
)
from train_loop.builders.phases import Phase
from train_loop.builders.reports import open_reports
from train_loop.builders.training import (
    build_strategy,
    build_trainer,
    check_memory,
    check_steps_left,
    last_frozen_step,
    make_cadence,
    make_checkpoints,
    make_evaluations,
    make_skipped_batches,
    num_steps,
)
from train_loop.data.split import Data
from train_loop.data.transforms import Transforms
from train_loop.errors import UserError
from train_loop.prediction.classifier import Classifier
from train_loop.resolve import locate_weights, resolve, resolve_by_size
from train_loop.settings import Settings
from train_loop.training import loop
from train_loop.training.checkpoints import Checkpoints, Evaluations
from train_loop.training.trainer import Trainer
from train_loop.training.workers import Workers, unshared
from train_loop.workdir import (
    FORMATS,
    Workdir,
    append_json_line,
    read_json_lines,
    write_text,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training run: data, classifier, trainer and checkpoints.

    Build a run with `Run.create` or `Run.open`, not with the constructor.
    Several runs can coexist in one process.

    Args:
      settings: The resolved `Settings`.
      workdir: The `Workdir` that the run writes to.
      data: The `Data` to train and evaluate on.
      transforms: The `Transforms` of the images.
      classifier: The `Classifier`: the model with its preprocessing.
      trainer: The `Trainer`, at the current step of the run.
      evaluations: The `Evaluations` so far.
      checkpoints: The `Checkpoints` of the trainer.

    Example:
        >>> from train_loop import Run, Settings
        >>> run = Run.create(Settings(dataset="photos", workdir="runs/photos"))
        >>> run.train()
        >>> run.evaluate()
        {'loss': 0.21, 'accuracy': 0.94}
    """

    settings: Settings
    workdir: Workdir
    data: Data
    transforms: Transforms
    classifier: Classifier
    trainer: Trainer
    evaluations: Evaluations
    checkpoints: Checkpoints

    @classmethod
    def create(cls, settings: Settings, data: Data | None = None) -> "Run":
        """Returns a new run, or resumes an existing one.

        An existing run starts from its last checkpoint.

        Args:
          settings: `Settings`. Fields that are not set get the value of the
            existing run, of the recipe, or the default. If `workdir` is the
            folder of a run, that run is resumed.
          data: `Data` to use instead of `settings.dataset`.

        Returns:
          A `Run`, ready to train or evaluate.

        Raises:
          UserError: A setting is invalid, or an input is missing or
            unreadable.

        Example:
            >>> settings = Settings(dataset="digits", epochs=5)
            >>> run = Run.create(settings)
            >>> run.batch_size, run.steps
            (64, 112)
        """
        settings = resolve(settings)
        # Several workers must find each other before anything is computed.
        strategy = build_strategy(settings)
        with Workers(strategy).explaining_lost_workers():
            return cls._create(settings, strategy, data)

    @classmethod
    def _create(cls, settings, strategy, data):
        """Returns the run for resolved settings."""
        check_image_size(settings)
        check_memory(settings)
        workdir = Workdir.of(settings.workdir or new_workdir(settings.dataset))
        workdir.check_writable()
        check_outside_of_images(workdir, settings.dataset)
        weights = None
        if settings.weights and not workdir.has_checkpoint:
            # Before the images are prepared, which may take hours.
            weights = locate_weights(settings).path
        if data is None:
            data = open_data(settings, workdir, Workers(strategy))
        check_has_evaluation(settings, data)
        settings = resolve_by_size(settings, data.train.num_examples)
        with strategy.scope():
            classifier = build_classifier(settings, data.class_names)
            if weights is not None:
                names = class_names_of(settings.weights, weights)
                load_initial_weights(weights, settings, classifier, names)
            elif not workdir.has_checkpoint:
                warn_of_random_weights(settings)
            # After the weights are loaded: averages start as a copy of them.
            trainer = build_trainer(settings, data, classifier, strategy)
        evaluations = make_evaluations(settings, data, workdir.metrics)
        checkpoints = make_checkpoints(
            settings, workdir.checkpoints, trainer, evaluations
        )
        checkpoints.resume(trainer)
        check_steps_left(settings, data, trainer.step)
        return cls(
            settings,
            workdir,
            data,
            make_transforms(settings, data),
            classifier,
            trainer,
            evaluations,
            checkpoints,
        )

    @classmethod
    def open(cls, folder: str | os.PathLike[str], **changes: Any) -> "Run":
        """Returns an existing run at its last checkpoint.

        Args:
          folder: Path of the run's folder.
          **changes: Settings to change, such as `epochs=20`. All others keep
            the values of the run.

        Returns:
          A `Run`, ready to train or evaluate.

        Raises:
          UserError: The folder is not a run, or has no checkpoint yet.

        Example:
            >>> run = Run.open("runs/photos", epochs=20)
            >>> run.train()
        """
        existing_run(folder)
        return cls.create(Settings(workdir=os.fspath(folder), **changes))

    def train(self) -> None:
        """Trains to the last step.

        Writes checkpoints, `metrics.jsonl` and TensorBoard files to the run's
        folder. A finished run is left as it is.

        Raises:
          UserError: Another process trains in the folder, an image is
            unreadable, the loss is not finite, or the folder has an
            unsupported format. The progress up to that point is saved, except
            for weights that are not finite.
          StoppedError: A signal requested a stop. The progress is saved.
        """
        workers = self.trainer.workers
        if self.trainer.step > 0 and not self.is_finished:
            self.workdir.check_format()
        with (
            self.workdir.locked()
            if workers.is_chief
            else contextlib.nullcontext(),
            workers.explaining_lost_workers(),
            process.recording_signals(),
        ):
            if self.checkpoints.changed_by_others():
                raise UserError(
                    f"--workdir={self.workdir}: another process has trained "
                    "this run in the meantime. Start again to resume from its "
                    "last checkpoint."
                )
            if workers.is_chief:
                self._write_settings()
            while not self._train_or_roll_back():
                workers.check_signals()

    def _train_or_roll_back(self):
        """Trains to the end (True) or rolls back to a checkpoint (False)."""
        try:
            with open_reports(
                self, self._evaluation_is_pending, self.is_finished
            ) as report:
                for phase, cadence in self._phases():
                    self._train_phase(phase, cadence, report)
        except loop.DivergedError as error:
            loop.roll_back(
                error,
                self._skipped_batches,
                self._phase.batching.batch_of,
                self.checkpoints,
                self.trainer,
            )
            return False
        return True

    def _train_phase(self, phase, cadence, report):
        try:
            loop.train(
                phase.trainer,
                phase.training_batches(),
                cadence,
                self.checkpoints,
                phase.evaluate,
                self.evaluations,
                report,
            )
        except loop.BatchError as failure:
            error = failure.__cause__
            explained = phase.explain(error)
            if explained is error:
                raise error from error.__cause__
            raise explained from error

    def _phases(self):
        """Yields the remaining phases as (`Phase`, `Cadence`)."""
        first = self._first_cadence
        if self.trainer.step <= first.end and not loop.is_finished(
            self.trainer, first, self.evaluations
        ):
            # A rollback from the second phase arrives here unfrozen.
            freeze(self.settings, self.classifier.model)
            phase = self._phase
            if self.settings.cached_embeddings:
                phase = phase.on_embeddings(
                    self.classifier,
                    embedding_facts(self.settings),
                    self.workdir.embeddings,
                )
            yield phase, first
        if self.last_frozen_step is not None and not self.is_finished:
            print(
                f"Unfreezing the layers of --freeze={self.settings.freeze} "
                f"after step {self.last_frozen_step:,}."
            )
            unfreeze(self.settings, self.classifier.model)
            trainer = self.trainer.retraced()
            phase = dataclasses.replace(self._phase, trainer=trainer)
            yield phase, self.cadence

    @unshared()
    def evaluate(self) -> dict[str, float]:
        """Evaluates the model on the whole evaluation split.

        Every example counts once. With `weight_average`, the metrics of the
        averaged weights are added with a prefix, such as `ema_accuracy`.

        Returns:
          {metric: number}: `loss` in nats per example and `accuracy` from 0
          to 1.

        Raises:
          UserError: The run has no evaluation split, or an image is
            unreadable.

        Example:
            >>> Run.open("runs/photos").evaluate()
            {'loss': 0.21, 'accuracy': 0.94}
        """
        if self.data.evaluation is None:
            raise UserError(
                f"--workdir={self.workdir}: has no evaluation split "
                "(--validation_fraction=0). Start a new run with a larger "
                "--validation_fraction."
            )
        return self._phase.evaluate()

    def history(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns the metrics so far, as in `metrics.jsonl`.

        Returns:
          {"train": {metric: values}, "eval": {metric: values}}, with a float
          array of the same length for each metric of a split, `step` among
          them. A split without records is missing; a metric that a record
          lacks is NaN there.

        Example:
          ```python
          history = Run.open("runs/photos").history()
          plt.plot(history["eval"]["step"], history["eval"]["accuracy"])
          ```
        """
        splits: dict[str, list] = {}
        for record in read_json_lines(self.workdir.metrics):
            splits.setdefault(record.pop("split"), []).append(record)
        return {
            split: {
                name: np.array([each.get(name, np.nan) for each in records])
                for name in dict.fromkeys(itertools.chain(*records))
            }
            for split, records in splits.items()
        }

    def training_batches(self) -> Iterable[Any]:
        """Returns the distributed training batches of the remaining steps.

        Returns:
          An iterable of (images, labels), distributed over the replicas.
        """
        return self._phase.training_batches()

    @property
    def batch_size(self) -> int:
        """Global batch size: examples per step over all replicas."""
        return self.settings.batch_size

    @property
    def steps(self) -> int:
        """Number of training steps of the whole run."""
        return num_steps(self.settings, self.data)

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation, by `keep_best` or else by accuracy.

        None before the first evaluation.
        """
        return self.evaluations.best_step()

    @property
    def last_frozen_step(self) -> int | None:
        """The last step before unfreezing; None without unfreezing."""
        return last_frozen_step(self.settings, self.data)

    @property
    def cadence(self):
        """The `Cadence`: when to report, evaluate, save and stop."""
        return make_cadence(
            self.settings, self.data, self.workdir.path / "train"
        )

    @property
    def changes(self) -> dict[str, tuple[str, str]]:
        """Changed settings as {name: (text before, text now)}.

        Empty for a new run, and after the run has written its settings.
        """
        return Settings.read(self.workdir.flags).changes(self.settings)

    @property
    def is_finished(self) -> bool:
        """Whether training is complete, including the last evaluation."""
        return loop.is_finished(self.trainer, self.cadence, self.evaluations)

    @property
    def _evaluation_is_pending(self):
        cadence = self.cadence
        if self.trainer.step == self.last_frozen_step:
            # Each phase ends with an evaluation, as the run does.
            cadence = self._first_cadence
        return loop.evaluation_is_pending(
            self.trainer, cadence, self.evaluations
        )

    @property
    def _first_cadence(self):
        """The cadence of the first phase, which may be the only one."""
        return self.cadence._replace(phase_end=self.last_frozen_step)

    @property
    def _phase(self):
        """The `Phase` for the layers that are frozen at the moment."""
        batching = make_batching(self.settings)._replace(
            skipped=self._skipped_batches.numbers
        )
        return Phase(self.trainer, self.data, self.transforms, batching)

    @property
    def _skipped_batches(self):
        return make_skipped_batches(self.settings, self.workdir.skipped_batches)

    def _write_settings(self):
        """Writes settings, changes, contents of the data, and the config."""
        changes = self.changes
        if changes:
            append_json_line(
                self.workdir.history,
                {"step": self.trainer.step, "changes": changes},
            )
        self.settings.write(self.workdir.flags)
        contents = json.dumps(self.data.contents)
        write_text(self.workdir.data, contents + "\n")
        is_new, version = self.trainer.step == 0, self.workdir.format_version
        if is_new or version == max(FORMATS):
            self.workdir.write_config(
                make_config(
                    self.settings.model,
                    self.data.class_names,
                    self.settings.preprocessing,
                )
            )


def new_workdir(dataset):
    """Returns the path of a new run's folder, named after the dataset."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    # No characters that are special to shells or TensorFlow, such as brackets.
    name = re.sub(r"[^\w.]+", "-", pathlib.Path(dataset).stem)[:50].strip("-.")
    return f"runs/{name or 'images'}-{now}"
