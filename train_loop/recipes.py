"""Recipes: named settings that train a data set well.

A recipe overrides the defaults in `settings.py`; explicit settings override
the recipe. Batch sizes are global, and learning rates belong to them.
Published figures are those of the source: only the digits were trained here.
"""

import dataclasses
import functools
import math

from train_loop.settings import Settings, warn_once


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """Named settings with their source, result and cost.

    Args:
      values: {setting: value}, as on a command line: their types take seconds
        to import.
      source: paper or project that the settings come from.
      result: accuracy, and who measured it.
      cost: computation for that result.
      excluded: what the source does and this project does not.
      by_size: {largest number of training images: values}, in ascending
        order, for settings that depend on the size of the data set.
    """

    values: dict
    source: str
    result: str
    cost: str
    excluded: str = ""
    by_size: dict = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def settings(self):
        """The values for any size of the data set, as `Settings`."""
        return Settings(**self.values)

    @functools.cached_property
    def names_by_size(self):
        """Names of the settings that depend on the size of the data set."""
        return {name for values in self.by_size.values() for name in values}

    def for_size(self, num_images):
        """Returns {setting: value} for a number of training images."""
        rows = self.by_size.items()
        return next((row for most, row in rows if num_images <= most), {})


# What --recipe=auto resolves to for data sets without their own recipe, and
# with --weights instead of the generic recipe and that of the pets.
GENERIC = "images"
FINETUNE = "finetune"
REPLACED_BY_FINETUNE = (GENERIC, "oxford_iiit_pet")

IMAGENET = {
    "dataset": "imagenet2012",
    "batch_size": 256,
    "epochs": 90,
    "learning_rate": 0.1,
}
# As before cosine schedules and label smoothing.
CLASSIC = {
    **IMAGENET,
    "schedule": "step:0.1:30:60:80",
    "weight_decay": 1e-4,
    "label_smoothing": 0,
}
PETS = {
    **IMAGENET,
    "dataset": "oxford_iiit_pet",
    "batch_size": 32,
    "epochs": 200,
    "learning_rate": 0.05,
}
# An epoch of few images is a few steps.
EVERY_50 = {"evaluate_every": 50, "checkpoint_every": 50}
STRIKES_BACK = "Wightman et al., 2021, https://arxiv.org/abs/2110.00476: {}."
RSB = {
    "dataset": "imagenet2012",
    "interpolation": "bicubic",
    "crop_fraction": 0.95,
    "batch_size": 2048,
    "optimizer": "lamb",
    "clip_norm": 1,
    "loss": "sigmoid",
}
RSB_LONG = {
    **RSB,
    "augment_repeats": 3,
    "learning_rate": 0.005,
    "stochastic_depth": 0.05,
}
# Magnitudes as in torchvision, up to 30; timm's go up to 10.
RSB_CROP = "random_resized_crop,flip,rand_augment:2:{},mixup:{},cutmix:1"
RSB_EXCLUDED = (
    "timm's RandAugment applies each operation with probability 0.5, at a "
    "random magnitude, and includes Invert and SolarizeAdd. timm's copies of "
    "an image are on different GPUs. Its learning rate rises from 1e-4, ends "
    "at 1e-6, and changes once per epoch."
)

