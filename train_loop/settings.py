"""Settings: everything that makes up a run, as one value."""

import dataclasses
import functools
import math
import os
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from train_loop import process
from train_loop.errors import UserError, check_choice
from train_loop.values import Bounds, Names
from train_loop.workdir import read_lines, write_text

if TYPE_CHECKING:
    from resnet_layers import Normalization
    from train_loop.training.schedules import Schedule

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Types of settings that have a smallest and a largest value.
NUMBERS = (int, float)


# Settings of earlier versions -> the default that they had, which is what
# happens today, and what to use now.
REMOVED = {
    **dict.fromkeys(
        ("kernel_products", "fused_batch_norm", "fold_batch_norm"),
        ("True", "Use --fast_paths=false to turn all fast paths off."),
    ),
    "constant_weights": (
        "False",
        "It is no part of --fast_paths. In Python, use "
        "classifier.make_weights_constant().",
    ),
}


# Earlier names of settings, as flags, in Python and in a run's `flags.txt`.
OLD_NAMES = {
    "accumulate_steps": "gradient_accumulation_steps",
    "average": "weight_average",
    "averaged": "use_weight_average",
    "remat": "gradient_checkpointing",
    "thaw_after_epochs": "unfreeze_after_epochs",
    "thawed_learning_rate": "unfrozen_learning_rate",
}


class _Unset:
    """What stands for a value that is to be as if nobody had given it."""

    def __bool__(self):
        return False

    def __str__(self):
        return "none"


UNSET = _Unset()


def setting(
    help_text,
    default=None,
    *,
    at_least=-math.inf,
    at_most=math.inf,
    **options,
):
    """Returns a field of `Settings`.

    Args:
      help_text: what it is, for `--help`; with the names of a table in it
        where it has {TABLE}, as `tables` says.
      default: its value where it is not given; recipes may differ.
      at_least: the smallest number that is possible.
      at_most: the largest number that is possible.
      **options: `choices`, the names that are possible; `fixed=True`, an
        existing run cannot change it; `absent`, what a `flags.txt` from before
        this setting existed means; `modes`, those that it is for, where it is
        not for all; `of_run=False`, it is no part of what repeats a run, as
        those for some modes are not;
        `group`, of those in `--help` that begins with it; `tables`, {TABLE:
        names} in the help text.
    """
    return dataclasses.field(
        default=None,
        metadata={
            "help": help_text,
            "default": default,
            "bounds": Bounds(at_least, at_most),
            "choices": None,
            "fixed": False,
            "of_run": not options.get("modes"),
            "absent": None,
            "modes": (),
            "group": None,
            "tables": {},
            **options,
        },
    )


def _accept_old_names(settings_class):
    """Makes a class of settings accept `OLD_NAMES`, each with a warning."""
    construct = settings_class.__init__

    @functools.wraps(construct)
    def construct_renamed(self, **values):
        construct(self, **with_new_names(values))

    settings_class.__init__ = construct_renamed
    return settings_class


def with_new_names(values, warns=True):
    """Returns {name: value} with the current names of settings.

    Raises:
      UserError: a setting has a value under both of its names.
    """
    for name in OLD_NAMES.keys() & values.keys():
        new = OLD_NAMES[name]
        if new in values:
            raise UserError(
                f"--{name}: cannot be combined with --{new}, its new name. "
                f"Remove --{name}."
            )
        if warns:
            warn_once(f"--{name}: renamed to --{new}. Use the new name.")
    return {OLD_NAMES.get(name, name): v for name, v in values.items()}


@functools.cache
def warn_once(line):
    """Prints a warning the first time that a program comes to it."""
    print(f"warning: {line}")


