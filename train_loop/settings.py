"""This file answers: which flags are there, and which values do they have?

A value is the user's, or else the run's own from its flags.txt, or else the
recipe's.
"""

import difflib
import math
import os
import sys

from absl import flags

from resnet_layers import VARIANTS
from train_loop import UserError, preprocessing
from train_loop.augment import AUGMENTATIONS
from train_loop.datasets import DATASETS
from train_loop.optimizers import OPTIMIZERS, SCHEDULES
from train_loop.recipes import RECIPES
from train_loop.strategies import STRATEGIES

FLAGS = flags.FLAGS
FROM_RECIPE = "Default: the recipe's."
PRECISIONS = ("float32", "mixed_bfloat16")
AUGMENT_NAMES = (*preprocessing.TRAINING_CROPS, *AUGMENTATIONS)


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


def settle(workdir):
    """Gives every flag its value: the user's, the run's or the recipe's.

    Args:
      workdir: folder of a run that may exist already, or None.

    Raises:
      UserError: a value is none of those possible, or an existing run was
        made with another one.
    """
    earlier = read(workdir / "flags.txt") if workdir else {}
    _check_choices()
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
    _set_defaults(earlier)
    if FLAGS.recipe == "auto":
        FLAGS.recipe = FLAGS.dataset
    recipe = RECIPES[FLAGS.recipe].flags
    _set_defaults({k: v for k, v in recipe.items() if k not in earlier})
    _check_choices()


def read(path):
    """Returns {name: text} of a flags.txt, empty where there is none."""
    if not path.is_file():
        return {}
    lines = path.read_text().splitlines()
    pairs = (line.removeprefix("--").partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name in FLAGS}


def _set_defaults(values):
    """Sets flags that were not given on the command line."""
    for name, value in values.items():
        try:
            FLAGS.set_default(name, value)
        except flags.Error as error:
            raise UserError(f"flags.txt of the run: {error}") from error


def _check_choices():
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


def write(workdir):
    """Writes the flags that repeat the run into its folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [f"--{name}={value}\n" for name, value in of_the_run().items()]
    # Beside and then renamed, so that a kill never leaves half of it.
    written = workdir / "flags.txt.tmp"
    written.write_text("".join(lines))
    written.replace(workdir / "flags.txt")


def of_the_run():
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


def absolute(folder):
    """Returns a folder's full path, or None for None."""
    return folder and os.path.abspath(os.path.expanduser(folder))


def parse(argv):
    """Parses the command line; a flag that is wrong ends the program."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: {reason}; --help lists all flags")
