"""Trains a ResNet on pictures and measures it.

Handwritten digits, bundled, about a minute on a laptop:

  python -m train_loop.main

The 37 breeds of Oxford-IIIT Pet (TFDS downloads them at the first start):

  python -m train_loop.main --dataset=oxford_iiit_pet

Go on with a run that was stopped, measure it again, look at it:

  python -m train_loop.main --workdir=runs/NAME
  python -m train_loop.main --workdir=runs/NAME --mode=evaluate
  tensorboard --logdir=runs

What a model costs in parameters, multiply-adds and memory:

  python -m train_loop.main --mode=summary --model=resnet50 --image_size=224

A recipe sets everything about training that is not given as a flag.
"""

import contextlib
import datetime
import functools
import json
import os
import pathlib
import shlex
import sys
import tempfile
import time
from typing import NamedTuple

import filelock
import tensorflow as tf
from absl import app, flags, logging

from resnet_layers import VARIANTS, WeightsError, find_weights, load_weights
from train_loop import (
    UserError,
    figures,
    inputs,
    inspection,
    loop,
    preprocessing,
    reports,
    settings,
    summary,
)
from train_loop.checkpoints import Checkpoints
from train_loop.datasets import Source
from train_loop.optimizers import OPTIMIZERS, SCHEDULES
from train_loop.recipes import RECIPES
from train_loop.settings import FLAGS
from train_loop.strategies import STRATEGIES, split_cpu
from train_loop.trainer import Trainer

NUM_GRID_IMAGES = 16
# The flags that weights decide, because they were trained with them.
PREPROCESSING = (
    "image_size",
    "crop_fraction",
    "interpolation",
    "normalization",
)

# What --help lists.
flags.adopt_module_key_flags(settings)


class Run(NamedTuple):
    """The parts of a run, built from the flags."""

    source: Source
    trainer: Trainer
    steps: int
    steps_per_epoch: int


def main(argv):
    """Runs the mode that the flags ask for; returns the exit status."""
    try:
        if argv[1:]:
            raise UserError(
                f"{argv[1]!r} is not a flag; flags look like --dataset=digits"
            )
        # TFDS and TensorFlow say much that is of no use here.
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
            tf.get_logger().setLevel("ERROR")
        settings.choose("mode", FLAGS.mode, MODES)
        MODES[FLAGS.mode]()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: stopped by the keyboard{way_on()}", file=sys.stderr)
        return 130
    return 0


def way_on():
    """Tells how to go on with a run that was stopped."""
    if not FLAGS.workdir:
        return ""
    workdir = pathlib.Path(FLAGS.workdir)
    if not any((workdir / "checkpoints").glob("*.index")):
        return "; there is no checkpoint yet"
    quoted = shlex.quote(FLAGS.workdir)
    return f"; --workdir={quoted} goes on from the last checkpoint"


def train():
    """Trains until the last step, from the last checkpoint where one is."""
    FLAGS.workdir = os.path.expanduser(FLAGS.workdir or new_workdir())
    workdir = pathlib.Path(FLAGS.workdir)
    check_writable(workdir)
    # The system takes it off in whatever way a process ends.
    lock = filelock.FileLock(workdir / "in_use.lock", blocking=False)
    with contextlib.ExitStack() as stack:
        if workdir.is_dir():
            stack.enter_context(held(lock))
        settings.settle(workdir)
        has_begun = any((workdir / "checkpoints").glob("*.index"))
        weights = None
        if FLAGS.weights and not has_begun:
            # Before the pictures are prepared, which may take hours.
            weights = find_weights_file()
        run = build(workdir)
        checkpoints = open_checkpoints(workdir, run.trainer)
        start = checkpoints.restore()
        if weights is not None:
            start_from_weights(run.trainer.model, weights)
        # A new folder is made only now that all is known to be well.
        stack.enter_context(held(lock))
        train_from(start, run, workdir, checkpoints)


@contextlib.contextmanager
def held(lock):
    """Keeps a second process from training in the same folder."""
    try:
        with lock:
            yield
    except filelock.Timeout as error:
        raise UserError(
            f"another process is training in {FLAGS.workdir}; wait for it, "
            "stop it, or give this one a --workdir of its own"
        ) from error