@_accept_old_names
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that makes up a run, or the part of it that somebody gave.

    None stands for what was not given: `resolve` fills it in. Each setting is
    the flag of the same name, and `--help` explains it. Values may be given
    as they are, or as the text of a command line; one that is not possible
    raises a `UserError`. What an existing run need not have, "none" takes away
    (`can_be_unset`).

        Settings(dataset="photos", model="resnet18", epochs=5)
    """

    dataset: str = setting(
        "One of: {DATASETS}. Or any image-classification set of "
        "TFDS; or a folder with train/CLASS/IMAGE and test/CLASS/IMAGE, in any "
        "capitals, or CLASS/IMAGE; or an .h5 file with train_set_x, "
        "train_set_y and list_classes; or a .csv or .tsv file with the columns "
        "image (or path, filename, ...; relative to it), label (or class, "
        "...), and split, if wanted.",
        "digits",
        fixed=True,
        group="data",
        tables={"DATASETS": Names("train_loop.data.datasets:DATASETS")},
    )
    train_split: str = setting(
        "What to train on, in the split language of TFDS, such as train[:90%].",
        "train",
        fixed=True,
    )
    eval_split: str = setting(
        "What to evaluate on, such as train[90%:]. Default: validation, val or "
        "test, whichever is there, or a part of train.",
        fixed=True,
    )
    validation_fraction: float = setting(
        "How much of the training images is kept for evaluation where there is "
        "no split for it; of each class the same part. 0: train on everything, "
        "evaluate on nothing.",
        0.2,
        at_least=0,
        at_most=1,
        fixed=True,
    )
    skip_bad_images: bool = setting(
        "Look through all images first, leave out those that cannot be "
        "decoded, and name them in bad_images.jsonl (--mode=data prints them). "
        "Else the first one ends the run. Of several workers, all leave out "
        "what is broken for one; what breaks later on one of them ends all.",
        False,
    )
    cache: str = setting(
        "Keeps the files of images in memory, or in the run's folder, where "
        "several workers share one copy. auto: in memory, if they fit into 256 "
        "MiB.",
        "auto",
        choices=Names("train_loop.data.cache:CACHES", "auto"),
    )
    data_service: str = setting(
        "Address of a tf.data service, such as grpc://host:5050, whose workers "
        "decode and augment JPEG and PNG files. The order of images then "
        "depends on their speed."
    )
    data_dir: str = setting(
        "Where TFDS keeps prepared data. Default: TFDS's own (TFDS_DATA_DIR, "
        "or tensorflow_datasets in the home directory)."
    )
    manual_dir: str = setting(
        "Where files are that TFDS cannot download, such as ImageNet's. "
        "Default: downloads/manual in data_dir."
    )
    workdir: str = setting(
        "Folder for everything that the run writes. An existing run goes on "
        "from its last checkpoint, with its own flags. Default: a new folder "
        "in runs/.",
        of_run=False,
    )
    recipe: str = setting(
        "Named settings, for all that is not given: {RECIPES}; auto: the "
        "dataset's own; help: prints what they are, as --mode=recipes does.",
        "auto",
        fixed=True,
        tables={"RECIPES": Names("train_loop.recipes:RECIPES")},
    )

    model: str = setting(
        "The network, by timm's name: resnet18, resnet50d, resnext50_32x4d. "
        "The README lists all. By default what --weights are of.",
        "resnet50",
        choices=Names("resnet_layers:VARIANTS"),
        fixed=True,
        group="model",
    )
    weights: str = setting(
        "What to start from: a file (.safetensors or .pth of torchvision or "
        "timm, .h5 of keras.applications, .keras or .weights.h5 of ours), a "
        "folder as timm or Keras Hub keep it, the folder of a run, imagenet "
        "(downloads keras.applications' file), or timm/NAME or keras/NAME "
        "(from the Hugging Face hub; an existing path of that name wins). A "
        "classifier for another number of classes is replaced. Default: "
        "random weights.",
        fixed=True,
    )
    freeze: str = setting(
        "What training leaves as it is, weights and statistics: none, stem, "
        "stage1 (and the stem), stage2 and so on, or backbone (all but the "
        "classifier).",
        "none",
        fixed=True,
    )
    cached_embeddings: bool = setting(
        "Ask a frozen backbone once what it makes of each image, cropped as "
        "for evaluation, and train the classifier on the answers, until "
        "--unfreeze_after_epochs. Default: with --freeze=backbone, unless "
        "--augment is given.",
        fixed=True,
    )
    unfreeze_after_epochs: float = setting(
        "Train what --freeze names as well after so many epochs: a second "
        "phase, with a warm-up and a schedule of its own. Default: never.",
        at_least=0,
        fixed=True,
    )
    frozen_batch_norm: bool = setting(
        "Leave parameters and statistics of all batch norms as they are.",
        False,
        fixed=True,
    )
    synchronized_batch_norm: bool = setting(
        "Batch statistics over all replicas: slower, and right for few images "
        "per replica.",
        False,
    )
    precision: str = setting(
        "What the network computes in. Variables and loss stay float32. With "
        "mixed_float16 the loss is scaled, as high as gradients stay finite.",
        "float32",
        choices=PRECISIONS,
        fixed=True,
    )

    image_size: int = setting(
        "Height and width that images are brought to; by default what "
        "--weights were trained with.",
        224,
        at_least=1,
        fixed=True,
        group="preprocessing",
    )
    channels: int = setting(
        "Channels of the model's images: 3 (RGB) or 1 (gray; images are "
        "converted). The first convolution of --weights is fitted to them. By "
        "default those of --weights.",
        3,
        choices=(1, 3),
        fixed=True,
        absent=3,
    )
    crop_fraction: float = setting(
        "Evaluation takes the middle of an image: this part of its shorter "
        "side; by default what --weights were trained with.",
        0.875,
        at_least=0.01,
        at_most=1,
    )
    interpolation: str = setting(
        "How images are resized; by default as --weights were trained.",
        "bilinear",
        choices=Names("train_loop.data.decode:INTERPOLATIONS"),
    )
    exif_orientation: bool = setting(
        "Decode image files as viewers show them: rotated and mirrored as "
        "their EXIF orientation says, transparent pixels blended with white. "
        "Images of TFDS are always decoded as they are stored.",
        True,
        absent=False,
    )
    # Its name, for the type takes TensorFlow.
    normalization: "Normalization" = setting(
        "What the model gets: {NORMALIZATIONS} (RGB of zero mean and unit "
        "variance, BGR of zero mean, or RGB from -1 to 1), or three means and "
        "three standard deviations on the scale from 0 to 255, M:M:M:S:S:S, "
        "with :bgr behind them for that order, or M:S for --channels=1; by "
        "default what --weights were trained with.",
        "imagenet",
        fixed=True,
        tables={"NORMALIZATIONS": Names("resnet_layers:NORMALIZATIONS")},
    )
    augment: tuple = setting(
        "What varies the training images, in this order, with commas between; "
        "empty for nothing. First a crop: {CROPS}. Then any of: "
        "{AUGMENTATIONS}. Last what blends whole batches, one of them drawn "
        "for each: {MIXES}. The numbers may be left out; in brackets, what "
        "they are then.",
        ("random_resized_crop", "flip"),
        tables={
            name: Names(
                f"train_loop.data.transforms:{name}",
                spelled="train_loop.data.transforms:operation_usage",
            )
            for name in ("CROPS", "AUGMENTATIONS", "MIXES")
        },
    )
    augment_repeats: int = setting(
        "How often an image stands in a batch, augmented in another way each "
        "time.",
        1,
        at_least=1,
    )

    batch_size: int = setting(
        "Images per step, over all replicas.",
        32,
        at_least=1,
        fixed=True,
        group="training",
    )
    epochs: float = setting(
        "How often to go through the training images.", 100.0, at_least=0
    )
    steps: int = setting(
        "How many optimizer updates to do; wins over --epochs.", at_least=1
    )
    learning_rate: float = setting(
        "Highest learning rate, for this batch size, or for --base_batch_size.",
        0.05,
        at_least=0,
    )
    base_batch_size: int = setting(
        "Batch size that --learning_rate is for: it is multiplied by "
        "batch_size / base_batch_size. Default: the rate is taken as it is.",
        at_least=1,
    )
    unfrozen_learning_rate: float = setting(
        "Highest learning rate after --unfreeze_after_epochs. "
        "Default: a tenth of "
        "--learning_rate.",
        at_least=0,
    )
    backbone_lr_factor: float = setting(
        "Factor on the learning rate of everything but the classifier.",
        1.0,
        at_least=0,
    )
    optimizer: str = setting(
        "What updates the weights; in brackets, the flags that it takes and "
        "what they are by default: {OPTIMIZERS}. Another one than the recipe's "
        "needs a --learning_rate of its own.",
        "sgd",
        choices=Names("train_loop.training.optimizers:OPTIMIZERS"),
        fixed=True,
        tables={
            "OPTIMIZERS": Names(
                "train_loop.training.optimizers:OPTIMIZERS",
                spelled="train_loop.training.optimizers:optimizer_usage",
            )
        },
    )
    momentum: float = setting(
        "How much of its velocity a step keeps, of the optimizers that have "
        "one.",
        at_least=0,
        at_most=0.999999,
    )
    nesterov: bool = setting(
        "Take the step with the velocity of the next one; see --optimizer."
    )
    beta_1: float = setting(
        "How much of its mean of gradients a step keeps; see --optimizer.",
        at_least=0,
        at_most=0.999999,
    )
    beta_2: float = setting(
        "How much of its mean of squared gradients a step keeps; see "
        "--optimizer.",
        at_least=0,
        at_most=0.999999,
    )
    epsilon: float = setting(
        "What is added to the root of that mean, which the step is divided by "
        "(by rmsprop to the mean itself).",
        at_least=1e-16,
    )
    # Its name, for the type takes TensorFlow.
    schedule: "Schedule" = setting(
        "How the learning rate goes on after the warm-up: {SCHEDULES}. Numbers "
        "may be left out; in brackets, what they are then. END and START are "
        "parts of the highest rate; the epochs of step are those of the run, "
        "30:60:80 if omitted. After --unfreeze_after_epochs, only "
        "later epochs of "
        "step lower --unfrozen_learning_rate.",
        "cosine",
        tables={
            "SCHEDULES": Names(
                "train_loop.training.schedules:SCHEDULES",
                spelled="train_loop.training.schedules:schedule_usage",
            )
        },
    )
    warmup_epochs: float = setting(
        "Epochs in which the learning rate rises from 0; at most half of the "
        "run.",
        5.0,
        at_least=0,
    )
    weight_decay: float = setting(
        "Strength of the L2 penalty on kernels, whose gradient goes through "
        "the optimizer as the loss's does; with adamw and lamb, of the decay "
        "beside the gradient.",
        1e-4,
        at_least=0,
    )
    loss: str = setting(
        "What is minimised: the cross entropy of a softmax over the classes, "
        "or the mean of one of a sigmoid for each class, which takes all the "
        "classes in a blended image to be there. Predictions are a softmax "
        "either way.",
        "softmax",
        choices=Names("train_loop.training.losses:LOSSES"),
        fixed=True,
    )
    class_weights: str = setting(
        "balanced: in training, all classes count alike together, however many "
        "images they have.",
        "none",
        choices=Names("train_loop.training.losses:CLASS_WEIGHTS"),
    )
    label_smoothing: float = setting(
        "Label-smoothing factor. With --loss=sigmoid it only raises the "
        "fraction of a mixed image above which a class counts as present.",
        0.1,
        at_least=0,
        at_most=1,
    )
    clip_norm: float = setting(
        "The longest that the gradients of all weights together may be; longer "
        "ones are shortened, after those of all replicas were summed. Default: "
        "any.",
        at_least=1e-6,
    )
    gradient_accumulation_steps: int = setting(
        "Take each batch in this many pieces, one after another, and update "
        "once: for batches that do not fit into memory. Batch norm sees the "
        "pieces.",
        1,
        at_least=1,
    )
    weight_average: str = setting(
        "Keeps a mean of the weights and statistics over many steps, which is "
        "evaluated beside them, and taken by the other modes: {AVERAGES} (ema: "
        "the newest count most; swa: the last quarter of all steps).",
        "none",
        choices=Names("train_loop.training.update:AVERAGES", "none"),
        fixed=True,
        tables={"AVERAGES": Names("train_loop.training.update:AVERAGES")},
    )
    ema_decay: float = setting(
        "How much of the mean stays at each step, with --weight_average=ema.",
        0.9999,
        at_least=0,
        at_most=1,
    )
    stochastic_depth: float = setting(
        "How likely the last block is left out for an image, in training; the "
        "others' likelihoods rise to it. 0: none is.",
        0.0,
        at_least=0,
        at_most=0.99,
        fixed=True,
    )
    seed: int = setting(
        "All randomness derives from it.",
        0,
        at_least=0,
        at_most=2**31 - 1,
        fixed=True,
    )

    strategy: str = setting(
        "Where to compute.",
        "mirrored",
        choices=Names("train_loop.training.strategies:STRATEGIES"),
        group="devices",
    )
    cluster: str = setting(
        "How the workers of --strategy=multi_worker find each other: tf_config "
        "(the environment variable TF_CONFIG) or slurm (one task a node, or "
        "--gpus-per-task).",
        "tf_config",
    )
    virtual_devices: int = setting(
        "Split the CPU into this many devices, to try replicas without GPUs.",
        at_least=1,
    )
    jit_compile: str = setting(
        "Have XLA compile the way from images to gradients. auto: on GPUs and "
        "TPUs; on CPUs it is slower.",
        "auto",
        choices=("auto", "true", "false"),
    )
    gradient_checkpointing: bool = setting(
        "Train with less memory, more slowly: the blocks keep nothing but "
        "their inputs, and run once more for the gradients.",
        False,
    )
    fast_paths: bool = setting(
        "Faster implementations, whose results differ only by rounding: the "
        "fused kernel for batch norms; on CPUs, matrix products for the "
        "gradients of 1x1 and some other kernels; outside of training, batch "
        "norms folded into the convolutions before them. false: plain "
        "TensorFlow operations, to compare with.",
        True,
        absent=True,
    )
    deterministic: bool = setting(
        "Make a GPU repeat a run bit by bit, more slowly. A CPU always does.",
        False,
    )

    report_every: int = setting(
        "Steps between two reports.", 100, at_least=1, group="reports"
    )
    evaluate_every: int = setting(
        "Steps between two evaluations. Default: an epoch.", at_least=1
    )
    checkpoint_every: int = setting(
        "Steps between two checkpoints. Default: an epoch, at most 500.",
        at_least=1,
    )
    keep_checkpoints: int = setting(
        "How many of the newest checkpoints to keep.", 3, at_least=1
    )
    keep_best: str = setting(
        "Keeps the checkpoint of the evaluation that was best by this metric, "
        "too; every evaluation is saved then.",
        "none",
        choices=Names("train_loop.training.checkpoints:MORE_IS_BETTER", "none"),
    )
    early_stopping: int = setting(
        "End after this many evaluations in a row that were no better than the "
        "best, by --keep_best or else by accuracy. With "
        "--unfreeze_after_epochs, "
        "those after it count.",
        at_least=1,
    )
    on_nonfinite: str = setting(
        "What to do where loss or weights are not finite, or beyond all "
        "reason. rollback: go on from the last checkpoint, without the images "
        "that did it.",
        "stop",
        choices=("stop", "rollback"),
    )
    max_rollbacks: int = setting(
        "How often a run goes back, before it gives up.", 3, at_least=1
    )
    histograms: bool = setting(
        "Show the weights in TensorBoard, as histograms, at every evaluation.",
        False,
    )
    show_predictions: bool = setting(
        "Show confusion matrix, precision-recall curves and mistakes in "
        "TensorBoard, once the run is at its end.",
        True,
    )
    profile_steps: range = setting(
        "Record what the devices do from one step to another, such as 100:110, "
        "for TensorBoard's profile (pip install tensorboard-plugin-profile).",
        of_run=False,
    )

    # What is asked of a run that is there.
    use_weight_average: bool = setting(
        "Take the averaged weights of a run that keeps some "
        "(--weight_average).",
        True,
        modes=("evaluate", "compare", "predict", "export"),
        group="modes",
    )
    checkpoint: int | str = setting(
        "Step of the checkpoint to take; or best: that of the best evaluation, "
        "by --keep_best, which keeps it, or else by accuracy. Default: the "
        "last.",
        modes=("evaluate", "compare", "predict", "export"),
    )
    class_names: str = setting(
        "Text file with the names of the classes of --weights, one on each "
        "line, in the order of the logits. Default: those beside the weights, "
        "ImageNet's for 1,000 classes, or those of the data set that they are "
        "evaluated on.",
        modes=("evaluate", "compare", "predict"),
    )
    test_time_augmentation: str = setting(
        "What a model sees of each image; its answers are averaged.",
        "none",
        choices=Names(
            "train_loop.evaluation.predictions:TEST_TIME_AUGMENTATIONS"
        ),
        modes=("evaluate", "compare"),
    )
    calibration_split: str = setting(
        "Split to fit a temperature on, which makes confidences honest; one "
        "that was neither trained on nor is measured.",
        modes=("evaluate",),
    )
    report: str = setting(
        "Name of the report's folder in the run's. Default: report, and what "
        "differs from the run, such as report-image_size=288.",
        modes=("evaluate", "compare"),
    )
    with_: str = setting(
        "What to compare with: another run, a file of weights, imagenet, or "
        "timm/NAME.",
        modes=("compare",),
    )
    images: str = setting(
        "Pictures to name, or to try what is exported on: files, folders and "
        "globs such as 'photos/*.jpg', with commas between; or - for a list "
        "on standard input, a name a line. Default of an export: some that "
        "the run was evaluated on.",
        modes=("predict", "export"),
    )
    format: str = setting(
        "What --mode=predict prints, one of: {PREDICTION_FORMATS} (default: "
        "table). What --mode=export writes, with commas between: {FORMATS} "
        "(default: saved_model).",
        modes=("predict", "export"),
        tables={
            "PREDICTION_FORMATS": Names(
                "train_loop.prediction.predict_files:PREDICTION_FORMATS"
            ),
            "FORMATS": Names("train_loop.exports.formats:EXPORT_FORMATS"),
        },
    )
    top_k: int = setting(
        "How many classes an answer names, of predict and of an exported "
        "saved_model.",
        5,
        at_least=1,
        modes=("predict", "export"),
    )
    explain: bool = setting(
        "Draw where in each picture its first prediction was seen (Grad-CAM).",
        False,
        modes=("predict",),
    )
    explain_dir: str = setting(
        "Folder for what --explain draws. Default: explanations/ in the run's.",
        modes=("predict",),
    )
    export_dir: str = setting(
        "Folder for what is exported. Default: export/ in the run's.",
        modes=("export",),
    )
    benchmark: str = setting(
        "What --mode=benchmark measures, with commas between: {TASKS}. Memory "
        "is that of the process so far: ask for one at a time to know what "
        "each takes. Training with --freeze is timed on images, even where a "
        "run would cache the embeddings of a frozen backbone, and with all of "
        "it frozen, even where --unfreeze_after_epochs would train it later.",
        "train",
        modes=("benchmark",),
        tables={"TASKS": Names("train_loop.benchmark.tasks:TASKS")},
    )
    benchmark_data: str = setting(
        "What it is measured on: synthetic, one batch of noise that nobody "
        "reads or prepares, so that only the model counts; or real, the "
        "images of --dataset, read and augmented as in a run; a --workdir "
        "that is named then keeps what --cache=disk and --skip_bad_images "
        "write. Default: real with a --dataset or the --workdir of a run, "
        "else synthetic.",
        choices=("synthetic", "real"),
        modes=("benchmark",),
    )
    benchmark_rounds: int = setting(
        "How many groups of steps are timed, behind those to warm up; a group "
        "is one step, or as many as take a quarter of a second.",
        20,
        at_least=1,
        modes=("benchmark",),
    )
    benchmark_file: str = setting(
        "A file for all numbers of a benchmark, as JSON. Default: none.",
        modes=("benchmark",),
    )

    def __post_init__(self):
        # Names last, for some of them take TensorFlow.
        for field in sorted(fields(self), key=lambda f: f.type not in NUMBERS):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _convert(field, value))

    @property
    def given(self):
        """{name: value} of all that is not None."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) is not None
        }

    @property
    def preprocessing(self):
        """What images go through, a `resnet_layers.Preprocessing`."""
        from resnet_layers import Preprocessing

        normalization = self.normalization
        if None not in (normalization, self.channels):
            normalization = normalization.for_channels(self.channels)
        return Preprocessing(
            normalization=normalization,
            image_size=self.image_size,
            crop_fraction=self.crop_fraction,
            interpolation=self.interpolation,
            exif_orientation=self.exif_orientation,
        )

    def over(self, other):
        """Returns what is given here, and beside it what another one gives."""
        given = {n: None if v is UNSET else v for n, v in self.given.items()}
        return dataclasses.replace(other, **given)

    def texts(self):
        """Returns {name: text} of what repeats the run."""
        return {
            field.name: to_text(getattr(self, field.name))
            for field in fields(self)
            if field.metadata["of_run"]
            and getattr(self, field.name) is not None
        }

    def changes(self, now):
        """Returns {name: (text, text of now)} of what others repeat otherwise.

        Empty where these are no settings at all.
        """
        if not self.given:
            return {}
        before, now = self.texts(), now.texts()
        return {
            name: (before.get(name), now.get(name))
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        }

    def write(self, path):
        """Writes a `--flagfile` that repeats the run."""
        lines = [f"--{name}={text}\n" for name, text in self.texts().items()]
        write_text(path, "".join(lines))

    @classmethod
    def read(cls, path):
        """Returns the settings in a file of `write`; none without a file.

        A setting that no longer exists is ignored, with a warning unless its
        value was what happens today.

        Raises:
          UserError: the file is damaged.
        """
        if not path.is_file():
            return cls()
        # What is no text is no flag.
        lines = read_lines(path)
        flags = [
            re.fullmatch("--([a-z_0-9]+)=(.*)", line, re.DOTALL)
            for line in lines
        ]
        if None in flags or not flags:
            fault = "it is empty"
            if flags:
                fault = f"not a flag: {lines[flags.index(None)][:80]!r}"
            raise UserError(
                f"{path} is damaged: {fault}. Restore it from a backup, or "
                f"start a new run from the weights: --weights={path.parent} "
                "and its --model"
            )
        texts = {flag[1]: flag[2] for flag in flags}
        texts = with_new_names(texts, warns=False)
        known = {field.name: field.metadata["absent"] for field in fields(cls)}
        for name in texts.keys() - known.keys():
            text = texts.pop(name)
            if REMOVED.get(name, (None,))[0] != text:
                warn_once(
                    f"{path}: --{name}={text}: no longer a setting, ignored"
                )
        return cls(**{**known, **texts})


