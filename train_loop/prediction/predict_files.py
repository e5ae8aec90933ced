"""Predictions for image files: found, predicted, explained by Grad-CAM."""

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
from train_loop.prediction.classifier import BATCH_SIZE

# In place of a path: a list from another program.
FROM_STDIN = "-"


def find_images(text, lines):
    """Returns the paths of the images that a text lists, in its order.

    Args:
      text: files, folders and globs with commas between them, or `-` for a
        list. A path that exists may have a comma in it.
      lines: of the list, as bytes, a file or a folder each.

    Returns:
      A list of paths. A listed file may be missing.

    Raises:
      UserError: a folder holds no images, a glob matches nothing, or the text
        is empty.
    """
    if text == FROM_STDIN:
        names = [os.fsdecode(line.rstrip(b"\r\n")) for line in lines]
        found = [_of_path(name) for name in names if name]
    else:
        found = [_of_name(name) for name in split_names(text)]
    paths = [path for some in found for path in some]
    if not paths:
        raise UserError(
            f"--images={text} names nothing; it takes files, folders and globs "
            "with commas between them, or - for a list on standard input"
        )
    return paths


def split_names(text):
    """Returns the paths between the commas of a text.

    As many parts stay together as make the path of an existing file.
    """
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


def _matches(name):
    path = os.path.expanduser(name)
    return os.path.exists(path) or any(_glob(path))


def _glob(path):
    """Yields what matches; an existing folder is not a pattern."""
    folder, names = path, []
    while glob.has_magic(folder) and not os.path.exists(folder):
        folder, name = os.path.split(folder)
        names.insert(0, name)
    pattern = os.path.join(glob.escape(folder), *names)
    return glob.iglob(pattern, recursive=True)


def _of_name(name):
    path = os.path.expanduser(name)
    if os.path.exists(path) or not glob.has_magic(path):
        return _of_path(path)
    matches = sorted(_glob(path))
    # A folder's own files match `**` as well.
    files = [match for match in matches if os.path.isfile(match)]
    if files:
        return files
    if matches:
        return [path for match in matches for path in _of_path(match)]
    raise UserError(f"--images={name} matches no file")


def _of_path(path):
    """Returns the file, or the images in a folder and those below it."""
    if not os.path.isdir(path):
        return [path]
    # Without a slash at its end.
    found = list(images_below(str(pathlib.Path(path))))
    if not found:
        names = [name for _, _, names in os.walk(path) for name in names]
        raise UserError(
            f"--images={path} holds no images: no file in it ends in "
            f"{', '.join(IMAGE_SUFFIXES)}{heif_advice(names)}"
        )
    return sorted(found)


class FilePrediction(NamedTuple):
    """The prediction for an image file.

    `predictions` are (name of the class, probability), the most probable one
    first; none where `error` says why the file cannot be read.
    """

    image: str
    predictions: tuple = ()
    error: str | None = None


def predict_files(classifier, paths, top_k=None):
    """Yields a `FilePrediction` for each file, in their order.

    Files are read and decoded in parallel, while the model predicts those
    before; one that cannot be read does not stop the others.

    Args:
      classifier: a `Classifier`.
      paths: of the files.
      top_k: number of classes; None for all.
    """
    names = tf.constant([os.fsencode(path) for path in paths], tf.string)

    @tf.autograph.experimental.do_not_convert
    def read(number, path):
        return number, classifier.prepare(tf.io.read_file(path))

    batches = (
        tf.data.Dataset.from_tensor_slices(names)
        .enumerate()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        # Their numbers are then missing.
        .ignore_errors()
        .batch(BATCH_SIZE)
        .prefetch(tf.data.AUTOTUNE)
    )
    done = 0
    for numbers, images in batches:
        ranked = classifier.rank(classifier.probabilities(images), top_k)
        for number, predictions in zip(numbers.numpy(), ranked, strict=True):
            for path in paths[done:number]:
                yield _alone(classifier, path, top_k)
            yield FilePrediction(paths[number], tuple(predictions))
            done = number + 1
    for path in paths[done:]:
        yield _alone(classifier, path, top_k)