def train_from(start, run, workdir, checkpoints):
    """Trains a run from a step on and writes what it leaves behind."""
    trainer, steps = run.trainer, run.steps
    inputs.remember(run.source, workdir)
    settings.write(workdir)
    began = time.perf_counter()
    describe(run, start)

    json_lines = reports.JsonLinesReport(workdir / "metrics.jsonl", start)
    tensorboard = reports.TensorBoardReport(workdir, start)
    if start == 0:
        tensorboard.write_flags(settings.of_the_run())
        images, _ = inputs.training_sample(run.source, NUM_GRID_IMAGES)
        tensorboard.write_images("training_images", images)
        tensorboard.write_graph(trainer.model, input_shape(FLAGS.batch_size))
    if FLAGS.cached_embeddings:
        run = probe(run, workdir)
        trainer = run.trainer
    bar = loop.progress_bar(steps, initial=start)
    console = reports.ConsoleReport(bar.write, steps)
    with bar, contextlib.closing(json_lines), contextlib.closing(tensorboard):

        def report(step, split, metrics):
            epoch = step * FLAGS.batch_size / run.source.train.num_examples
            for write in (json_lines, tensorboard, console):
                write(step, split, {**metrics, "epoch": epoch})

        loop.train(
            trainer,
            iter(inputs.training_batches(run.source, trainer.strategy, start)),
            steps,
            FLAGS.batch_size,
            loop.Cadence(
                FLAGS.report_every,
                FLAGS.evaluate_every or run.steps_per_epoch,
                FLAGS.checkpoint_every or min(run.steps_per_epoch, 500),
            ),
            evaluate=functools.partial(measure, run),
            save=checkpoints.save,
            report=report,
            explain=functools.partial(inputs.explain_broken_batch, run.source),
            bar=bar,
        )
    print(final_table(workdir, run))
    if start >= steps:
        print(f"Nothing was left to do: the run is at step {start} of {steps}.")
    else:
        print(f"Trained for {time.perf_counter() - began:.0f} s.")
    print(
        f"The run's files are in {workdir}; look at them with: "
        f"tensorboard --logdir={shlex.quote(str(workdir))}"
    )


def probe(run, workdir):
    """Returns the run with embeddings in place of pictures.

    Only the classifier is left to be run: the backbone is run here, once.
    """
    print("The backbone is frozen: it is run once over each picture.")
    trainer = run.trainer
    source = inputs.embed(run.source, trainer.model, trainer.strategy, workdir)
    head = Trainer(
        trainer.model,
        trainer.optimizer,
        trainer.strategy,
        trainer.label_smoothing,
        forward=trainer.model.head,
    )
    return run._replace(source=source, trainer=head)


def evaluate():
    """Measures the last checkpoint of a run on the evaluation split."""
    if FLAGS.workdir is None:
        raise UserError("--mode=evaluate needs the --workdir of a run")
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    check_writable(workdir)
    if not (workdir / "flags.txt").is_file():
        raise UserError(
            f"{workdir} is not the folder of a run: it has no flags.txt"
        )
    settings.settle(workdir)
    run = build(workdir)
    step = open_checkpoints(workdir, run.trainer).restore()
    if step == 0:
        raise UserError(f"{workdir} has no checkpoint yet; train it first")
    metrics = measure(run)
    report = {
        "step": step,
        "split": "eval",
        "examples": run.source.evaluation.num_examples,
        **metrics,
    }
    path = workdir / "report" / "report.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    header = ["split", "step", *metrics, "pictures"]
    row = ["eval", str(step)]
    row += [reports.format_metric(*item) for item in metrics.items()]
    row += [f"{report['examples']:,}"]
    print(reports.table([header, row]))
    print(f"Written to {path}.")


def summarize():
    """Prints what the model costs, at the size of the pictures."""
    settings.settle(pathlib.Path(FLAGS.workdir) if FLAGS.workdir else None)
    check_image_size()
    model = VARIANTS[FLAGS.model](dtype=FLAGS.precision)
    model.build(input_shape(None))
    print(
        f"{FLAGS.model}, {model.num_classes} classes, {FLAGS.image_size} x "
        f"{FLAGS.image_size}, {FLAGS.precision}; multiply-adds and activations "
        "are for one picture"
    )
    print(reports.table(summary.table(model, FLAGS.image_size)))


def look_at_data():
    """Looks through all pictures, counts them and draws some.

    With --skip_bad_images, those that a run would train and evaluate on.
    """
    FLAGS.workdir = os.path.expanduser(FLAGS.workdir or new_workdir())
    workdir = pathlib.Path(FLAGS.workdir)
    check_writable(workdir)
    settings.settle(workdir)
    source, refused = inputs.open_whole_source()
    broken = inputs.find_all_broken(source, refused)
    readable = inputs.without_broken(source, broken)
    print_counts(readable if FLAGS.skip_bad_images else source)
    for record in broken:
        # A file's name may hold bytes that cannot be printed.
        name = record["name"].encode(errors="backslashreplace").decode()
        print(f"broken: {name}: {record['reason']}")
    draw(workdir / "pictures.png", readable)
    if not broken:
        print("All pictures can be decoded.")
    elif FLAGS.skip_bad_images:
        print(f"{inputs.left_out(readable, broken)}.")
        inputs.check_not_empty(readable)
    else:
        raise UserError(
            f"{len(broken)} pictures cannot be decoded; mend them, or train "
            "without them: --skip_bad_images"
        )


