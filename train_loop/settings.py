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
from train_loop.augment import AUGMENTATIONS, BATCH_AUGMENTATIONS
from train_loop.caching import CACHES
from train_loop.datasets import DATASETS
from train_loop.optimizers import OPTIMIZERS, SCHEDULES
from train_loop.preprocessing import TRAINING_CROPS
from train_loop.recipes import OTHERS, RECIPES
from train_loop.strategies import STRATEGIES

FLAGS = flags.FLAGS
FROM_RECIPE = "Default: the recipe's."
PRECISIONS = ("float32", "mixed_bfloat16")
AUGMENT_NAMES = (*TRAINING_CROPS, *AUGMENTATIONS, *BATCH_AUGMENTATIONS)


def one_of(names):
    return f"One of: {', '.join(names)}."


# What to do, and with what.
flags.DEFINE_string(
    "mode",
    "train",
    "One of: train, evaluate (measure the last checkpoint of --workdir), data "
    "(look through the pictures, count them and draw some), summary (print "
    "what --model costs at --image_size).",
)
flags.DEFINE_string(
    "dataset",
    "digits",
    f"{one_of(DATASETS)} Or any image-classification set of TFDS; or a folder "
    "with train/CLASS/PICTURE and test/CLASS/PICTURE, in any capitals, or "
    "CLASS/PICTURE; or an .h5 file with train_set_x, train_set_y and "
    "list_classes.",
)
flags.DEFINE_string(
    "train_split",
    None,
    "What to train on, in the split language of TFDS, such as train[:90%]. "
    f"{FROM_RECIPE}",
)
flags.DEFINE_string(
    "eval_split",
    None,
    "What to evaluate on, such as train[90%:]. Default: the recipe's, or "
    "validation, val or test, whichever is there, or a part of train.",
)
flags.DEFINE_float(
    "validation_fraction",
    0.2,
    "How much of the training pictures is kept for evaluation where there is "
    "no split for it; of each class the same part.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_bool(
    "skip_bad_images",
    False,
    "Look through all pictures first, leave out those that cannot be decoded, "
    "and name them in bad_images.jsonl (--mode=data prints them). Default: "
    "stop at the first one.",
)
flags.DEFINE_string(
    "cache",
    "auto",
    f"{one_of(('auto', *CACHES))} Keeps the files of pictures in memory, or in "
    "the run's folder. auto: in memory, if they fit into 256 MiB.",
)
flags.DEFINE_string(
    "data_service",
    None,
    "Address of a tf.data service, such as grpc://host:5050, whose workers "
    "decode and augment. The order of pictures then depends on their speed.",
)
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
    "cached_embeddings",
    None,
    "Ask a frozen backbone once what it makes of each picture, cropped as for "
    "evaluation, and train the classifier on the answers. Default: with "
    "--freeze=backbone, unless --augment is given.",
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
    "interpolation",
    None,
    f"{one_of(preprocessing.INTERPOLATIONS)} How pictures are resized. "
    f"{FROM_RECIPE}",
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
    "What varies the training pictures, in this order, with commas between; "
    f"empty for nothing. Crop: {', '.join(TRAINING_CROPS)}. Pictures: "
    f"{', '.join(AUGMENTATIONS)}. Whole batches, one of them drawn for each: "
    f"{', '.join(BATCH_AUGMENTATIONS)}. {FROM_RECIPE}",
)
flags.DEFINE_list(
    "crop_scale",
    None,
    "Smallest and largest part of the area for random_resized_crop. "
    f"{FROM_RECIPE}",
)
flags.DEFINE_list(
    "crop_ratio",
    None,
    "Smallest and largest width, in heights, for random_resized_crop. "
    f"{FROM_RECIPE}",
)
flags.DEFINE_float(
    "color_jitter_strength",
    None,
    "By which part color_jitter changes brightness, contrast and saturation "
    f"at most. {FROM_RECIPE}",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "rand_augment_layers",
    None,
    f"How many operations rand_augment applies, N. {FROM_RECIPE}",
    lower_bound=1,
)
flags.DEFINE_integer(
    "rand_augment_magnitude",
    None,
    f"How strong they are, M, from 0 to 30. {FROM_RECIPE}",
    lower_bound=0,
    upper_bound=30,
)
flags.DEFINE_float(
    "erasing_probability",
    None,
    f"Part of the pictures from which random_erasing cuts. {FROM_RECIPE}",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_float(
    "mixup_alpha",
    None,
    f"How evenly mixup blends: both parameters of its Beta. {FROM_RECIPE}",
    lower_bound=0.01,
)
flags.DEFINE_float(
    "cutmix_alpha",
    None,
    f"How evenly cutmix cuts: both parameters of its Beta. {FROM_RECIPE}",
    lower_bound=0.01,
)
flags.DEFINE_integer(
    "augment_repeats",
    None,
    "How often a picture stands in a batch, augmented in another way each "
    f"time. {FROM_RECIPE}",
    lower_bound=1,
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
flags.DEFINE_float(
    "stochastic_depth",
    None,
    "How likely the last block is left out for a picture, in training; the "
    f"others' likelihoods rise to it. 0: none is. {FROM_RECIPE}",
    lower_bound=0.0,
    upper_bound=0.99,
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

# Flags that give a smallest and a largest number, with an example.
RANGES = {"crop_scale": "0.08,1", "crop_ratio": "0.75,1.333"}

# What a run is not told by its flags.txt.
NOT_OF_THE_RUN = ("mode", "workdir")
# What an existing run cannot change: its data, their order and its variables.
FIXED = (
    "dataset",
    "train_split",
    "eval_split",
    "validation_fraction",
    "cache",
    "recipe",
    "model",
    "stochastic_depth",
    "weights",
    "image_size",
    "batch_size",
    "optimizer",
    "seed",
)
# What a flag may name.
CHOICES = {
    "recipe": ("auto", *RECIPES),
    "model": VARIANTS,
    "cache": ("auto", *CACHES),
    "precision": PRECISIONS,
    "interpolation": preprocessing.INTERPOLATIONS,
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
    for name, names in (("dataset", DATASETS), ("weights", ("imagenet",))):
        value = FLAGS[name].value
        if value and value not in names:
            path = absolute(value)
            if os.path.exists(path):
                FLAGS[name].value = path
    _check_choices()
    for name in FIXED:
        given = FLAGS[name]
        value = str(given.value)
        if value == "auto":
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
        FLAGS.recipe = FLAGS.dataset if FLAGS.dataset in RECIPES else OTHERS
    recipe = RECIPES[FLAGS.recipe].flags
    set_defaults({k: v for k, v in recipe.items() if k not in earlier})
    _check_choices()
    _settle_embeddings()


def _settle_embeddings():
    """Decides whether embeddings are cached; those of augmented pictures
    would be others every time."""
    frozen, augmented = FLAGS.freeze == "backbone", FLAGS["augment"].present
    if FLAGS.cached_embeddings is None:
        FLAGS.cached_embeddings = frozen and not augmented
    if not FLAGS.cached_embeddings:
        return
    if not frozen or (augmented and FLAGS.augment):
        raise UserError(
            "--cached_embeddings needs --freeze=backbone and no --augment: "
            "what the backbone makes of a picture must stay the same"
        )
    FLAGS.augment = []


def read(path):
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


def _check_choices():
    """Raises UserError for a flag with a value that does not exist."""
    for name, choices in CHOICES.items():
        value = FLAGS[name].value
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                choose(name, item, choices)
    for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        if isinstance(flag.value, str) and "\n" in flag.value:
            raise UserError(f"--{flag.name}={flag.value!r} has two lines")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise UserError(f"--{flag.name}={flag.value} is not a number")
    for name in RANGES:
        if FLAGS[name].value is not None:
            number_range(name)


def number_range(name):
    """Returns the (smallest, largest) number that a flag gives."""
    text = ",".join(FLAGS[name].value)
    try:
        smallest, largest = map(float, FLAGS[name].value)
    except ValueError:
        smallest = largest = math.nan
    upper = 1.0 if name == "crop_scale" else math.inf
    if not 0 < smallest <= largest <= upper or largest == math.inf:
        raise UserError(
            f"--{name}={text} is no range; it takes two positive numbers, the "
            f"smaller one first{', up to 1' * (upper == 1)}, such as "
            f"{RANGES[name]}"
        )
    return smallest, largest


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
    except SystemExit:
        # The help was asked for and shown, which absl takes for a failure.
        sys.exit(0)