def default_values(of_modes=False):
    """Returns {name: default} of a run's settings, or those of the modes."""
    return {
        field.name: field.metadata["default"]
        for field in fields(Settings)
        if bool(field.metadata["modes"]) == of_modes
    }


def scaled_learning_rate(learning_rate, batch_size, base_batch_size):
    """Returns the learning rate of a batch size, in proportion to it.

    Args:
      learning_rate: that of `base_batch_size`.
      batch_size: in use.
      base_batch_size: None for a learning rate that is used as it is.

    Source: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
    """
    return learning_rate * batch_size / (base_batch_size or batch_size)


def can_be_unset(field):
    """Whether a run that was made with it can go on without it."""
    options = field.metadata
    is_needed = options["default"] is not None or options["fixed"]
    return options["of_run"] and not is_needed and field.type is not bool


def flag_name(name):
    """Returns the flag of a setting: `with_` would be a word of Python's."""
    return name.removesuffix("_")


def to_text(value):
    """Returns a setting as a command line has it."""
    if type(value) is tuple:
        return ",".join(map(str, value))
    if isinstance(value, range):
        return f"{value[0]}:{value[-1]}"
    if type(value).__name__ == "Normalization":
        return _normalization_text(value)
    return str(value)


def _normalization_text(value):
    from resnet_layers import NORMALIZATIONS

    for name, row in NORMALIZATIONS.items():
        if value == row:
            return name
    order = ["bgr"] if value.bgr else []
    numbers = [repr(number) for number in (*value.mean, *value.stddev)]
    return ":".join([*numbers, *order])


