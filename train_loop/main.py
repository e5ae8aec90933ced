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
import difflib
import functools
import json
import math
import os
import pathlib
import shlex
import sys
import tempfile
import time
from typing import NamedTuple

import tensorflow as tf
from absl import app, flags, logging

from resnet_layers import VARIANTS, WeightsError, find_weights, load_weights
from train_loop import (
    UserError,
    loop,
    pipeline,
    preprocessing,
    reports,
    summary,
)
from train_loop.augment import AUGMENTATIONS
from train_loop.checkpoints import Checkpoints
from train_loop.datasets import DATASETS, Source
from train_loop.optimizers import OPTIMIZERS, SCHEDULES
from train_loop.recipes import RECIPES
from train_loop.strategies import STRATEGIES, split_cpu
from train_loop.trainer import Trainer

FLAGS = flags.FLAGS
FROM_RECIPE = "Default: the recipe's."
PRECISIONS = ("float32", "mixed_bfloat16")
AUGMENT_NAMES = (*preprocessing.TRAINING_CROPS, *AUGMENTATIONS)
NUM_GRID_IMAGES = 16


def one_of(names):
    return f"One of: {', '.join(names)}."


# What to do, and with what.
flags.DEFINE_string(
    "mode",
    "train",
    "One of: train, evaluate (measure the last checkpoint of --workdir), "
    "summary (print what --model costs at --image_size).",
)
flags.DEFINE_string("dataset", "digits", one_of(DATASETS))
flags.DEFINE_string(
    "data_dir",
    None,
    "Where TFDS keeps prepared data. Default: TFDS's own (TFDS_DATA_DIR, or "
    "tensorflow_datasets in the home directory).",
)
flags.DEFINE_string(
    "manual_dir",
    None,
    "Where files are that TFDS cannot download, such as ImageNet's. Default: "
    "downloads/manual in data_dir.",
)
flags.DEFINE_string(
    "workdir",
    None,
    "Folder for everything that the run writes. An existing run goes on from "
    "its last checkpoint, with its own flags. Default: a new folder in runs/.",
)
flags.DEFINE_string(
    "recipe", "auto", f"{one_of(['auto', *RECIPES])} auto: the dataset's own."
)

# The model.
flags.DEFINE_string("model", None, f"{one_of(VARIANTS)} {FROM_RECIPE}")
flags.DEFINE_string(
    "weights",
    None,
    "What to start from: a file (.safetensors of torchvision or timm, .h5 of "
    "keras.applications, .keras or .weights.h5 of ours), imagenet (downloads "
    "keras.applications' file) or timm/NAME (from the Hugging Face hub). A "
    "classifier for another number of classes is replaced. Default: random "
    "weights.",
)
flags.DEFINE_string(
    "freeze",
    None,
    "What training leaves as it is, weights and statistics: none, stem, "
    "stage1 (and the stem), stage2 and so on, or backbone (all but the "
    f"classifier). {FROM_RECIPE}",
)
flags.DEFINE_bool(
    "frozen_batch_norm",
    None,
    "Leave parameters and statistics of all batch norms as they are. "
    f"{FROM_RECIPE}",
)
flags.DEFINE_bool(
    "synchronized_batch_norm",
    None,
    "Batch statistics over all replicas: slower, and right for few pictures "
    f"per replica. {FROM_RECIPE}",
)
flags.DEFINE_string(
    "precision",
    None,
    f"{one_of(PRECISIONS)} Variables and loss stay float32. {FROM_RECIPE}",
)

# The pictures.
flags.DEFINE_integer(
    "image_size",
    None,
    f"Height and width that pictures are brought to. {FROM_RECIPE}",
    lower_bound=1,
)
flags.DEFINE_float(
    "crop_fraction",
    None,
    "Evaluation takes the middle of a picture: this part of its shorter side. "
    f"{FROM_RECIPE}",
    lower_bound=0.01,
    upper_bound=1.0,
)
flags.DEFINE_string(
    "normalization",
    None,
    f"{one_of(preprocessing.NORMALIZATIONS)} What the model gets: RGB of zero "
    "mean and unit variance, BGR of zero mean, or RGB from -1 to 1. Default: "
    "what --weights were trained with, or else the recipe's.",
)
flags.DEFINE_list(
    "augment",
    None,
    "What varies the training pictures, in order after a crop, with commas "
    f"between; empty for nothing. Any of: {', '.join(AUGMENT_NAMES)}. "
    f"{FROM_RECIPE}",
)

