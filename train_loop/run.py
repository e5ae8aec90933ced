"""A run: data, a classifier, a trainer and checkpoints, made from settings."""

import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import re

import tensorflow as tf
import tqdm

from train_loop.builders.data import (
    check_apart,
    check_evaluated,
    make_batching,
    make_transforms,
    open_data,
)
from train_loop.builders.model import (
    build_classifier,
    check_image_size,
    class_names_of,
    evaluations_in,
    existing_run,
    freeze,
    start_from,
    thaw,
    warn_of_random_parts,
)
from train_loop.builders.training import (
    build_strategy,
    build_trainer,
    check_memory,
    check_steps_to_come,
    num_steps,
    steps_per_epoch,
    thaw_step,
)
from train_loop.console import passing_bar
from train_loop.data import batches, cache, check
from train_loop.data.stored import Data
from train_loop.data.transforms import Transforms, Untransformed
from train_loop.errors import UserError, is_full_disk
from train_loop.prediction.classifier import Classifier
from train_loop.resolve import find_given_weights, settle
from train_loop.settings import Settings
from train_loop.training import loop, probe, reports, signals
from train_loop.training.checkpoints import Checkpoints
from train_loop.training.reports import NO_PROFILE, Profile, TensorBoardReport
from train_loop.training.selection import best_step, evaluations_since_best
from train_loop.training.strategies import distribute
from train_loop.training.trainer import Trainer
from train_loop.training.workers import SharedError, Workers, unshared
from train_loop.workdir import (
    Workdir,
    append_json_line,
    read_json_lines,
    write_text,
)

# Among how many batches one that could not be prepared is looked for: a data
# service prepares them ahead, in an order of its own.
BATCHES_AHEAD = 128