# Those with the name of a data set are its default.
RECIPES = {
    "digits": Recipe(
        {
            "dataset": "digits",
            "model": "resnet_tiny",
            "image_size": 8,
            "crop_fraction": 1,
            "augment": "shift",
            "batch_size": 64,
            "epochs": 60,
            "learning_rate": 0.1,
            "weight_decay": 5e-4,
            "report_every": 50,
            "evaluate_every": 150,
            "checkpoint_every": 150,
        },
        source="This project.",
        result="99.4 % of held-out images, mean of 3 seeds, measured here.",
        cost="Less than a minute on 2 cores.",
    ),
    "signs_adam": Recipe(
        {
            "image_size": 64,
            "crop_fraction": 1,
            "augment": "",
            "batch_size": 32,
            "epochs": 10,
            "learning_rate": 1.5e-4,
            "optimizer": "adam",
            "schedule": "constant",
            "warmup_epochs": 0,
            "weight_decay": 0,
            "label_smoothing": 0,
        },
        source=(
            "The exercise on residual networks and hand signs (6 classes, 64 x "
            "64) of DeepLearning.AI's course on convolutional networks."
        ),
        result=(
            "Not measured: the images come with the course. Reported for its "
            "own network, trained longer: 95 % of 120 images."
        ),
        cost="10 epochs of 1,080 images at 64 x 64.",
        excluded=(
            "Pixels are normalized by mean and standard deviation. The "
            "exercise's network has the strides of resnet50_v1."
        ),
    ),
    "cifar_he2015": Recipe(
        {
            "dataset": "cifar10",
            "model": "resnet20",
            "image_size": 32,
            "crop_fraction": 1,
            "augment": "shift,flip",
            "batch_size": 128,
            "epochs": 164,
            "learning_rate": 0.1,
            "nesterov": False,
            "schedule": "step:0.1:82:123",
            "warmup_epochs": 0,
            "weight_decay": 1e-4,
            "label_smoothing": 0,
        },
        source=(
            "He et al., 2015, https://arxiv.org/abs/1512.03385, section 4.2, "
            "for resnet20, 32, 44, 56 and 110; for 110 with --warmup_epochs=1."
        ),
        result=(
            "Not measured. Published: 91.25, 92.49, 92.83, 93.03 and 93.57 %, "
            "the last the best of 5 runs (mean 93.39)."
        ),
        cost="64,000 steps of 128 images at 32 x 32.",
        excluded=(
            "The paper subtracts the mean image, applies weight decay to all "
            "parameters, and trains 110 layers at a tenth of the learning rate "
            "until the error is below 80 %. Blocks start as the identity here."
        ),
    ),
    "oxford_iiit_pet": Recipe(
        PETS,
        source="The recipe of imagenet2012, for more epochs of fewer images.",
        result=(
            "Not measured. Published for ResNet-50 from random weights: 81.5 % "
            "(as reprinted in BYOL, https://arxiv.org/abs/2006.07733, table 3)."
        ),
        cost="200 epochs of 3,680 images at 224 x 224.",
    ),
    "oxford_iiit_pet_tuning": Recipe(
        {**PETS, "train_split": "train[:90%]", "eval_split": "train[90%:]"},
        source="The recipe oxford_iiit_pet.",
        result=(
            "Not measured. For tuning: evaluates on a tenth of the training "
            "images, not on the test split."
        ),
        cost="200 epochs of 3,312 images at 224 x 224.",
    ),
    "pets_finetune": Recipe(
        {
            **PETS,
            "model": "resnet50_keras",
            "weights": "imagenet",
            "batch_size": 64,
            "epochs": 30,
            "learning_rate": 0.01,
            "warmup_epochs": 1,
        },
        source=(
            "This project, after Kornblith et al., 2018, "
            "https://arxiv.org/abs/1805.08974, who search learning rate and "
            "weight decay and train for 20,000 steps of 256 images."
        ),
        result=(
            "Not measured. Published for that search: 92.1 % (as reprinted "
            "in BYOL, https://arxiv.org/abs/2006.07733, table 3)."
        ),
        cost="30 epochs of 3,680 images at 224 x 224.",
    ),
    "imagenet2012": Recipe(
        IMAGENET,
        source=(
            "Goyal et al., 2017, https://arxiv.org/abs/1706.02677; cosine and "
            "label smoothing: He et al., 2018, "
            "https://arxiv.org/abs/1812.01187."
        ),
        result=(
            "Not measured. Published for similar recipes: 76.1 to 76.7 % top-1 "
            "(torchvision, Flax)."
        ),
        cost="90 epochs of 1.28 million images at 224 x 224.",
    ),
    "imagenet_he2015": Recipe(
        {
            **CLASSIC,
            "model": "resnet50_v1",
            "augment": "random_resized_crop,flip,color_jitter",
            "epochs": 120,
            "nesterov": False,
            "schedule": "step:0.1:30:60:90",
            "warmup_epochs": 0,
        },
        source=(
            "He et al., 2015, https://arxiv.org/abs/1512.03385, section 3.4."
        ),
        result=(
            "Not measured. Published for one crop: 75.3 % top-1 "
            "(https://github.com/KaimingHe/deep-residual-networks)."
        ),
        cost="120 epochs of 1.28 million images at 224 x 224.",
        excluded=(
            "The paper resizes images to 256 to 480 pixels before the crop, "
            "augments colors by PCA, subtracts the mean image, applies weight "
            "decay to all parameters, and lowers the learning rate on plateaus "
            "of the error. Blocks start as the identity here."
        ),
    ),
    "imagenet_goyal2017": Recipe(
        {**CLASSIC, "batch_size": 8192, "base_batch_size": 256},
        source="Goyal et al., 2017, https://arxiv.org/abs/1706.02677.",
        result="Not measured. Published: 76.3 % top-1, median of 5 seeds.",
        cost="Published: an hour on 256 P100 GPUs.",
        excluded=(
            "The paper's warm-up starts at the learning rate for 256 images; "
            "its batch norm uses 32 images per GPU."
        ),
    ),
    "imagenet_rsb_a1": Recipe(
        {
            **RSB_LONG,
            "augment": RSB_CROP.format(21, 0.2),
            "epochs": 600,
            "weight_decay": 0.01,
            "label_smoothing": 0.1,
        },
        source=STRIKES_BACK.format("A1"),
        result="Not measured. Published: 80.4 % top-1.",
        cost="Published: 110 hours on 4 V100 GPUs.",
        excluded=RSB_EXCLUDED,
    ),
    "imagenet_rsb_a2": Recipe(
        {
            **RSB_LONG,
            "augment": RSB_CROP.format(21, 0.1),
            "epochs": 300,
            "weight_decay": 0.02,
            "label_smoothing": 0,
        },
        source=STRIKES_BACK.format("A2"),
        result="Not measured. Published: 79.8 % top-1.",
        cost="Published: 55 hours on 4 V100 GPUs.",
        excluded=RSB_EXCLUDED,
    ),
    "imagenet_rsb_a3": Recipe(
        {
            **RSB,
            "image_size": 160,
            "augment": RSB_CROP.format(18, 0.1),
            "epochs": 100,
            "learning_rate": 0.008,
            "weight_decay": 0.02,
            "label_smoothing": 0,
        },
        source=STRIKES_BACK.format("A3"),
        result=(
            "Not measured. Published: 78.1 % top-1 at --mode=evaluate "
            "--image_size=224."
        ),
        cost="Published: 15 hours on 4 V100 GPUs.",
        excluded=RSB_EXCLUDED,
    ),
    "imagenet_torchvision_v2": Recipe(
        {
            "dataset": "imagenet2012",
            "image_size": 176,
            "crop_fraction": 0.966,
            "augment": (
                "random_resized_crop,flip,trivial_augment,random_erasing:0.1,"
                "mixup:0.2,cutmix:1"
            ),
            "augment_repeats": 4,
            "batch_size": 1024,
            "epochs": 600,
            "learning_rate": 0.5,
            "nesterov": False,
            "weight_decay": 2e-5,
            "weight_average": "ema",
            "ema_decay": 0.999966,
        },
        source=(
            "torchvision's IMAGENET1K_V2, "
            "https://github.com/pytorch/vision/issues/3995."
        ),
        result=(
            "Not measured. Published, with averaged weights: 80.86 % top-1 at "
            "--mode=evaluate --image_size=224."
        ),
        cost="Published: 42 hours on 8 GPUs.",
        excluded=(
            "torchvision updates its average every 32nd step. Its learning "
            "rate rises from a hundredth and changes once per epoch. Its "
            "blocks do not start as the identity, the classifier's bias has "
            "weight decay, and copies of an image are on different GPUs."
        ),
    ),
    "mlperf_lars": Recipe(
        {
            "dataset": "imagenet2012",
            "augment": "random_resized_crop:0.05,flip",
            "batch_size": 4096,
            "epochs": 47,
            "learning_rate": 10,
            "optimizer": "lars",
            "schedule": "polynomial:2:1e-5",
            "weight_decay": 2e-4,
        },
        source=(
            "MLPerf Training's reference point resnet_ref_4096, "
            "https://github.com/mlcommons/logging: 5 epochs of warm-up, then "
            "13,137 steps."
        ),
        result=(
            "Not measured. Published: 75.9 % top-1, MLPerf's target, after 39 "
            "to 42 epochs."
        ),
        cost="Published: 64 TPU v4 cores, time not published.",
        excluded=(
            "The reference's momentum includes the learning rate, its batch "
            "norm uses 64 images per device, its crops (TensorFlow's) are "
            "smaller, and it subtracts the mean color without scaling."
        ),
    ),
    FINETUNE: Recipe(
        {
            "batch_size": 32,
            "learning_rate": 0.05,
            "augment": "random_resized_crop:0.5:1,flip",
        },
        source=(
            "This project. The length depends on the size of the data set, as "
            "in BiT, https://arxiv.org/abs/1912.11370."
        ),
        result=(
            "Measured here on hand signs, from CIFAR-10 weights and from "
            "random ones: see docs/guides/fine-tuning.md."
        ),
        cost="300 to 800 steps of 32 images for up to 1,600 images.",
        excluded=("Only weights of CIFAR-10 were measured, at 32 x 32 pixels."),
        by_size={
            # An eighth of the epochs is warm-up.
            100: {"epochs": 200, "warmup_epochs": 25, **EVERY_50},
            300: {"epochs": 60, "warmup_epochs": 7.5, **EVERY_50},
            1000: {"epochs": 25, "warmup_epochs": 3.125},
            5000: {"epochs": 15, "warmup_epochs": 1.875},
            math.inf: {"epochs": 10, "warmup_epochs": 1.25},
        },
    ),
    GENERIC: Recipe(
        {"batch_size": 32, "epochs": 100, "learning_rate": 0.05},
        source="The recipe of imagenet2012, with more epochs for fewer images.",
        result="Not measured.",
        cost="100 epochs of your images at 224 x 224.",
    ),
}

# Earlier names of recipes -> current names.
RENAMED = {"pets_scratch": "oxford_iiit_pet", "pictures": GENERIC}


def current_name(name):
    """Returns the current name of a recipe, with a warning for an earlier one.

    Args:
      name: value of `--recipe`, which may be unknown, or None.
    """
    if name not in RENAMED:
        return name
    warn_once(f"--recipe={name}: renamed to {RENAMED[name]}. Use the new name.")
    return RENAMED[name]