def print_counts(source):
    """Prints how many pictures there are of each class."""
    splits = inputs.splits_of(source)
    counts = {n: inputs.count_labels(s, n) for n, s in splits.items()}
    for name in splits:
        for warning in inspection.balance_warnings(
            counts[name], source.class_names
        ):
            print(f"warning: {name}: {warning}")
    print(
        f"{FLAGS.dataset}: {len(source.class_names)} classes; "
        + "; ".join(
            f"{split.num_examples:,} pictures for {name}, "
            f"{split.num_bytes / 1e6:,.1f} MB"
            for name, split in splits.items()
        )
    )
    rows = [
        [name, *(f"{counts[split].get(label, 0):,}" for split in splits)]
        for label, name in enumerate(source.class_names)
    ]
    print(reports.table([["class", *splits], *rows]))


def draw(path, source):
    """Draws some pictures of each split, as a model gets them."""
    samples = {}
    if source.train.num_examples:
        samples["Training"] = inputs.training_sample(source, NUM_GRID_IMAGES)
    if source.evaluation.num_examples:
        samples["Evaluation"] = inputs.evaluation_sample(
            source, NUM_GRID_IMAGES
        )
    if samples:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.write_pictures(path, samples)
        print(f"Some pictures are drawn in {path}.")


MODES = {
    "train": train,
    "evaluate": evaluate,
    "data": look_at_data,
    "summary": summarize,
}


def build(workdir):
    """Builds the data source, the model and the trainer from the flags."""
    if FLAGS.virtual_devices:
        split_cpu(FLAGS.virtual_devices)
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(FLAGS.seed)
    strategy = STRATEGIES[FLAGS.strategy]()
    replicas = strategy.num_replicas_in_sync
    if FLAGS.batch_size % replicas:
        below = FLAGS.batch_size // replicas * replicas
        raise UserError(
            f"--batch_size={FLAGS.batch_size} does not divide over {replicas} "
            f"replicas; take {max(below, replicas)} or {below + replicas}"
        )
    check_image_size()
    source = inputs.open_source(workdir)
    steps_per_epoch = source.train.num_examples / FLAGS.batch_size
    steps = FLAGS.steps
    if steps is None:
        steps = round(FLAGS.epochs * steps_per_epoch)
    schedule = SCHEDULES[FLAGS.schedule](
        FLAGS.learning_rate,
        # A short trial shall not spend itself on warming up.
        warmup_steps=min(
            round(FLAGS.warmup_epochs * steps_per_epoch), steps // 2
        ),
        steps=steps,
    )
    with strategy.scope():
        model = VARIANTS[FLAGS.model](
            num_classes=len(source.class_names),
            stochastic_depth=FLAGS.stochastic_depth,
            synchronized=FLAGS.synchronized_batch_norm,
            dtype=FLAGS.precision,
        )
        model.build(input_shape(None))
        freeze(model)
        optimizer = OPTIMIZERS[FLAGS.optimizer](
            schedule, FLAGS.weight_decay, learning_rate_factors(model)
        )
    trainer = Trainer(
        model,
        optimizer,
        strategy,
        FLAGS.label_smoothing,
        forward=inputs.on_pictures(model),
    )
    return Run(source, trainer, steps, max(round(steps_per_epoch), 1))


def freeze(model):
    """Keeps the part of the model that --freeze names as it is."""
    if FLAGS.frozen_batch_norm:
        model.freeze_batch_norm()
    if FLAGS.freeze != "none":
        settings.choose("freeze", FLAGS.freeze, ["none", *model.parts])
        model.freeze(FLAGS.freeze)


def learning_rate_factors(model):
    """Returns {path: factor} for the variables of the backbone."""
    head = {variable.path for variable in model.head.variables}
    return {
        variable.path: FLAGS.backbone_lr_factor
        for variable in model.trainable_variables
        if variable.path not in head and FLAGS.backbone_lr_factor != 1
    }


def find_weights_file():
    """Returns the path of the file that --weights names."""
    try:
        return find_weights(FLAGS.weights, FLAGS.model)
    except WeightsError as error:
        raise UserError(f"--weights={FLAGS.weights}: {error}") from error


def start_from_weights(model, path):
    """Reads weights, and takes over the preprocessing that belongs to them."""
    try:
        loaded = load_weights(model, path, replace_head=True)
    except WeightsError as error:
        raise UserError(f"--weights={FLAGS.weights}: {error}") from error
    settings.set_defaults(preprocessing_of(path, loaded.preprocessing))
    check_image_size()
    head = "" if loaded.head_used else ", with a new classifier"
    print(
        f"Starting from {path}{head}; pictures are brought to "
        f"{FLAGS.image_size} x {FLAGS.image_size} ({FLAGS.interpolation}, the "
        f"middle {FLAGS.crop_fraction:.3g} in evaluation) and normalised as "
        f"{FLAGS.normalization}"
    )