def _alone(classifier, path, top_k):
    """Returns the prediction for a file that failed in a batch, or why."""
    try:
        [predictions] = classifier(path, top_k)
    except UserError as error:
        return FilePrediction(path, error=str(error).removeprefix(f"{path} "))
    return FilePrediction(path, tuple(predictions))


def as_table(predictions):
    """Yields a line for each image that could be read."""
    rows = [
        [image, *(f"{label} {part:.1%}" for label, part in ranked)]
        for image, ranked, error in predictions
        if not error
    ]
    if rows:
        ranks = [str(rank) for rank in range(1, len(rows[0]))]
        yield from text_table([["image", *ranks], *rows]).splitlines()


def as_json(predictions):
    """Yields a list: {"image", "predictions"} or {"image", "error"} each."""
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
    """Yields a line for each class, or for the error of an image."""
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


# Name -> function of `FilePrediction`s.
PREDICTION_FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}


# How much of the image the strongest color hides.
OPACITY = 0.75


def write_explanations(classifier, predictions, folder):
    """Draws what supports the first prediction for each image.

    Args:
      classifier: that made the predictions.
      predictions: `FilePrediction`s.
      folder: of a PNG file for each, named after the image; a number tells
        those of one name apart.

    Yields:
      The same predictions, in their order.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    taken = set()
    for prediction in predictions:
        if not prediction.error:
            stem = pathlib.Path(prediction.image).stem
            names = (stem, *(f"{stem}_{n}" for n in range(2, len(taken) + 2)))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            [(label, probability), *_] = prediction.predictions
            image = classifier.read(prediction.image)
            number = classifier.class_names.index(label)
            [heat] = grad_cam(classifier, image[tf.newaxis], [number])
            title = class_label(classifier.class_names, number)
            title = f"{title} {probability:.1%}"
            _draw_explanation(folder / f"{name}.png", image, heat, title)
        yield prediction


def grad_cam(classifier, images, labels):
    """Returns how much each place of an image supports a class.

    The last feature map, each channel weighted by the gradient of the class's
    logit with respect to its mean; negative values become 0.

    Source: Selvaraju et al., 2016, https://arxiv.org/abs/1610.02391.

    Args:
      classifier: a `Classifier`.
      images: uint8 [batch, image_size, image_size, 3].
      labels: int [batch].

    Returns:
      float32 [batch, image_size, image_size] from 0 to 1, the place that
      supports it most; all 0 where none does.
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
    # Interpolated first, so that the strongest pixel is 1.
    heat = tf.image.resize(heat, images.shape[1:3], "bicubic")[..., 0]
    heat = tf.nn.relu(heat)
    strongest = tf.reduce_max(heat, axis=[1, 2], keepdims=True)
    return tf.math.divide_no_nan(heat, strongest).numpy()


def last_features(model, inputs):
    """Returns the feature map that the classifier pools, in float32."""
    *_, features = model.features(inputs, training=False).values()
    return tf.cast(features, tf.float32)


@matplotlib.rc_context(FONTS)
def _draw_explanation(path, image, heat, title):
    """Writes a PNG file: the image, and beside it what supports a class.

    Args:
      path: of the file.
      image: uint8 [size, size, 3].
      heat: float32 [size, size] from 0 to 1.
      title: the class, for the legend.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    seen, explained = figure.subplots(1, 2)
    seen.set_title("What the model sees", fontsize=10)
    explained.set_title(title, fontsize=10, parse_math=False)
    for axis in (seen, explained):
        axis.set_axis_off()
        axis.imshow(image)
    colors = explained.imshow(
        heat, cmap="plasma", vmin=0, vmax=1, alpha=OPACITY * heat
    )
    # Without transparency, to be legible.
    legend = figure.colorbar(colors, ax=explained, shrink=0.9, ticks=[0, 1])
    legend.solids.set_alpha(1)
    legend.set_ticklabels(["nothing", "most"], fontsize=8)
    legend.set_label("speaks for it", fontsize=8, labelpad=-20)
    figure.savefig(path, dpi=120)
