"""Settings: all flags of a run as one frozen value."""

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
# Types of settings with bounds.
NUMBERS = (int, float)


# Removed settings -> their default, which is today's behavior, and what to use
# instead.
REMOVED = {
    **dict.fromkeys(
        ("kernel_products", "fused_batch_norm", "fold_batch_norm"),
        ("True", "Use --fast_paths=false to turn all fast paths off."),
    ),
    "constant_weights": (
        "False",
        "In Python, use classifier.make_weights_constant().",
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
    """An explicit "none": resets a setting of an existing run."""

    def __bool__(self):
        return False

    def __str__(self):
        return "none"


UNSET = _Unset()


def setting(
    summary,
    default=None,
    *,
    details="",
    at_least=-math.inf,
    at_most=math.inf,
    **options,
):
    """Returns a field of `Settings`.

    Args:
      summary: at most eight words for the overview of `--help`.
      default: value without a flag; recipes may differ.
      details: text for `--help=FLAG`, with {TABLE} for the names in a table.
      at_least: smallest number.
      at_most: largest number.
      **options: `choices`, the accepted names; `metavar`, what kind of text is
        expected; `fixed=True`, an existing run cannot change it; `absent`, its
        value in a `flags.txt` that is older than the setting; `modes`, those
        that use it, if not all do; `of_run=False`, it is not needed to repeat
        a run (nor are the settings of some modes); `group`, the first setting
        of a group in `--help`; `expert=True`, listed last there; `tables`,
        {TABLE: names} for the details.
    """
    return dataclasses.field(
        default=None,
        metadata={
            "summary": summary,
            "details": details,
            "default": default,
            "bounds": Bounds(at_least, at_most),
            "choices": None,
            "metavar": None,
            "fixed": False,
            "of_run": not options.get("modes"),
            "absent": None,
            "modes": (),
            "group": None,
            "expert": False,
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
    """Prints a warning, once per process."""
    print(f"warning: {line}")


@_accept_old_names
@dataclass(frozen=True, kw_only=True)
class Settings:
    """All flags of a run, or the explicit ones among them.

    Every setting is the flag of the same name; the command-line reference
    explains them. A setting that is None gets its value from the run, the
    weights, the recipe or the default. Values are accepted as they are or as
    text of a command line.

    Example:
        ```python
        Settings(dataset="photos", model="resnet18", epochs=5)
        ```

    Raises:
      UserError: a value is not accepted.
    """

    dataset: str = setting(
        "Name, folder, .h5 or .csv file.",
        "digits",
        details="One of {DATASETS}; the name of a TFDS image-classification "
        "data set; a folder with train/CLASS/IMAGE and test/CLASS/IMAGE, or "
        "CLASS/IMAGE; an .h5 file with train_set_x, train_set_y and "
        "list_classes; or a .csv or .tsv file with the columns image (or path, "
        "filename), label (or class) and, optionally, split.",
        metavar="NAME|PATH",
        fixed=True,
        group="data",
        tables={"DATASETS": Names("train_loop.data.datasets:DATASETS")},
    )
    train_split: str = setting(
        "Training split, such as train[:90%].",
        "train",
        details="TFDS split syntax, for every kind of data set.",
        metavar="SPLIT",
        fixed=True,
    )
    eval_split: str = setting(
        "Evaluation split, such as train[90%:].",
        details="TFDS split syntax. Default: validation, val or test, "
        "whichever exists, or --validation_fraction of the training split.",
        metavar="SPLIT",
        fixed=True,
    )
    validation_fraction: float = setting(
        "Held-out fraction of each class.",
        0.2,
        details="For a data set without an evaluation split. 0: train on all "
        "images and skip evaluation.",
        at_least=0,
        at_most=1,
        fixed=True,
    )
    skip_bad_images: bool = setting(
        "Skip images that cannot be decoded.",
        False,
        details="Decodes all images before training, skips broken ones and "
        "lists them in bad_images.jsonl (--mode=data prints them). Without it, "
        "the first broken image ends the run. With several workers, an image "
        "that is broken for one is skipped by all; one that breaks later ends "
        "all of them.",
    )
    cache: str = setting(
        "Where image files are cached.",
        "auto",
        details="disk caches in the run's folder, where several workers share "
        "one copy. auto: memory if the files fit into 256 MiB, else none.",
        choices=Names("train_loop.data.cache:CACHES", "auto"),
    )
    data_service: str = setting(
        "tf.data service, such as grpc://host:5050.",
        details="Its workers decode and augment JPEG and PNG files. The order "
        "of images then depends on the speed of the workers.",
        metavar="URL",
        expert=True,
    )
    data_dir: str = setting(
        "TFDS folder of prepared data sets.",
        details="Default: TFDS_DATA_DIR, or tensorflow_datasets in the home "
        "directory.",
        metavar="PATH",
    )
    manual_dir: str = setting(
        "Folder of manually downloaded archives.",
        details="For data sets that TFDS cannot download, such as ImageNet. "
        "Default: downloads/manual in --data_dir.",
        metavar="PATH",
    )
    workdir: str = setting(
        "The run's folder; an existing run resumes.",
        details="An existing run resumes from its last checkpoint with its own "
        "settings. Default: a new folder in runs/.",
        metavar="PATH",
        of_run=False,
    )
    recipe: str = setting(
        "Named defaults of all other flags.",
        "auto",
        details="One of {RECIPES}. auto: the recipe of the data set, or else "
        "images; with --weights, finetune instead of images and "
        "oxford_iiit_pet. help: list them, as --mode=recipes does.",
        metavar="NAME",
        fixed=True,
        tables={"RECIPES": Names("train_loop.recipes:RECIPES")},
    )

    model: str = setting(
        "Model, by its name in timm.",
        "resnet50",
        details="Such as resnet18, resnet50d or resnext50_32x4d; the model zoo "
        "of the documentation lists all. Default with --weights: their model, "
        "if known.",
        choices=Names("resnet_layers:VARIANTS"),
        fixed=True,
        group="model",
    )
    weights: str = setting(
        "Initial weights: file, run or timm/NAME.",
        details="A file (.safetensors or .pth of torchvision or timm, .h5 of "
        "keras.applications, .keras or .weights.h5 of this project), a folder "
        "of timm or Keras Hub, the folder of a run, imagenet (downloads the "
        "file of keras.applications), or timm/NAME or keras/NAME (downloads "
        "from the Hugging Face Hub, unless a path of this name exists). A "
        "classifier for other classes is replaced. Default: random weights.",
        metavar="PATH|NAME",
        fixed=True,
    )
    freeze: str = setting(
        "Frozen: none, stem, stageN, backbone.",
        "none",
        details="Training does not change their weights and batch-norm "
        "statistics. stage2: the stem and the stages up to 2. backbone: all "
        "layers but the classifier.",
        metavar="NAME",
        fixed=True,
    )
    cached_embeddings: bool = setting(
        "Compute frozen embeddings only once.",
        details="The classifier trains on embeddings of images that are "
        "cropped as for evaluation, until --unfreeze_after_epochs. Default: "
        "true with --freeze=backbone and without --augment.",
        fixed=True,
    )
    unfreeze_after_epochs: float = setting(
        "Epochs until --freeze ends.",
        details="A second phase then trains all layers, with its own warm-up "
        "and schedule. Default: never.",
        at_least=0,
        fixed=True,
    )
    frozen_batch_norm: bool = setting(
        "Freeze all batch norms.",
        False,
        details="Their parameters and their statistics.",
        fixed=True,
    )
    synchronized_batch_norm: bool = setting(
        "Batch statistics over all replicas.",
        False,
        details="Slower; helps with few images per replica.",
    )
    precision: str = setting(
        "Precision of computations.",
        "float32",
        details="Variables and loss are always float32. mixed_float16 uses "
        "dynamic loss scaling.",
        choices=PRECISIONS,
        fixed=True,
    )

    image_size: int = setting(
        "Image height and width, in pixels.",
        224,
        details="Default with --weights: the size that they were trained with.",
        at_least=1,
        fixed=True,
        group="preprocessing",
    )
    channels: int = setting(
        "Channels: 3 (RGB) or 1 (grayscale).",
        3,
        details="Images are converted. The first convolution of --weights is "
        "adapted. Default with --weights: their channels.",
        choices=(1, 3),
        fixed=True,
        absent=3,
    )
    crop_fraction: float = setting(
        "Center crop of evaluation.",
        0.875,
        details="Side of the crop as a fraction of the image's shorter side. "
        "Default with --weights: the fraction that they were trained with.",
        at_least=0.01,
        at_most=1,
    )
    interpolation: str = setting(
        "Interpolation for resizing.",
        "bilinear",
        details="Default with --weights: the one that they were trained with.",
        choices=Names("train_loop.data.decode:INTERPOLATIONS"),
    )
    exif_orientation: bool = setting(
        "Apply the EXIF orientation.",
        True,
        details="Image files are decoded as viewers show them, with "
        "transparent pixels on white. Images of TFDS are always decoded as "
        "stored.",
        absent=False,
        expert=True,
    )
    # Named, not imported: its type needs TensorFlow.
    normalization: "Normalization" = setting(
        "Normalization of the input.",
        "imagenet",
        details="One of {NORMALIZATIONS} (RGB of zero mean and unit variance; "
        "BGR of zero mean; RGB from -1 to 1), or means and standard deviations "
        "on the scale from 0 to 255: M:M:M:S:S:S, with :bgr at the end for BGR "
        "order, or M:S with --channels=1. Default with --weights: the "
        "normalization that they were trained with.",
        metavar="NAME|NUMBERS",
        fixed=True,
        tables={"NORMALIZATIONS": Names("resnet_layers:NORMALIZATIONS")},
    )
    augment: tuple = setting(
        "Augmentations.",
        ("random_resized_crop", "flip"),
        details="In order, separated by commas; empty: none. A crop comes "
        "first: {CROPS}. Then any of: {AUGMENTATIONS}. Operations that mix "
        "images of a batch come last; of several, each batch uses one at "
        "random: {MIXES}. Numbers are optional; their defaults are in "
        "parentheses.",
        metavar="NAME,NAME",
        tables={
            name: Names(
                f"train_loop.data.transforms:{name}",
                spelled="train_loop.data.transforms:operation_usage",
            )
            for name in ("CROPS", "AUGMENTATIONS", "MIXES")
        },
    )
    augment_repeats: int = setting(
        "Differently augmented copies per batch.",
        1,
        details="Repeated augmentation: each image occurs this many times in "
        "its batch, augmented differently each time.",
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
        "Passes over the training images.",
        100.0,
        at_least=0,
    )
    steps: int = setting(
        "Optimizer updates; overrides --epochs.",
        at_least=1,
    )
    learning_rate: float = setting(
        "Peak learning rate.",
        0.05,
        details="For --batch_size or, if specified, for --base_batch_size.",
        at_least=0,
    )
    base_batch_size: int = setting(
        "Batch size of --learning_rate.",
        details="The learning rate is multiplied by batch_size / "
        "base_batch_size. Default: no scaling.",
        at_least=1,
    )
    unfrozen_learning_rate: float = setting(
        "Peak learning rate after unfreezing.",
        details="After --unfreeze_after_epochs. Default: a tenth of "
        "--learning_rate.",
        at_least=0,
    )
    backbone_lr_factor: float = setting(
        "Learning-rate factor of the backbone.",
        1.0,
        details="Multiplies the learning rate of all layers but the "
        "classifier.",
        at_least=0,
    )
    optimizer: str = setting(
        "Optimizer.",
        "sgd",
        details="With its flags and their defaults: {OPTIMIZERS}. An optimizer "
        "that differs from the recipe's requires --learning_rate.",
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
        "Momentum coefficient (sgd, rmsprop, lars).",
        at_least=0,
        at_most=0.999999,
    )
    nesterov: bool = setting("Nesterov momentum (sgd, lars).")
    beta_1: float = setting(
        "First-moment decay (Adam, LAMB).",
        at_least=0,
        at_most=0.999999,
        expert=True,
    )
    beta_2: float = setting(
        "Second-moment decay (Adam, LAMB).",
        at_least=0,
        at_most=0.999999,
        expert=True,
    )
    epsilon: float = setting(
        "Denominator term (Adam, LAMB, rmsprop).",
        details="Added to the root of the second moment; by rmsprop, to the "
        "second moment itself.",
        at_least=1e-16,
        expert=True,
    )
    # Named, not imported: its type needs TensorFlow.
    schedule: "Schedule" = setting(
        "Learning-rate schedule.",
        "cosine",
        details="After the warm-up, one of {SCHEDULES}. Numbers are optional; "
        "their defaults are in parentheses. END and START are fractions of the "
        "peak learning rate. The epochs of step count from the start of the "
        "run (30:60:80 if omitted); after --unfreeze_after_epochs, only later "
        "ones lower --unfrozen_learning_rate.",
        metavar="NAME:NUMBERS",
        tables={
            "SCHEDULES": Names(
                "train_loop.training.schedules:SCHEDULES",
                spelled="train_loop.training.schedules:schedule_usage",
            )
        },
    )
    warmup_epochs: float = setting(
        "Epochs of linear warm-up from 0.",
        5.0,
        details="At most half of the run.",
        at_least=0,
    )
    weight_decay: float = setting(
        "Weight decay of kernels.",
        1e-4,
        details="An L2 penalty, whose gradient passes through the optimizer; "
        "with adamw and lamb, decoupled weight decay. Biases and parameters of "
        "norms have none.",
        at_least=0,
    )
    loss: str = setting(
        "Cross-entropy: softmax or sigmoid.",
        "softmax",
        details="sigmoid: mean binary cross-entropy over the classes; each "
        "class in a mixed image counts as present. Predictions are a softmax "
        "with both.",
        choices=Names("train_loop.training.losses:LOSSES"),
        fixed=True,
    )
    class_weights: str = setting(
        "Class weights of the training loss.",
        "none",
        details="balanced: inversely proportional to the number of images of "
        "the class.",
        choices=Names("train_loop.training.losses:CLASS_WEIGHTS"),
    )
    label_smoothing: float = setting(
        "Label-smoothing factor.",
        0.1,
        details="With --loss=sigmoid it only raises the fraction of a mixed "
        "image above which a class counts as present.",
        at_least=0,
        at_most=1,
    )
    clip_norm: float = setting(
        "Maximum global gradient norm.",
        details="Larger gradients are scaled down, after the sum over all "
        "replicas. Default: no clipping.",
        at_least=1e-6,
    )
    gradient_accumulation_steps: int = setting(
        "Micro-batches per step.",
        1,
        details="Each batch is split into micro-batches, whose gradients are "
        "summed for one update: less memory for the same update. Batch norm "
        "uses the statistics of each micro-batch.",
        at_least=1,
    )
    weight_average: str = setting(
        "Average of weights over steps.",
        "none",
        details="ema: exponential moving average (--ema_decay). swa: mean over "
        "the last quarter of the steps. The average is evaluated beside the "
        "weights of the last step, and the default of the other modes.",
        choices=Names("train_loop.training.update:AVERAGES", "none"),
        fixed=True,
    )
    ema_decay: float = setting(
        "Decay of --weight_average=ema.",
        0.9999,
        details="Smaller in the first steps.",
        at_least=0,
        at_most=1,
    )
    stochastic_depth: float = setting(
        "Drop-path rate of the last block.",
        0.0,
        details="Stochastic depth: the rate rises linearly from the first "
        "block to the last.",
        at_least=0,
        at_most=0.99,
        fixed=True,
    )
    seed: int = setting(
        "Random seed.",
        0,
        details="Initial weights, order of images, augmentation and drop path "
        "derive from it.",
        at_least=0,
        at_most=2**31 - 1,
        fixed=True,
    )

    strategy: str = setting(
        "Distribution strategy.",
        "mirrored",
        choices=Names("train_loop.training.strategies:STRATEGIES"),
        group="devices",
    )
    cluster: str = setting(
        "How workers find each other.",
        "tf_config",
        details="For --strategy=multi_worker. tf_config: environment variable "
        "TF_CONFIG. slurm: one task per node, or --gpus-per-task.",
        metavar="NAME",
    )
    virtual_devices: int = setting(
        "Virtual devices to split the CPU into.",
        details="Tries several replicas on a machine without GPUs.",
        at_least=1,
        expert=True,
    )
    jit_compile: str = setting(
        "Compile training with XLA.",
        "auto",
        details="Forward and backward pass. auto: on GPUs and TPUs. On CPUs, "
        "XLA is slower.",
        choices=("auto", "true", "false"),
    )
    gradient_checkpointing: bool = setting(
        "Recompute activations to save memory.",
        False,
        details="Each block keeps only its input and runs again in the "
        "backward pass: same results, about a third more computation.",
    )
    fast_paths: bool = setting(
        "Use faster implementations.",
        True,
        details="Fused batch norm; on CPUs, matrix products for gradients of "
        "1x1 and some other kernels; outside of training, batch norms folded "
        "into convolutions. Results differ by rounding only. false: plain "
        "TensorFlow operations, as a reference.",
        absent=True,
        expert=True,
    )
    deterministic: bool = setting(
        "Bitwise reproducible training on GPUs.",
        False,
        details="Slower. Training on CPUs is always reproducible.",
    )

    report_every: int = setting(
        "Steps between reports.",
        100,
        at_least=1,
        group="reports",
    )
    evaluate_every: int = setting(
        "Steps between evaluations.",
        details="Default: one epoch.",
        at_least=1,
    )
    checkpoint_every: int = setting(
        "Steps between checkpoints.",
        details="Default: one epoch, at most 500 steps.",
        at_least=1,
    )
    keep_checkpoints: int = setting(
        "Number of recent checkpoints to keep.",
        3,
        at_least=1,
    )
    keep_best: str = setting(
        "Metric of the best checkpoint.",
        "none",
        details="Every evaluation is saved; the best checkpoint is kept beside "
        "the recent ones.",
        choices=Names("train_loop.training.checkpoints:MORE_IS_BETTER", "none"),
    )
    early_stopping: int = setting(
        "Patience: evaluations without improvement.",
        details="Training ends after so many evaluations in a row that are not "
        "better than the best, by --keep_best or else by accuracy. With "
        "--unfreeze_after_epochs, only evaluations after it count. Default: "
        "never.",
        at_least=1,
    )
    on_nonfinite: str = setting(
        "If loss or weights diverge.",
        "stop",
        details="For values that are not finite or exceed any plausible "
        "magnitude. rollback: resume from the last checkpoint and skip the "
        "batches that caused it.",
        choices=("stop", "rollback"),
        expert=True,
    )
    max_rollbacks: int = setting(
        "Rollbacks before the run ends.",
        3,
        at_least=1,
        expert=True,
    )
    histograms: bool = setting(
        "Weight histograms in TensorBoard.",
        False,
        details="At every evaluation.",
        expert=True,
    )
    show_predictions: bool = setting(
        "Evaluation figures in TensorBoard.",
        True,
        details="Confusion matrix, precision-recall curves and misclassified "
        "images, at the end of the run.",
    )
    profile_steps: range = setting(
        "Steps to profile, such as 100:110.",
        details="For TensorBoard's profile page (pip install "
        "tensorboard-plugin-profile).",
        metavar="FIRST:LAST",
        of_run=False,
        expert=True,
    )

    # Settings of the modes that use an existing run.
    use_weight_average: bool = setting(
        "Use averaged weights, if available.",
        True,
        details="See --weight_average.",
        modes=("evaluate", "compare", "predict", "export"),
        group="modes",
    )
    checkpoint: int | str = setting(
        "Checkpoint to use.",
        details="best: that of the best evaluation, by --keep_best or else by "
        "accuracy. Default: the last.",
        metavar="STEP|best",
        modes=("evaluate", "compare", "predict", "export"),
    )
    class_names: str = setting(
        "Text file with class names of --weights.",
        details="One name per line, in the order of the logits. Default: the "
        "names beside the weights, ImageNet's for 1,000 classes, or those of "
        "the data set of the evaluation.",
        metavar="PATH",
        modes=("evaluate", "compare", "predict"),
    )
    test_time_augmentation: str = setting(
        "Views to average predictions over.",
        "none",
        choices=Names(
            "train_loop.evaluation.predictions:TEST_TIME_AUGMENTATIONS"
        ),
        modes=("evaluate", "compare"),
    )
    calibration_split: str = setting(
        "Split to fit a softmax temperature on.",
        details="Must differ from the training and the evaluation split.",
        metavar="SPLIT",
        modes=("evaluate",),
    )
    report: str = setting(
        "Name of the report's folder.",
        details="In the run's folder. Default: report, with what differs from "
        "the run, such as report-image_size=288.",
        metavar="NAME",
        modes=("evaluate", "compare"),
    )
    with_: str = setting(
        "Run or weights to compare with.",
        details="The folder of a run, a file of weights, imagenet or "
        "timm/NAME.",
        metavar="PATH|NAME",
        modes=("compare",),
    )
    images: str = setting(
        "Image files, folders or globs.",
        details="Separated by commas, such as 'photos/*.jpg'; or - to read "
        "names from standard input, one per line. An export is verified on "
        "them. Default of an export: some images of the evaluation split.",
        metavar="PATHS",
        modes=("predict", "export"),
    )
    format: str = setting(
        "Output format of predict and of export.",
        details="Of --mode=predict, one of {PREDICTION_FORMATS} (default: "
        "table). Of --mode=export, some of {FORMATS}, separated by commas "
        "(default: saved_model).",
        metavar="NAME",
        modes=("predict", "export"),
        tables={
            "PREDICTION_FORMATS": Names(
                "train_loop.prediction.predict_files:PREDICTION_FORMATS"
            ),
            "FORMATS": Names("train_loop.exports.formats:EXPORT_FORMATS"),
        },
    )
    top_k: int = setting(
        "Classes per prediction.",
        5,
        details="Of predict and of an exported SavedModel.",
        at_least=1,
        modes=("predict", "export"),
    )
    explain: bool = setting(
        "Draw Grad-CAM of the top class.",
        False,
        modes=("predict",),
    )
    explain_dir: str = setting(
        "Folder for --explain.",
        details="Default: explanations/ in the run's folder.",
        metavar="PATH",
        modes=("predict",),
    )
    export_dir: str = setting(
        "Folder for the exported files.",
        details="Default: export/ in the run's folder.",
        metavar="PATH",
        modes=("export",),
    )
    benchmark: str = setting(
        "What to measure.",
        "train",
        details="Any of {TASKS}, separated by commas. Memory is the peak of "
        "the process so far: measure one at a time to tell them apart. "
        "Training with --freeze is measured on images, without cached "
        "embeddings, and before --unfreeze_after_epochs.",
        metavar="NAMES",
        modes=("benchmark",),
        tables={"TASKS": Names("train_loop.benchmark.tasks:TASKS")},
    )
    benchmark_data: str = setting(
        "Synthetic batches, or real images.",
        details="synthetic: one batch of noise, without an input pipeline. "
        "real: the images of --dataset, read and augmented as in training; "
        "--cache=disk and --skip_bad_images then write to --workdir. Default: "
        "real with --dataset or the --workdir of a run, else synthetic.",
        choices=("synthetic", "real"),
        modes=("benchmark",),
    )
    benchmark_rounds: int = setting(
        "Timed groups of steps.",
        20,
        details="After the warm-up. A group is one step, or as many as take a "
        "quarter of a second.",
        at_least=1,
        modes=("benchmark",),
        expert=True,
    )
    benchmark_file: str = setting(
        "JSON file for all numbers.",
        details="Default: none.",
        metavar="PATH",
        modes=("benchmark",),
    )

    def __post_init__(self):
        # Settings with named choices last: some of these import TensorFlow.
        for field in sorted(fields(self), key=lambda f: f.type not in NUMBERS):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _convert(field, value))

    @property
    def given(self):
        """{name: value} of all explicit settings."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) is not None
        }

    @property
    def preprocessing(self):
        """The preprocessing of images, a `resnet_layers.Preprocessing`."""
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
        """Returns the settings of another value, overridden by these."""
        given = {n: None if v is UNSET else v for n, v in self.given.items()}
        return dataclasses.replace(other, **given)

    def texts(self):
        """Returns {name: text} of the settings that repeat the run."""
        return {
            field.name: to_text(getattr(self, field.name))
            for field in fields(self)
            if field.metadata["of_run"]
            and getattr(self, field.name) is not None
        }

    def changes(self, now):
        """Returns {name: (text, new text)} of settings that differ in `now`.

        Empty if no setting is explicit.
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
        """Returns the settings in a file of `write`; empty without a file.

        Removed settings are ignored, with a warning unless their value is
        today's behavior.

        Raises:
          UserError: the file is damaged.
        """
        if not path.is_file():
            return cls()
        lines = read_lines(path)
        flags = [
            re.fullmatch("--([a-z_0-9]+)=(.*)", line, re.DOTALL)
            for line in lines
        ]
        if None in flags or not flags:
            fault = "empty"
            if flags:
                fault = f"not a flag: {lines[flags.index(None)][:80]!r}"
            raise UserError(
                f"{path}: damaged ({fault}). Restore it from a backup, or "
                f"start a new run from the weights: --weights={path.parent} "
                "and its --model."
            )
        texts = {flag[1]: flag[2] for flag in flags}
        texts = with_new_names(texts, warns=False)
        known = {field.name: field.metadata["absent"] for field in fields(cls)}
        for name in texts.keys() - known.keys():
            text = texts.pop(name)
            if REMOVED.get(name, (None,))[0] != text:
                warn_once(f"{path}: --{name}={text}: removed setting, ignored.")
        return cls(**{**known, **texts})


def default_values(of_modes=False):
    """Returns {name: default} of a run's settings, or those of the modes."""
    return {
        field.name: field.metadata["default"]
        for field in fields(Settings)
        if bool(field.metadata["modes"]) == of_modes
    }


def scaled_learning_rate(learning_rate, batch_size, base_batch_size):
    """Returns the learning rate for a batch size, by linear scaling.

    Args:
      learning_rate: for `base_batch_size` images.
      batch_size: global batch size of the run.
      base_batch_size: None for a learning rate that is not scaled.

    Source: Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
    """
    return learning_rate * batch_size / (base_batch_size or batch_size)


def can_be_unset(field):
    """Whether "none" resets the setting of an existing run."""
    options = field.metadata
    is_needed = options["default"] is not None or options["fixed"]
    return options["of_run"] and not is_needed and field.type is not bool


def flag_name(name):
    """Returns the flag of a setting: `with` is a keyword of Python."""
    return name.removesuffix("_")


def _convert(field, value):
    """Returns a value in its field's type, if it is accepted."""
    flag = f"--{flag_name(field.name)}"
    if can_be_unset(field) and value in (UNSET, str(UNSET)):
        return UNSET
    value = CONVERTERS[field.type](flag, value)
    if field.metadata["choices"] is not None:
        check_choice(flag, value, field.metadata["choices"])
    if field.type in NUMBERS:
        field.metadata["bounds"].check(flag, value)
    return value


def to_text(value):
    """Returns a setting as it is written on a command line."""
    if type(value) is tuple:
        return ",".join(map(str, value))
    if isinstance(value, range):
        return f"{value[0]}:{value[-1]}"
    if type(value).__name__ == "Normalization":
        return _normalization_text(value)
    return str(value)


def _normalization_text(value):
    from resnet_layers import NORMALIZATIONS

    for name, normalization in NORMALIZATIONS.items():
        if value == normalization:
            return name
    order = ["bgr"] if value.bgr else []
    numbers = [repr(number) for number in (*value.mean, *value.stddev)]
    return ":".join([*numbers, *order])


def _to_str(flag, value):
    text = os.fspath(value)
    # TensorFlow opens no other names. Images are read without it.
    shown = text.encode(errors="backslashreplace").decode()
    if shown != text and flag != "--images":
        raise UserError(
            f"{flag}={shown}: must be UTF-8. Rename the file or folder."
        )
    # Other line separators of Unicode are characters in `flags.txt`.
    if "\n" in text or "\r" in text:
        raise UserError(f"{flag}={text!r}: must be one line.")
    return text


def _to_int(flag, value):
    try:
        number = float(value)
        if number == int(number):
            return int(value if isinstance(value, str | int) else number)
    except (ValueError, TypeError, OverflowError):
        pass
    raise UserError(f"{flag}={value}: must be an integer.")


def _to_checkpoint(flag, value):
    if value == "best":
        return value
    try:
        step = _to_int(flag, value)
    except UserError:
        step = 0
    if step < 1:
        raise UserError(f"{flag}={value}: must be a step from 1 on, or best.")
    return step


def _to_float(flag, value):
    try:
        return float(value)
    except (ValueError, TypeError):
        raise UserError(f"{flag}={value}: must be a number.") from None


def _to_bool(flag, value):
    values = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if text not in values:
        raise UserError(f"{flag}={value}: must be true or false.")
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
    """Both ends of "100:110" are included; Python may pass a `range`."""
    if isinstance(value, range):
        return value
    try:
        first, last = map(int, value.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise UserError(
            f"{flag}={value}: must be the first and the last step, such as "
            "100:110."
        )
    return range(first, last + 1)


# Type of a setting -> (flag, value or text) -> value.
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