def preprocessing_of(path, found):
    """Returns {flag: value} of what weights expect of pictures.

    Args:
      path: of the weights.
      found: `resnet_layers.Preprocessing`.
    """
    for folder in (path, path.parent, path.parent.parent):
        run = settings.read(folder / "flags.txt")
        if run:
            return {name: run[name] for name in PREPROCESSING if name in run}
    values = {
        "image_size": found.image_size,
        "crop_fraction": found.crop_fraction,
        "interpolation": found.interpolation,
    }
    if found.mean is not None:
        values["normalization"] = preprocessing.find_normalization(
            found.mean, found.stddev, found.bgr
        )
        if values["normalization"] is None:
            unmet("normalization", f"mean {found.mean}, stddev {found.stddev}")
    if found.interpolation not in (None, *preprocessing.INTERPOLATIONS):
        unmet("interpolation", values.pop("interpolation"))
    return {name: value for name, value in values.items() if value is not None}


def unmet(flag, wanted):
    """Raises UserError unless a flag says what to do in place of a wish."""
    if not FLAGS[flag].present:
        raise UserError(
            f"--weights={FLAGS.weights} were trained with {flag} {wanted}, "
            f"which is none of {', '.join(settings.CHOICES[flag])}; choose one "
            f"of these with --{flag}"
        )


def check_image_size():
    """Raises UserError where the last stage would have less than a pixel."""
    reduction = VARIANTS[FLAGS.model]().reduction
    if FLAGS.image_size < reduction:
        raise UserError(
            f"--image_size={FLAGS.image_size} is too small for {FLAGS.model}, "
            f"which makes one pixel of {reduction}; take at least {reduction}, "
            "or another --model"
        )


def input_shape(batch_size):
    return batch_size, FLAGS.image_size, FLAGS.image_size, 3


def measure(run):
    """Returns {metric: number} for the whole evaluation split."""
    split = run.source.evaluation
    batches, steps = inputs.evaluation_batches(
        run.source, split, run.trainer.strategy
    )
    bar = loop.progress_bar(steps, unit="batch", leave=False, delay=2.0)
    with inputs.broken_named(split), bar:
        return loop.evaluate(run.trainer, batches, steps, bar)


def new_workdir():
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return f"runs/{inputs.slug(FLAGS.dataset)}-{now}"


def check_writable(workdir):
    """Finds out before any long work, and without leaving a trace."""
    existing = workdir
    try:
        existing = next(
            path
            for path in (workdir, *workdir.absolute().parents)
            if path.exists()
        )
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}: "
            f"{existing}); name a folder that can be"
        ) from error


def open_checkpoints(workdir, trainer):
    return Checkpoints(
        workdir / "checkpoints", trainer.model, trainer.optimizer
    )


def describe(run, start):
    """Prints what is about to happen."""
    model, strategy = run.trainer.model, run.trainer.strategy
    parameters = sum(v.shape.num_elements() for v in model.trainable_variables)
    print(
        f"{FLAGS.model}, {parameters:,} parameters, on {FLAGS.dataset}: "
        f"{run.source.train.num_examples:,} pictures to train on, "
        f"{run.source.evaluation.num_examples:,} to evaluate on, "
        f"{len(run.source.class_names)} classes"
    )
    print(
        f"{run.steps:,} steps of {FLAGS.batch_size} pictures on "
        f"{strategy.num_replicas_in_sync} replica(s), {FLAGS.precision}, from "
        f"step {start:,}"
    )
    recipe = RECIPES[FLAGS.recipe]
    print(
        f"Recipe {FLAGS.recipe}, if left as it is: {recipe.expected} Source: "
        f"{recipe.source}"
    )


def final_table(workdir, run):
    """Returns the last numbers of every split as text."""
    last = {
        record["split"]: record
        for record in reports.read_json_lines(workdir / "metrics.jsonl")
    }
    rows = [["split", "step", "loss", "accuracy", "pictures"]]
    pictures = {"train": run.source.train, "eval": run.source.evaluation}
    for split, record in last.items():
        rows.append(
            [
                split,
                str(record["step"]),
                reports.format_metric("loss", record["loss"]),
                reports.format_metric("accuracy", record["accuracy"]),
                f"{pictures[split].num_examples:,}",
            ]
        )
    return reports.table(rows)


if __name__ == "__main__":
    app.run(main, flags_parser=settings.parse)
