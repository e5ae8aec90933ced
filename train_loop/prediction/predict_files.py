"""Predictions for image files, in several formats and with Grad-CAM."""

import csv
import glob
import io
import json
import os
import pathlib
from typing import NamedTuple

import matplotlib
import tensorflow as tf
from matplotlib.figure import Figure

from train_loop.console import csv_cells, text_table
from train_loop.data.folder import images_below
from train_loop.data.image_files import IMAGE_SUFFIXES, heif_advice
from train_loop.errors import UserError
from train_loop.evaluation.chart_style import FONTS, class_label
from train_loop.prediction.classifier import BATCH_SIZE, FILE_ADVICE

# In place of a path: a list of paths on standard input.
FROM_STDIN = "-"
# Maximum opacity of the heatmap over an image.
OPACITY = 0.75


def find_images(text, lines):
    """Returns the image paths of `--images`, in the order of its parts.

    Args:
      text: files, folders and globs, separated by commas, or `-` for a list.
        The path of an existing file can contain commas.
      lines: lines of the list, as bytes: a file or a folder each.

    Returns:
      A list of paths. Explicit files need not exist.

    Raises:
      UserError: a folder contains no images, a glob matches nothing, or the
        text is empty.
    """
    if text == FROM_STDIN:
        names = [os.fsdecode(line.rstrip(b"\r\n")) for line in lines]
        found = [_from_path(name) for name in names if name]
    else:
        found = [_from_name(name) for name in split_names(text)]
    paths = [path for group in found for path in group]
    if not paths:
        raise UserError(
            f"--images={text}: contains no paths. Pass files, folders and "
            "globs, separated by commas, or - for a list on standard input."
        )
    return paths


def split_names(text):
    """Splits a text at commas, except in the paths of existing files."""
    parts, names = text.split(","), []
    while parts:
        count = next(
            (
                count
                for count in range(len(parts), 1, -1)
                if _matches(",".join(parts[:count]))
            ),
            1,
        )
        names.append(",".join(parts[:count]))
        parts = parts[count:]
    return [name for name in names if name]


class FilePrediction(NamedTuple):
    """The prediction for an image file.

    Attributes:
      image: path of the file.
      predictions: (class name, probability) in descending order of
        probability; empty after an error.
      error: reason why the file cannot be read or decoded, or None.
    """

    image: str
    predictions: tuple = ()
    error: str | None = None


def predict_files(classifier, paths, top_k=None):
    """Yields a `FilePrediction` for each file, in order.

    Files are read and decoded in parallel with the forward passes of earlier
    batches. A broken file does not stop the others.

    Args:
      classifier: a `Classifier`.
      paths: sequence of paths.
      top_k: number of classes to return for each image; None for all.
    """
    names = tf.constant([os.fsencode(path) for path in paths], tf.string)

    @tf.autograph.experimental.do_not_convert
    def read(number, path):
        return number, classifier.prepare(tf.io.read_file(path))

    batches = (
        tf.data.Dataset.from_tensor_slices(names)
        .enumerate()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        # The numbers of broken files are then missing.
        .ignore_errors()
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )
    done = 0
    for numbers, images in batches:
        ranked = classifier.rank(classifier.probabilities(images), top_k)
        for number, predictions in zip(numbers.numpy(), ranked, strict=True):
            for path in paths[done:number]:
                yield _predict_alone(classifier, path, top_k)
            yield FilePrediction(paths[number], tuple(predictions))
            done = number + 1
    for path in paths[done:]:
        yield _predict_alone(classifier, path, top_k)


def as_table(predictions):
    """Yields the lines of a table with a row for each readable image."""
    rows = [
        [image, *(f"{label} {p:.1%}" for label, p in ranked)]
        for image, ranked, error in predictions
        if not error
    ]
    if rows:
        ranks = [str(rank) for rank in range(1, len(rows[0]))]
        yield from text_table([["image", *ranks], *rows]).splitlines()


def as_json(predictions):
    """Yields a JSON list of {"image", "predictions"} or {"image", "error"}."""
    opening = "["
    for image, ranked, error in predictions:
        record = {"image": image, "error": error}
        if not error:
            record = {
                "image": image,
                "predictions": [
                    {"label": label, "probability": probability}
                    for label, probability in ranked
                ],
            }
        yield opening + json.dumps(record)
        opening = ","
    yield "]" if opening == "," else "[]"


def as_csv(predictions):
    """Yields a CSV line for each class, or for the error of an image."""
    yield _csv("image", "rank", "label", "probability", "error")
    for image, ranked, error in predictions:
        if error:
            yield _csv(image, "", "", "", error)
        for rank, (label, probability) in enumerate(ranked, 1):
            yield _csv(image, rank, label, probability, "")


def _csv(*fields):
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(csv_cells(fields))
    return line.getvalue()


# Name -> function that formats `FilePrediction`s.
PREDICTION_FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}