def _convert(field, value):
    """Returns the value of a field in the field's type, if it is possible."""
    flag = f"--{flag_name(field.name)}"
    if can_be_unset(field) and value in (UNSET, str(UNSET)):
        return UNSET
    value = CONVERTERS[field.type](flag, value)
    if field.metadata["choices"] is not None:
        check_choice(flag, value, field.metadata["choices"])
    if field.type in NUMBERS:
        field.metadata["bounds"].check(flag, value)
    return value


def _to_str(flag, value):
    text = os.fspath(value)
    # TensorFlow takes no other names. Images are read without it.
    shown = text.encode(errors="backslashreplace").decode()
    if shown != text and flag != "--images":
        raise UserError(
            f"{flag}={shown}: must be UTF-8. Rename the file or folder."
        )
    # What else ends a line elsewhere is a letter in `flags.txt`.
    if "\n" in text or "\r" in text:
        raise UserError(f"{flag}={text!r} has two lines; it takes one")
    return text


def _to_int(flag, value):
    try:
        number = float(value)
        if number == int(number):
            return int(value if isinstance(value, str | int) else number)
    except (ValueError, TypeError, OverflowError):
        pass
    raise UserError(f"{flag}={value} is not possible; it takes a whole number")


def _to_checkpoint(flag, value):
    if value == "best":
        return value
    try:
        step = _to_int(flag, value)
    except UserError:
        step = 0
    if step < 1:
        raise UserError(
            f"{flag}={value} is not possible; it takes a step, from 1 on, or "
            "best"
        )
    return step