# How to train.
flags.DEFINE_integer(
    "batch_size",
    None,
    f"Pictures per step, over all replicas. {FROM_RECIPE}",
    lower_bound=1,
)
flags.DEFINE_float(
    "epochs",
    None,
    f"How often to go through the training pictures. {FROM_RECIPE}",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "steps",
    None,
    "How many optimizer updates to do; wins over --epochs.",
    lower_bound=0,
)
flags.DEFINE_float(
    "learning_rate",
    None,
    f"Highest learning rate, for this batch size. {FROM_RECIPE}",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "backbone_lr_factor",
    None,
    "Factor on the learning rate of everything but the classifier. "
    f"{FROM_RECIPE}",
    lower_bound=0.0,
)
flags.DEFINE_string("optimizer", None, f"{one_of(OPTIMIZERS)} {FROM_RECIPE}")
flags.DEFINE_string("schedule", None, f"{one_of(SCHEDULES)} {FROM_RECIPE}")
flags.DEFINE_float(
    "warmup_epochs",
    None,
    "Epochs in which the learning rate rises from 0; at most half of the run. "
    f"{FROM_RECIPE}",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "weight_decay",
    None,
    f"Strength of the L2 penalty on kernels. {FROM_RECIPE}",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "label_smoothing",
    None,
    f"Part of each label that is handed out evenly. {FROM_RECIPE}",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "seed",
    0,
    "All randomness derives from it.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)

# Where to compute.
flags.DEFINE_string("strategy", "mirrored", one_of(STRATEGIES))
flags.DEFINE_integer(
    "virtual_devices",
    None,
    "Split the CPU into this many devices, to try replicas without GPUs.",
    lower_bound=1,
)
flags.DEFINE_bool(
    "deterministic",
    False,
    "Make a GPU repeat a run bit by bit, more slowly. A CPU always does.",
)

# When to say and save something.
flags.DEFINE_integer(
    "report_every",
    None,
    f"Steps between two reports. {FROM_RECIPE}",
    lower_bound=1,
)
flags.DEFINE_integer(
    "evaluate_every",
    None,
    "Steps between two evaluations. Default: the recipe's, or an epoch.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "checkpoint_every",
    None,
    "Steps between two checkpoints. Default: the recipe's, or an epoch, at "
    "most 500.",
    lower_bound=1,
)

# What a run is not told by its flags.txt.
NOT_OF_THE_RUN = ("mode", "workdir")
# What an existing run cannot change: its data, their order and its variables.
FIXED = (
    "dataset",
    "recipe",
    "model",
    "weights",
    "image_size",
    "batch_size",
    "optimizer",
    "seed",
)
# What a flag may name.
CHOICES = {
    "dataset": DATASETS,
    "recipe": ("auto", *RECIPES),
    "model": VARIANTS,
    "precision": PRECISIONS,
    "normalization": preprocessing.NORMALIZATIONS,
    "augment": AUGMENT_NAMES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "strategy": STRATEGIES,
}


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
        choose("mode", FLAGS.mode, MODES)
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
    settle_flags(workdir)
    weights = None
    if FLAGS.weights and not (workdir / "flags.txt").is_file():
        weights = find_weights_file()
    run = build()
    trainer, steps = run.trainer, run.steps
    checkpoints = open_checkpoints(workdir, trainer)
    start = checkpoints.restore()
    if start == 0 and FLAGS.weights:
        start_from_weights(trainer.model, weights or find_weights_file())
    write_flags(workdir)
    began = time.perf_counter()
    describe(run, start)

    bar = loop.progress_bar(steps, initial=start)
    json_lines = reports.JsonLinesReport(workdir / "metrics.jsonl", start)
    tensorboard = reports.TensorBoardReport(workdir, start)
    console = reports.ConsoleReport(bar.write, steps)
    if start == 0:
        tensorboard.write_flags(run_flags())
        tensorboard.write_images("training_images", training_grid(run.source))
        tensorboard.write_graph(trainer.model, input_shape(FLAGS.batch_size))
    with bar, contextlib.closing(json_lines), contextlib.closing(tensorboard):

        def report(step, split, metrics):
            epoch = step * FLAGS.batch_size / run.source.train.num_examples
            for write in (json_lines, tensorboard, console):
                write(step, split, {**metrics, "epoch": epoch})

        loop.train(
            trainer,
            iter(training_batches(run, start)),
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
    settle_flags(workdir)
    run = build()
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
    settle_flags(pathlib.Path(FLAGS.workdir) if FLAGS.workdir else None)
    check_image_size()
    model = VARIANTS[FLAGS.model](dtype=FLAGS.precision)
    model.build(input_shape(None))
    print(
        f"{FLAGS.model}, {model.num_classes} classes, {FLAGS.image_size} x "
        f"{FLAGS.image_size}, {FLAGS.precision}; multiply-adds and activations "
        "are for one picture"
    )
    print(reports.table(summary.table(model, FLAGS.image_size)))


MODES = {"train": train, "evaluate": evaluate, "summary": summarize}


def settle_flags(workdir):
    """Gives every flag its value: the user's, the run's or the recipe's.

    Args:
      workdir: folder of a run that may exist already, or None.

    Raises:
      UserError: a value is none of those possible, or an existing run was
        made with another one.
    """
    earlier = read_flags(workdir / "flags.txt") if workdir else {}
    check_choices()
    for name in FIXED:
        given = FLAGS[name]
        value = str(given.value)
        if name == "recipe" and value == "auto":
            continue
        made_with = earlier.get(name, value if not earlier else "None")
        if given.present and value != made_with:
            raise UserError(
                f"{workdir} is a run with --{name}={made_with}, and "
                f"--{name}={value} was given; leave the flag out to go on with "
                "that run, or name another --workdir"
            )
    if FLAGS["epochs"].present and not FLAGS["steps"].present:
        earlier.pop("steps", None)
    set_defaults(earlier)
    if FLAGS.recipe == "auto":
        FLAGS.recipe = FLAGS.dataset
    recipe = RECIPES[FLAGS.recipe].flags
    set_defaults({k: v for k, v in recipe.items() if k not in earlier})
    check_choices()


def read_flags(path):
    """Returns {name: text} of a flags.txt, empty where there is none."""
    if not path.is_file():
        return {}
    lines = path.read_text().splitlines()
    pairs = (line.removeprefix("--").partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name in FLAGS}


def set_defaults(values):
    """Sets flags that were not given on the command line."""
    for name, value in values.items():
        try:
            FLAGS.set_default(name, value)
        except flags.Error as error:
            raise UserError(f"flags.txt of the run: {error}") from error


def check_choices():
    """Raises UserError for a flag with a value that does not exist."""
    for name, choices in CHOICES.items():
        value = FLAGS[name].value
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                choose(name, item, choices)
    for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise UserError(f"--{flag.name}={flag.value} is not a number")


def choose(flag, given, choices):
    """Raises UserError, with the nearest names, unless `given` is a choice."""
    if given in choices:
        return
    near = difflib.get_close_matches(str(given), list(choices), n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"--{flag}={given} is unknown; {hint}It takes: {', '.join(choices)}"
    )


def build():
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
    source = DATASETS[FLAGS.dataset](
        data_dir=absolute(FLAGS.data_dir), manual_dir=absolute(FLAGS.manual_dir)
    )
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
            synchronized=FLAGS.synchronized_batch_norm,
            dtype=FLAGS.precision,
        )
        model.build(input_shape(None))
        freeze(model)
        optimizer = OPTIMIZERS[FLAGS.optimizer](
            schedule, FLAGS.weight_decay, learning_rate_factors(model)
        )
    trainer = Trainer(model, optimizer, strategy, FLAGS.label_smoothing)
    return Run(source, trainer, steps, max(round(steps_per_epoch), 1))


def freeze(model):
    """Keeps the part of the model that --freeze names as it is."""
    if FLAGS.frozen_batch_norm:
        model.freeze_batch_norm()
    if FLAGS.freeze != "none":
        choose("freeze", FLAGS.freeze, ["none", *model.parts])
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
    """Reads weights, and the normalisation that belongs to them."""
    try:
        loaded = load_weights(model, path, replace_head=True)
    except WeightsError as error:
        raise UserError(f"--weights={FLAGS.weights}: {error}") from error
    trained_with = {
        "torch": "imagenet",
        "keras": "symmetric" if model.preactivation else "caffe",
        "own": FLAGS.normalization,
    }
    if not FLAGS["normalization"].present:
        FLAGS.normalization = trained_with[loaded.dialect]
    head = "" if loaded.head_used else ", with a new classifier"
    print(
        f"Starting from {path}{head}; pictures are normalised as "
        f"{FLAGS.normalization}"
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


def training_batches(run, step):
    """Returns the distributed training batches from a step on."""
    strategy = run.trainer.strategy
    return pipeline.distribute(
        strategy,
        lambda: pipeline.training_batches(
            run.source.train,
            prepare_for_training,
            FLAGS.batch_size // strategy.num_replicas_in_sync,
            FLAGS.batch_size,
            FLAGS.seed,
            step,
        ),
    )


def measure(run):
    """Returns {metric: number} for the whole evaluation split."""
    strategy = run.trainer.strategy
    batches = pipeline.distribute(
        strategy,
        lambda: pipeline.evaluation_batches(
            run.source.evaluation,
            prepare_for_evaluation,
            FLAGS.batch_size // strategy.num_replicas_in_sync,
            FLAGS.batch_size,
        ),
    )
    num_batches = -(-run.source.evaluation.num_examples // FLAGS.batch_size)
    with loop.progress_bar(
        num_batches, unit="batch", leave=False, delay=2.0
    ) as bar:
        return loop.evaluate(run.trainer, batches, num_batches, bar)


def prepare_for_training(encoded, seed):
    """Decodes, crops, augments and normalises a training picture."""
    fold_in = tf.random.experimental.stateless_fold_in
    crop = functools.partial(
        preprocessing.center_crop, crop_fraction=FLAGS.crop_fraction
    )
    for name in FLAGS.augment:
        if name in preprocessing.TRAINING_CROPS:
            crop = functools.partial(
                preprocessing.TRAINING_CROPS[name], seed=fold_in(seed, 0)
            )
    image = crop(encoded, FLAGS.image_size)
    for index, name in enumerate(FLAGS.augment):
        if name in AUGMENTATIONS:
            image = AUGMENTATIONS[name](image, fold_in(seed, index + 1))
    return preprocessing.normalize(image, FLAGS.normalization)


def prepare_for_evaluation(encoded):
    """Decodes, crops and normalises an evaluation picture."""
    image = preprocessing.center_crop(
        encoded, FLAGS.image_size, FLAGS.crop_fraction
    )
    return preprocessing.normalize(image, FLAGS.normalization)


def training_grid(source):
    """Returns a few augmented training pictures, for people to look at."""
    examples = source.train.read(None).take(NUM_GRID_IMAGES).repeat()
    images = [
        prepare_for_training(example["image"], [FLAGS.seed, index])
        for index, example in enumerate(examples.take(NUM_GRID_IMAGES))
    ]
    return preprocessing.denormalize(tf.stack(images), FLAGS.normalization)


def new_workdir():
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return f"runs/{FLAGS.dataset}-{now}"


def absolute(folder):
    """Returns a folder's full path, or None for None."""
    return folder and os.path.abspath(os.path.expanduser(folder))


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


def write_flags(workdir):
    """Writes the flags that repeat the run into its folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [f"--{name}={value}\n" for name, value in run_flags().items()]
    # Beside and then renamed, so that a kill never leaves half of it.
    written = workdir / "flags.txt.tmp"
    written.write_text("".join(lines))
    written.replace(workdir / "flags.txt")


def run_flags():
    """Returns {name: text} of the flags that make up the run."""
    values = {
        flag.name: flag.value
        for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])
        if flag.name not in NOT_OF_THE_RUN and flag.value is not None
    }
    for name in ("data_dir", "manual_dir"):
        if name in values:
            # Whoever goes on may stand in another folder.
            values[name] = absolute(values[name])
    return {
        name: ",".join(value) if isinstance(value, list) else str(value)
        for name, value in values.items()
    }


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


def parse_flags(argv):
    """Parses the command line; a flag that is wrong ends the program."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: {reason}; --help lists all flags")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