def write_explanations(classifier, predictions, folder):
    """Draws a Grad-CAM heatmap of the top class for each image.

    Args:
      classifier: the `Classifier` of the predictions.
      predictions: iterable of `FilePrediction`s.
      folder: folder of the PNG files, which are named after the images. Images
        with the same name get a number.

    Yields:
      The same predictions, in order.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    used = set()
    for prediction in predictions:
        if not prediction.error:
            stem = pathlib.Path(prediction.image).stem
            names = (stem, *(f"{stem}_{n}" for n in range(2, len(used) + 2)))
            name = next(name for name in names if name not in used)
            used.add(name)
            [(label, probability), *_] = prediction.predictions
            image = classifier.read(prediction.image)
            number = classifier.class_names.index(label)
            [heat] = grad_cam(classifier, image[tf.newaxis], [number])
            title = class_label(classifier.class_names, number)
            title = f"{title} {probability:.1%}"
            _draw_explanation(folder / f"{name}.png", image, heat, title)
        yield prediction


def grad_cam(classifier, images, labels):
    """Returns Grad-CAM heatmaps: how much each pixel supports a class.

    The heatmap is the ReLU of the weighted sum of the channels of the last
    feature map. The weight of a channel is the mean gradient of the class's
    logit.

    Source: Selvaraju et al., 2016, https://arxiv.org/abs/1610.02391.

    Args:
      classifier: a `Classifier`.
      images: uint8 [batch, image_size, image_size, 3], RGB.
      labels: int [batch], the class to explain for each image.

    Returns:
      An array, float32 [batch, image_size, image_size], from 0 to 1. The
      maximum of each heatmap is 1; without support for the class, it is 0.
    """
    model = classifier.model
    features = last_features(model, classifier.normalize(images))
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = model.head(tf.reduce_mean(features, axis=[1, 2]))
        of_class = tf.gather(logits, labels, batch_dims=1)
    gradients = tape.gradient(of_class, features)
    weights = tf.reduce_mean(gradients, axis=[1, 2], keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * features, -1, keepdims=True))
    # Interpolated before the division, so that the maximum is exactly 1.
    heat = tf.image.resize(heat, images.shape[1:3], "bicubic")[..., 0]
    heat = tf.nn.relu(heat)
    strongest = tf.reduce_max(heat, axis=[1, 2], keepdims=True)
    return tf.math.divide_no_nan(heat, strongest).numpy()


def last_features(model, inputs):
    """Returns the last feature map before pooling, in float32."""
    *_, features = model.features(inputs, training=False).values()
    return tf.cast(features, tf.float32)


def _matches(name):
    path = os.path.expanduser(name)
    return os.path.exists(path) or any(_glob(path))


def _glob(path):
    """Yields matching paths; the name of an existing folder is no pattern."""
    folder, names = path, []
    while glob.has_magic(folder) and not os.path.exists(folder):
        folder, name = os.path.split(folder)
        names.insert(0, name)
    pattern = os.path.join(glob.escape(folder), *names)
    return glob.iglob(pattern, recursive=True)


def _from_name(name):
    """Returns the images of a file, a folder or a glob."""
    path = os.path.expanduser(name)
    if os.path.exists(path) or not glob.has_magic(path):
        return _from_path(path)
    matches = sorted(_glob(path))
    # `**` matches folders and their files: the files alone are enough.
    files = [match for match in matches if os.path.isfile(match)]
    if files:
        return files
    if matches:
        return [path for match in matches for path in _from_path(match)]
    raise UserError(f"--images={name}: no matching file. Check the pattern.")


def _from_path(path):
    """Returns the file, or the images in a folder and its subfolders."""
    if not os.path.isdir(path):
        return [path]
    # Without a trailing slash.
    found = list(images_below(str(pathlib.Path(path))))
    if not found:
        names = [name for _, _, names in os.walk(path) for name in names]
        raise UserError(
            f"--images={path}: no images found. Pass a folder with files that "
            f"end in {', '.join(IMAGE_SUFFIXES)}.{heif_advice(names)}"
        )
    return sorted(found)


def _predict_alone(classifier, path, top_k):
    """Returns the prediction for a file that failed in a batch."""
    try:
        [predictions] = classifier(path, top_k)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return FilePrediction(
            path, error=reason.removesuffix(f". {FILE_ADVICE}")
        )
    return FilePrediction(path, tuple(predictions))


@matplotlib.rc_context(FONTS)
def _draw_explanation(path, image, heat, title):
    """Writes a PNG file with the image and, beside it, the heatmap of a class.

    Args:
      path: path of the file.
      image: uint8 [size, size, 3].
      heat: float32 [size, size] from 0 to 1.
      title: title of the heatmap.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    plain, explained = figure.subplots(1, 2)
    plain.set_title("Model input", fontsize=10)
    explained.set_title(title, fontsize=10, parse_math=False)
    for axis in (plain, explained):
        axis.set_axis_off()
        axis.imshow(image)
    colors = explained.imshow(
        heat, cmap="plasma", vmin=0, vmax=1, alpha=OPACITY * heat
    )
    # Opaque, to be legible.
    legend = figure.colorbar(colors, ax=explained, shrink=0.9, ticks=[0, 1])
    legend.solids.set_alpha(1)
    legend.set_ticklabels(["0", "max"], fontsize=8)
    legend.set_label("Grad-CAM", fontsize=8, labelpad=-20)
    figure.savefig(path, dpi=120)
