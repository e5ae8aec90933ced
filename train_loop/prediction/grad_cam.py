"""Grad-CAM: where in an image a class was seen."""

import pathlib

import matplotlib
import tensorflow as tf
from matplotlib.figure import Figure

from train_loop.evaluation.chart_style import FONTS, class_label

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
