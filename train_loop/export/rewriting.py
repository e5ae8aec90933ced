"""Copies of a classifier that other programs run: same predictions, less code.

What a graph contains becomes simpler from step to step: float32 and RGB, batch
norms inside the convolutions, and at last one function of pixels.
"""

import numpy as np
import tensorflow as tf

from resnet_layers import Normalization, PaddedMaxPooling2D, fold_batch_norms
from train_loop.errors import UserError
from train_loop.prediction.classifier import LUMA, Classifier


def portable(classifier):
    """Returns the classifier in float32 and RGB, which all formats take."""
    return in_rgb(in_float32(classifier))


def in_float32(classifier):
    """Returns the classifier in float32, whatever its precision was."""
    if classifier.model.compute_dtype == "float32":
        return classifier
    return _with_model(classifier, copy_model(classifier))


def in_rgb(classifier):
    """Returns the classifier with a model of RGB images.

    Raises:
      UserError: its images are gray, and no kernels for colors do the same.
    """
    mean, stddev, bgr = classifier.preprocessing.normalization
    is_grey = len(mean) == 1
    if not bgr and not is_grey:
        return classifier
    if is_grey and classifier.model.weight_standardization:
        raise UserError(
            f"{classifier.model.name} with --channels=1 cannot be exported: "
            "its kernels are standardized over the channels. Train with "
            "--channels=3, or another --model"
        )
    model = copy_model(classifier, channels=3)
    kernel = classifier.model.stem.convs[0].kernel
    kernel = tf.cast(kernel, tf.float32)
    normalization = Normalization(mean[::-1], stddev[::-1])
    if is_grey:
        # Gray is a sum over the colors, which a convolution is as well.
        kernel *= LUMA[:, np.newaxis]
        normalization = normalization.for_channels(3)
    model.stem.convs[0].kernel.assign(kernel[:, :, ::-1] if bgr else kernel)
    return Classifier(
        model,
        classifier.preprocessing._replace(normalization=normalization),
        classifier.class_names,
    )


def with_folded_norms(classifier):
    """Returns the classifier with batch norms inside its convolutions.

    The result is for inference only, see `fold_batch_norms`.
    """
    model = copy_model(classifier)
    fold_batch_norms(model)
    return _with_model(classifier, model)


def quantizable(classifier):
    """Returns the classifier with folded norms, for quantization to int8.

    Its calibration would take the padding of a maximum for an activation.
    """
    classifier = with_folded_norms(classifier)
    for layer in classifier.model.stem.pools:
        pads = isinstance(layer, PaddedMaxPooling2D)
        if pads and layer.padding == "infinity":
            layer.padding = "edges"
    return classifier


class InferenceGraph(tf.Module):
    """Maps uint8 pixels to probabilities, without anything of Keras in it.

    Args:
      classifier: a `Classifier` that is `portable`, made for inference by
        `with_folded_norms` or `quantizable`.
    """

    def __init__(self, classifier):
        super().__init__()
        mean, stddev, _ = classifier.preprocessing.normalization
        model, size = classifier.model, classifier.preprocessing.image_size
        # TensorFlow saves variables that are attributes.
        self.saved = [variable.value for variable in model.variables]
        # Arrays become parts of the graph, which tensors from outside do not.
        mean, scale = np.float32(mean), np.float32(1.0) / np.float32(stddev)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")
            ],
            autograph=False,
        )
        def pixels(images):
            # Three numbers, which any runtime broadcasts: `normalize` uses a
            # whole row of pixels at a time, and needs a reshape for it.
            inputs = (tf.cast(images, tf.float32) - mean) * scale
            logits = model(inputs, training=False)
            return {"probabilities": tf.nn.softmax(logits)}

        self.pixels = pixels


def copy_model(classifier, channels=None):
    """Returns a copy of a classifier's model, in float32.

    Args:
      classifier: a `Classifier`.
      channels: of the copy's images; if they are others than the model's, the
        first kernel is the caller's to assign.
    """
    model = classifier.model
    config = {**model.get_config(), "dtype": "float32"}
    copy = type(model).from_config(config)
    size = classifier.preprocessing.image_size
    own = len(classifier.preprocessing.normalization.mean)
    copy.build((None, size, size, channels or own))
    for mine, theirs in zip(copy.weights, model.weights, strict=True):
        if mine.shape == theirs.shape:
            mine.assign(theirs)
    return copy


def _with_model(classifier, model):
    return Classifier(model, classifier.preprocessing, classifier.class_names)