# Of several workers. What started them does not wait for long where one ended.
SECONDS_TO_EXPLAIN = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training run and all its parts.

        run = Run.create(Settings(dataset="photos", workdir="runs/photos"))
        run.train()
        run.evaluate()  # -> {"loss": ..., "accuracy": ...}

    Two runs in one process do not know of each other. `Run.create` and
    `Run.open` build one.

    Args:
      settings: settled `Settings`.
      workdir: the `Workdir` that it writes to.
      data: what it trains and evaluates on, a `Data`.
      transforms: what is done to the images, `Transforms`.
      classifier: the model with its preprocessing, a `Classifier`.
      trainer: a `Trainer`, at the step that the run is at.
      checkpoints: `Checkpoints` of model and optimizer.
      until: the last step of a phase of it; None for the whole run.
    """

    settings: Settings
    workdir: Workdir
    data: Data
    transforms: Transforms
    classifier: Classifier
    trainer: Trainer
    checkpoints: Checkpoints
    until: int | None = None

    @classmethod
    def create(cls, settings, data=None):
        """Returns a new run, or one that goes on from its last checkpoint.

        Args:
          settings: `Settings`; what they leave open is settled here. Those
            with the `workdir` of an existing run go on with it.
          data: a `Data` in place of what the settings name.

        Raises:
          UserError: something of it is not possible, or not to be had.
        """
        settings = settle(settings)
        # Several workers must find each other before anything is computed.
        strategy = build_strategy(settings)
        with Workers(strategy).needed():
            return cls._create(settings, strategy, data)

    @classmethod
    def _create(cls, settings, strategy, data):
        """Returns the run of resolved settings."""
        check_image_size(settings)
        check_memory(settings)
        workdir = Workdir.of(settings.workdir or new_workdir(settings.dataset))
        workdir.check_writable()
        check_apart(workdir, settings.dataset)
        weights = None
        if settings.weights and not workdir.has_checkpoint:
            # Before the images are prepared, which may take hours.
            weights = find_given_weights(settings).path
        if data is None:
            data = open_data(settings, workdir, Workers(strategy))
        check_evaluated(settings, data)
        with strategy.scope():
            classifier = build_classifier(settings, data.class_names)
            if weights is not None:
                names = class_names_of(settings.weights, weights)
                start_from(weights, settings, classifier, names)
            elif not workdir.has_checkpoint:
                warn_of_random_parts(settings)
            # Its averages begin as these weights.
            trainer = build_trainer(settings, data, classifier, strategy)
        checkpoints = Checkpoints(
            workdir.checkpoints,
            trainer.model,
            trainer.optimizer,
            trainer.memory,
            keep=settings.keep_checkpoints,
        )
        _restore(checkpoints, trainer)
        check_steps_to_come(settings, data, trainer.step)
        transforms = make_transforms(settings, data)
        return cls(
            settings,
            workdir,
            data,
            transforms,
            classifier,
            trainer,
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
        is_chief = self.trainer.workers.is_chief
        is_new = self.trainer.step == 0
        if not (is_new or self.is_finished):
            self.workdir.check_format()
        locked = self.workdir.locked if is_chief else contextlib.nullcontext
        needed = self.trainer.workers.needed
        with locked(), needed(), signals.noting_signals():
            if self.checkpoints.changed_by_others():
                raise UserError(
                    f"another process has trained in {self.workdir} in the "
                    "meantime; start again to go on from there"
                )
            if is_chief:
                self._keep_history()
                self.settings.write(self.workdir.flags)
                contents = json.dumps(self.data.contents)
                write_text(self.workdir.data, contents + "\n")
                if is_new:
                    self.workdir.write_config()
            while not self._reaches_the_end():
                self.trainer.workers.check_signals()

    def _reaches_the_end(self):
        """Trains, to the end or until it goes back to a checkpoint."""
        try:
            with self._reports() as report:
                for phase in self._phases():
                    loop.train(phase, report)
        except loop.DivergedError as error:
            self._go_back(error)
            return False
        return True

    @unshared()
    def _go_back(self, error):
        """Goes back to the last checkpoint, and leaves out what broke it.

        That is the batch at which it showed, and the one before, which made the
        weights that showed it.

        Raises:
          DivergedError: it is not wanted, not possible, or was in vain.
        """
        most = self.settings.max_rollbacks
        before = len(read_json_lines(self.workdir.left_out))
        if self.settings.on_nonfinite != "rollback" or error.saved == 0:
            raise error
        if before >= most:
            raise UserError(
                f"{error}. It was gone back {before} times already "
                "(--max_rollbacks)"
            ) from error
        steps = [s for s in (error.step - 1, error.step) if s > error.saved]
        batch_of = self._batching.batch_of
        numbers = [batch_of(step - 1) for step in steps]
        workers = self.trainer.workers
        # All have read what was there before the chief writes more.
        workers.meet()
        with workers.agreeing():
            if workers.is_chief:
                record = {"step": error.step, "batches": numbers}
                append_json_line(self.workdir.left_out, record)
        tqdm.tqdm.write(
            f"{error.what} at step {error.step}: going on from the checkpoint "
            f"of step {error.saved}, without the images of step "
            f"{' and '.join(map(str, steps))} (rollback {before + 1} of {most})"
        )
        self.trainer.results("train")
        _restore(self.checkpoints, self.trainer)

    @unshared()
    def evaluate(self):
        """Returns {metric: number} for the whole evaluation split.

        Where the run keeps averages of the weights, theirs stand beside, as
        "ema_accuracy" and so on.

        Raises:
          UserError: there is none, or an image of it cannot be read.
        """
        return self.measure()

    def measure(self):
        """Returns the same as `evaluate`.

        Raises:
          SharedError: an image cannot be read, by one of the workers.
        """
        split = self.data.evaluation
        if split is None:
            raise UserError(
                f"{self.workdir} trains on everything and evaluates on "
                "nothing (--validation_fraction=0)"
            )
        average = self.trainer.update.average
        with self.trainer.aside():
            metrics = self._evaluate(split)
            if average is not None:
                with average.in_place():
                    averaged = self._evaluate(split)
                kind = self.settings.average
                metrics |= {f"{kind}_{name}": v for name, v in averaged.items()}
        return metrics

    def _evaluate(self, split):
        try:
            return loop.evaluate(
                self.trainer,
                self._evaluation_batches(split),
                batches.num_evaluation_steps(
                    split, self.batch_size, self.trainer.workers.context
                ),
            )
        except SharedError as failure:
            # Not yet: the others would wait for it before they save.
            failure.explain = lambda error: check.explain(
                error, split, seconds=self._seconds_to_explain
            )
            raise

    @property
    def batch_size(self):
        """Examples per step, over all replicas."""
        return self.settings.batch_size

    @property
    def steps(self):
        """The last step."""
        return self.until or self.total_steps

    @property
    def total_steps(self):
        """The last step of all phases."""
        return num_steps(self.settings, self.data)

    @property
    def thaws_at(self):
        """The last step with frozen parts; None if they stay frozen."""
        return thaw_step(self.settings, self.data)

    @property
    def cadence(self):
        """After how many steps things happen."""
        epoch = max(round(steps_per_epoch(self.settings, self.data)), 1)
        evaluate_every = self.settings.evaluate_every or epoch
        settings = self.settings
        return loop.Cadence(
            settings.report_every,
            evaluate_every if "eval" in self.data.splits else 0,
            settings.checkpoint_every or min(epoch, 500),
            settings.keep_best != "none" or settings.early_stopping is not None,
        )

    @property
    def profile(self):
        """The steps that are recorded for TensorBoard's profile."""
        steps = self.settings.profile_steps
        if steps is None:
            return NO_PROFILE
        return Profile(steps[0], steps[-1], self.workdir.path / "train")

    def training_batches(self):
        """Returns the distributed training batches of the steps to come."""
        batching, step = self._batching, self.trainer.step
        if self._is_embedded:
            # They are read where they lie.
            batching = batching._replace(data_service=None)
        return distribute(
            self.trainer.strategy,
            lambda context: batches.training_batches(
                self.data.train, self.transforms, batching, step, context
            ),
        )

    @property
    def _batching(self):
        """How training examples become batches, without those left out."""
        records = read_json_lines(self.workdir.left_out)
        left_out = {n for record in records for n in record["batches"]}
        return make_batching(self.settings)._replace(left_out=tuple(left_out))

    @property
    def changes(self):
        """{name: (text before, text now)} of what goes on otherwise.

        Empty for a new run, and once the run has written its settings.
        """
        before, now = Settings.read(self.workdir.flags), self.settings
        if not before.given:
            return {}
        before, now = before.texts(), now.texts()
        return {
            name: (before.get(name), now.get(name))
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        }

    @property
    def owes_evaluation(self):
        """Whether it was stopped between a save and the evaluation there."""
        step = self.trainer.step
        evaluated = [record["step"] for record in self._evaluations]
        # A phase ends with an evaluation, as the run does.
        last = step if step == self.thaws_at else self.steps
        evaluates = self.cadence.stop(step, last).evaluates
        owes = step > 0 and evaluates and step not in evaluated
        return bool(self.trainer.workers.of_chief(owes))

    @property
    def has_stopped_improving(self):
        """Whether it is over by --early_stopping."""
        patience, metric = self.settings.early_stopping, self._judged_by
        if patience is None:
            return False
        # What is thawed has its chance, however little the rest has learned.
        begin = self.thaws_at or 0
        found = evaluations_since_best(self._evaluations, metric, begin)
        # The chief has written the last of them.
        return bool(self.trainer.workers.of_chief(found >= patience))

    @property
    def _evaluations(self):
        """The records of all evaluations up to the step that it is at."""
        # Once, for it is read from a device.
        step = self.trainer.step
        return [
            record
            for record in evaluations_in(self.workdir)
            if record["step"] <= step
        ]

    @property
    def _judged_by(self):
        """The metric of which evaluation is the best."""
        metric = self.settings.keep_best
        return "accuracy" if metric == "none" else metric

    @property
    def is_finished(self):
        """Whether nothing is left to do."""
        is_over = self.trainer.step >= self.steps or self.has_stopped_improving
        return is_over and not self.owes_evaluation

    def save(self, local_state=None):
        """Writes a checkpoint.

        Args:
          local_state: see `Checkpoints.save_local_state`.
        """
        step, workers = self.trainer.step, self.trainer.workers
        with workers.agreeing():
            if workers.is_chief:
                # A kill may have left that of another checkpoint of this step.
                self.checkpoints.remove_local_states(step)
        with workers.agreeing():
            if local_state:
                self.checkpoints.save_local_state(step, local_state, workers)
        with workers.agreeing():
            if workers.is_chief:
                self.checkpoints.save(step)

    def tidy(self):
        """Removes the checkpoints that are not to be kept."""
        if not self.trainer.workers.is_chief:
            return
        spared = None
        if self.settings.keep_best != "none":
            spared = best_step(self._evaluations, self.settings.keep_best)
        self.checkpoints.remove_old(spared)

    def discard(self):
        """Takes the last checkpoint back; returns the step of the one before.

        0 where there was none.
        """
        workers = self.trainer.workers
        with workers.agreeing():
            saved = self.checkpoints.discard() if workers.is_chief else 0
        return round(workers.of_chief(saved))

    def explain(self, error):
        """Returns an error that names the image that ended training."""
        if self._is_embedded:
            return error
        settings, split = self.settings, self.data.train
        batch = self._batching.batch_of(self.trainer.step)
        start = batch * self.batch_size // settings.augment_repeats
        examples = batches.shuffled_examples(split, settings.seed, start)
        ahead = examples.take(BATCHES_AHEAD * self.batch_size)
        return check.explain(error, split, ahead, self._seconds_to_explain)

    @property
    def _seconds_to_explain(self):
        """How long a search for a broken image may take."""
        is_alone = self.trainer.workers.count == 1
        return math.inf if is_alone else SECONDS_TO_EXPLAIN

    @property
    def _is_embedded(self):
        """Whether embeddings stand in place of images."""
        return isinstance(self.transforms, Untransformed)

    def _evaluation_batches(self, split):
        return distribute(
            self.trainer.strategy,
            lambda context: batches.evaluation_batches(
                split, self.transforms, self.batch_size, context
            ),
        )

    def _phases(self):
        """Yields what is left to train, one after the other: `Run`s."""
        first = dataclasses.replace(self, until=self.thaws_at)
        if self.trainer.step <= first.steps and not first.is_finished:
            # It may have come back to it.
            freeze(self.settings, self.classifier.model)
            if self.settings.cached_embeddings:
                first = first._with_embeddings()
            yield first
        if self.thaws_at is not None and not self.is_finished:
            print(f"Thawed: --freeze={self.settings.freeze} is over.")
            thaw(self.settings, self.classifier.model)
            yield dataclasses.replace(self, trainer=self.trainer.again())

    def _keep_history(self):
        changes = self.changes
        if changes:
            append_json_line(
                self.workdir.history,
                {"step": self.trainer.step, "changes": changes},
            )

    @contextlib.contextmanager
    def _reports(self):
        """Yields a function of (step, split, metrics) that reports them."""
        start, was_finished = self.trainer.step, self.is_finished
        kept = {"train": start, "eval": start - self.owes_evaluation}
        # Behind what all workers have to answer.
        if not self.trainer.workers.is_chief:
            yield lambda *_: None
            return
        model = self.classifier.model if self.settings.histograms else None
        tensorboard = TensorBoardReport(
            self.workdir.path,
            kept,
            model,
        )
        every = (
            tensorboard,
            reports.ConsoleReport(self.steps),
            # Last: what stands there has been reported everywhere.
            reports.JsonLinesReport(self.workdir.metrics, start),
        )
        with contextlib.ExitStack() as stack:
            for each in every:
                stack.enter_context(contextlib.closing(each))
            if start == 0:
                tensorboard.show_beginning(tensorboard, self)

            def report(step, split, metrics):
                seen = step * self.batch_size
                epoch = seen / self.data.train.num_examples
                for each in every:
                    with _outlasting_full_disks(step):
                        each(step, split, {**metrics, "epoch": epoch})

            yield report
            if (
                not was_finished
                and self.settings.show_predictions
                and self.data.evaluation is not None
                # The others have gone by then.
                and self.trainer.workers.count == 1
            ):
                tensorboard.show_predictions(tensorboard, self)
            tensorboard.write_end()

    def _with_embeddings(self):
        """Returns the run with embeddings in place of images.

        Only the classifier is left to be run: the backbone is run here, once.
        """
        print("The backbone is frozen: it is run once over each image.")
        model, trainer = self.classifier.model, self.trainer
        facts = {
            "backbone": probe.backbone_hash(model),
            "settings": [
                self.settings.texts()[name]
                for name in (
                    "model",
                    "precision",
                    *self.settings.preprocessing._fields,
                )
            ],
        }

        def embed(name, split):
            folder = self.workdir.embeddings / name
            steps = batches.num_evaluation_steps(
                split, self.batch_size, trainer.workers.context
            )
            bar = passing_bar(steps, "batch", f"embedding {name}")
            with check.explained(split), trainer.workers.needed(), bar:
                probe.write_embeddings(
                    folder,
                    {**facts, **split.origin(trainer.workers)},
                    self.classifier.embed,
                    trainer.workers,
                    self._evaluation_batches(split),
                    bar,
                )
            return cache.embedded(split, folder)

        return dataclasses.replace(
            self,
            data=self.data.map(embed),
            transforms=Untransformed(),
            trainer=trainer.again(forward=model.head),
        )


@contextlib.contextmanager
def _outlasting_full_disks(step):
    """Lets training go on where there is no room for a report."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not is_full_disk(error):
            raise
        tqdm.tqdm.write(
            f"warning: the disk is full: the report of step {step} is not "
            "written"
        )


@unshared()
def _restore(checkpoints, trainer):
    """Brings a trainer to the last checkpoint, if there is one."""
    workers = trainer.workers
    with workers.agreeing():
        step = checkpoints.restore()
    is_same = step == workers.of_chief(step)
    with workers.agreeing():
        if not is_same:
            raise UserError(
                f"worker {workers.number} finds a checkpoint of step {step} in "
                f"{checkpoints.directory}, and the first worker another one; "
                "all of them need the same --workdir, on a disk that they share"
            )
        state = checkpoints.local_state(step, workers)
    # Of all or of none, for they belong together.
    if workers.all(state is not None):
        trainer.restore_local_state(state)


def new_workdir(dataset):
    """Returns the path of a new run's folder, named after the data set."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    # What means something to shells or TensorFlow, such as brackets, stays out.
    name = re.sub(r"[^\w.]+", "-", pathlib.Path(dataset).stem)[:50].strip("-.")
    return f"runs/{name or 'images'}-{now}"