def _to_float(flag, value):
    try:
        return float(value)
    except (ValueError, TypeError):
        raise UserError(
            f"{flag}={value} is not possible; it takes a number"
        ) from None


def _to_bool(flag, value):
    values = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if text not in values:
        raise UserError(f"{flag}={value} is not possible; it takes true, false")
    return values[text]


def _to_operations(flag, value):
    process.import_tensorflow()
    from train_loop.data.transforms import parse_operations

    return parse_operations(value)


def _to_schedule(flag, value):
    process.import_tensorflow()
    from train_loop.training.schedules import Schedule

    return value if isinstance(value, Schedule) else Schedule.parse(value)


def _to_normalization(flag, value):
    process.import_tensorflow()
    from resnet_layers import NORMALIZATIONS, Normalization

    if isinstance(value, Normalization):
        return value
    try:
        return Normalization.of_text(value)
    except ValueError:
        return check_choice(flag, value, [*NORMALIZATIONS, "M:M:M:S:S:S"])


def _to_range(flag, value):
    """Both ends are in it, as "100:110" says; in Python, a `range`."""
    if isinstance(value, range):
        return value
    try:
        first, last = map(int, value.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise UserError(
            f"{flag}={value} is not possible; it takes the first and the last "
            "step, such as 100:110"
        )
    return range(first, last + 1)


# Type of a field -> (flag, value or text) -> value.
CONVERTERS = {
    str: _to_str,
    int: _to_int,
    int | str: _to_checkpoint,
    float: _to_float,
    bool: _to_bool,
    tuple: _to_operations,
    "Normalization": _to_normalization,
    "Schedule": _to_schedule,
    range: _to_range,
}
