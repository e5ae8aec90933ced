"""A run: data, a classifier, a trainer and checkpoints, made from settings."""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import re

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
from train_loop.resolve import locate_weights, resolve
from train_loop.settings import Settings
from train_loop.training import loop
from train_loop.training.checkpoints import Checkpoints, Evaluations
from train_loop.training.trainer import Trainer
from train_loop.training.workers import Workers, unshared
from train_loop.workdir import (
    FORMATS,
    Workdir,
    append_json_line,
    write_text,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training run and all its parts.

        run = Run.create(Settings(dataset="photos", workdir="runs/photos"))
        run.train()
        run.evaluate()  # -> {"loss": ..., "accuracy": ...}

    Two runs in one process do not know of each other. `Run.create` and
    `Run.open` build one.

    Args:
      settings: resolved `Settings`.
      workdir: the `Workdir` that it writes to.
      data: what it trains and evaluates on, a `Data`.
      transforms: what is done to the images, `Transforms`.
      classifier: the model with its preprocessing, a `Classifier`.
      trainer: a `Trainer`, at the step that the run is at.
      evaluations: its `Evaluations` so far.
      checkpoints: `Checkpoints` of the trainer.
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
    def create(cls, settings, data=None):
        """Returns a new run, or an existing one at its last checkpoint.

        Args:
          settings: `Settings`; what they leave open is resolved here. Those
            with the `workdir` of an existing run resume it.
          data: a `Data` in place of what the settings name.

        Raises:
          UserError: something of it is not possible, or not to be had.
        """
        settings = resolve(settings)
        # Several workers must find each other before anything is computed.
        strategy = build_strategy(settings)
        with Workers(strategy).explaining_lost_workers():
            return cls._create(settings, strategy, data)

    @classmethod
    def _create(cls, settings, strategy, data):
        """Returns the run of resolved settings."""
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
        with strategy.scope():
            classifier = build_classifier(settings, data.class_names)
            if weights is not None:
                names = class_names_of(settings.weights, weights)
                load_initial_weights(weights, settings, classifier, names)
            elif not workdir.has_checkpoint:
                warn_of_random_weights(settings)
            # Its averages begin as these weights.
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
    def open(cls, folder, **changes):
        """Returns an existing run, at its last checkpoint.

        Args:
          folder: of the run.
          **changes: settings that are to be others than the run's own.

        Raises:
          UserError: it is no run, or has no checkpoint yet.
        """
        existing_run(folder)
        return cls.create(Settings(workdir=folder, **changes))

    def train(self):
        """Trains to the last step, and writes all that a run leaves behind.

        Raises:
          UserError: another process trains in the folder, an image cannot be
            read, the loss is not finite any more, or another format of the
            folder computes otherwise. What was learned before is saved.
          StoppedError: a signal asked to stop; the same holds.
        """
        workers = self.trainer.workers
        if self.trainer.step > 0 and not self.is_finished:
            self.workdir.check_format()
        locked = contextlib.nullcontext
        if workers.is_chief:
            locked = self.workdir.locked
        with (
            locked(),
            workers.explaining_lost_workers(),
            process.recording_signals(),
        ):
            if self.checkpoints.changed_by_others():
                raise UserError(
                    f"another process has trained in {self.workdir} in the "
                    "meantime; start again to go on from there"
                )
            if workers.is_chief:
                self._write_settings()
            while not self._reaches_the_end():
                workers.check_signals()

    def _reaches_the_end(self):
        """Trains, to the end or until it rolls back to a checkpoint."""
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
        """Yields what is left to train: a `Phase` and its `Cadence` each."""
        first = self._first_cadence
        if self.trainer.step <= first.end and not loop.is_finished(
            self.trainer, first, self.evaluations
        ):
            # It may have rolled back to it.
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
            print(f"Thawed: --freeze={self.settings.freeze} is over.")
            unfreeze(self.settings, self.classifier.model)
            trainer = self.trainer.retraced()
            phase = dataclasses.replace(self._phase, trainer=trainer)
            yield phase, self.cadence

    @unshared()
    def evaluate(self):
        """Returns {metric: number} for the whole evaluation split.

        Where the run keeps averages of the weights, theirs stand beside, as
        "ema_accuracy" and so on.

        Raises:
          UserError: there is none, or an image of it cannot be read.
        """
        if self.data.evaluation is None:
            raise UserError(
                f"{self.workdir} trains on everything and evaluates on "
                "nothing (--validation_fraction=0)"
            )
        return self._phase.evaluate()

    def training_batches(self):
        """Returns the distributed training batches of the steps to come."""
        return self._phase.training_batches()

    @property
    def batch_size(self):
        """Examples per step, over all replicas."""
        return self.settings.batch_size

    @property
    def steps(self):
        """The last step."""
        return num_steps(self.settings, self.data)

    @property
    def last_frozen_step(self):
        """The last step with frozen parts; None if they stay frozen."""
        return last_frozen_step(self.settings, self.data)

    @property
    def cadence(self):
        """At which steps things happen."""
        return make_cadence(
            self.settings, self.data, self.workdir.path / "train"
        )

    @property
    def changes(self):
        """{name: (text before, text now)} of settings that have changed.

        Empty for a new run, and once the run has written its settings.
        """
        return Settings.read(self.workdir.flags).changes(self.settings)

    @property
    def is_finished(self):
        """Whether nothing is left to do."""
        return loop.is_finished(self.trainer, self.cadence, self.evaluations)

    @property
    def _evaluation_is_pending(self):
        cadence = self.cadence
        if self.trainer.step == self.last_frozen_step:
            # A phase ends with an evaluation, as the run does.
            cadence = self._first_cadence
        return loop.evaluation_is_pending(
            self.trainer, cadence, self.evaluations
        )

    @property
    def _first_cadence(self):
        """The cadence of the first phase, perhaps the only one."""
        return self.cadence._replace(phase_end=self.last_frozen_step)

    @property
    def _phase(self):
        """All that is trained, as the layers are frozen now."""
        batching = make_batching(self.settings)._replace(
            skipped=self._skipped_batches.numbers
        )
        return Phase(self.trainer, self.data, self.transforms, batching)

    @property
    def _skipped_batches(self):
        return make_skipped_batches(self.settings, self.workdir.skipped_batches)

    def _write_settings(self):
        """Writes what the run is made of, and what has changed of it."""
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
    """Returns the path of a new run's folder, named after the data set."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    # What means something to shells or TensorFlow, such as brackets, stays out.
    name = re.sub(r"[^\w.]+", "-", pathlib.Path(dataset).stem)[:50].strip("-.")
    return f"runs/{name or 'images'}-{now}"
