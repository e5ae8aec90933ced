"""Exports a small model of every family in every format and precision.

    python -m benchmarks.export_formats [--models=resnet18,...] [--formats=...]

Each model has the stem, the blocks and the channels of its variant, but one
block per stage and random weights. The table shows the largest difference of a
logit, as a fraction of the logits' range. A line for each failed file follows.
"""

import pathlib
import tempfile

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import app, flags, logging

from resnet_layers import NORMALIZATIONS, VARIANTS, Preprocessing
from train_loop.console import text_table
from train_loop.exports.bundle import Bundle
from train_loop.exports.formats import EXPORT_FORMATS, parse_formats
from train_loop.exports.verification import ReferenceImages
from train_loop.prediction.classifier import Classifier

FAMILIES = {
    "resnet18": "basic blocks",
    "resnet50": "bottleneck blocks",
    "resnet50_v1": "stride in the first convolution",
    "resnet50d": "deep stem, pooled shortcuts",
    "resnet26t": "tiered stem",
    "resnext50_32x4d": "grouped convolutions",
    "seresnet50": "squeeze-and-excitation",
    "ecaresnet26t": "efficient channel attention",
    "senet154": "3x3 shortcuts",
    "resnetaa50": "average pooling instead of strides",
    "resnetblur50": "blur pooling before strides",
    "resnetrs50": "stem with a strided convolution for pooling",
    "resnet50_gn": "group norm",
    "resnetv2_50": "pre-activation",
    "resnet50_v2": "pre-activation as in keras.applications",
    "resnetv2_50x1_bit": "BiT",
    "resnet20": "CIFAR variants",
}

FLAGS = flags.FLAGS
flags.DEFINE_list("models", list(FAMILIES), "Variants to export.")
flags.DEFINE_string("formats", ",".join(EXPORT_FORMATS), "Formats to write.")
flags.DEFINE_integer("side", 64, "Side of the images.", lower_bound=32)
flags.DEFINE_integer("num_images", 32, "Number of images.", lower_bound=2)


def small(name, images):
    """Returns a `Classifier` of a variant with one block per stage.

    Args:
      name: a key of `VARIANTS`.
      images: uint8 [n, size, size, 3]. The head is scaled so that their
        predictions differ.
    """
    variant, size = VARIANTS[name], images.shape[1]
    stages = len(variant.arguments["stage_sizes"])
    model = variant(num_classes=10, stage_sizes=(1,) * stages)
    model.build((None, size, size, 3))
    for variable in model.weights:
        if variable.name == "gamma":
            # Zeros would disable the residual branches.
            variable.assign(tf.ones_like(variable))
    classifier = Classifier(
        model,
        Preprocessing(NORMALIZATIONS["imagenet"], size, 1.0, "bilinear"),
        [f"class {number}" for number in range(10)],
    )
    logits = classifier.logits(images).numpy()
    mean = logits.mean(axis=0)
    scale = 4 / np.ptp(logits - mean)
    model.head.kernel.assign(model.head.kernel * scale)
    model.head.bias.assign((model.head.bias - mean) * scale)
    return classifier


def draw(count, size):
    """Returns uint8 [count, size, size, 3] of smooth random colors."""
    random = np.random.default_rng(0)
    return np.stack(
        [
            PIL.Image.fromarray(pixels).resize((size, size))
            for pixels in random.integers(0, 256, (count, 6, 6, 3), np.uint8)
        ]
    )


def export(name, formats, images):
    """Exports a model; returns {file: difference} and the failures."""
    classifier = small(name, images)
    files = [tf.io.encode_png(image).numpy() for image in images]
    reference = ReferenceImages.predicted_by(classifier, files)
    bundle = Bundle(classifier, list(images))
    differences, failures = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for each in formats:
            metrics, failed = bundle.write(
                each, pathlib.Path(folder), reference
            )
            differences |= {file.name: file.drift for file in metrics}
            failures += failed
    return differences, failures


def main(_):
    logging.set_verbosity(logging.ERROR)
    images = draw(FLAGS.num_images, FLAGS.side)
    compare(FLAGS.models, parse_formats(FLAGS.formats), images)


def compare(models, formats, images):
    """Prints the table of variants and formats."""
    found = {}
    for name in models:
        found[name] = export(name, formats, images)
        print(f"{name} is done.", flush=True)
    columns = [
        f"{each}/{f}" for each in formats for f in EXPORT_FORMATS[each].files
    ]
    rows = [
        [name, FAMILIES.get(name, "")]
        + [
            f"{differences[column]:.0e}" if column in differences else "-"
            for column in columns
        ]
        for name, (differences, _) in found.items()
    ]
    header = ["model", "family", *map(str, range(1, len(columns) + 1))]
    print("\n" + text_table([header, *rows]) + "\n")
    for number, column in enumerate(columns, 1):
        print(f"{number}: {column}")
    for name, (_, failures) in found.items():
        for failure in failures:
            print(f"{name}: {failure}")


if __name__ == "__main__":
    app.run(main)
