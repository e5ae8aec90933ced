"""Changes to a classifier that leave its answers as they are.

Each makes a copy, which needs less of whoever runs it.
"""

from resnet_layers import (
    Normalization,
    PaddedMaxPooling2D,
    fold_batch_norms,
)
from train_loop.classifier import Classifier


def portable(classifier):
    """Returns the classifier in float32 and RGB, which all formats take."""
    return in_rgb(in_float32(classifier))


def in_float32(classifier):
    """Returns the classifier in float32, whatever precision it trained in."""
    if classifier.model.compute_dtype == "float32":
        return classifier
    return _with_model(classifier, copy_of(classifier))


def in_rgb(classifier):
    """Returns the classifier with a model that takes red, green and blue."""
    mean, stddev, bgr = classifier.preprocessing.normalization
    if not bgr:
        return classifier
    model = copy_of(classifier)
    kernel = model.stem.convs[0].kernel
    kernel.assign(kernel[:, :, ::-1])
    normalization = Normalization(mean[::-1], stddev[::-1])
    return Classifier(
        model,
        classifier.preprocessing._replace(normalization=normalization),
        classifier.class_names,
    )


def with_folded_norms(classifier):
    """Returns the classifier with batch norms inside its convolutions.

    The result is for inference only, see `fold_batch_norms`.
    """
    model = copy_of(classifier)
    fold_batch_norms(model)
    return _with_model(classifier, model)


def quantizable(classifier):
    """Returns the classifier with folded norms, for quantization to int8.

    That takes what a maximum is padded with for an activation.
    """
    classifier = with_folded_norms(classifier)
    for layer in classifier.model.stem.pools:
        pads = isinstance(layer, PaddedMaxPooling2D)
        if pads and layer.padding == "infinity":
            layer.padding = "edges"
    return classifier


def copy_of(classifier):
    """Returns a copy of a classifier's model, in float32."""
    model = classifier.model
    config = {**model.get_config(), "dtype": "float32"}
    copy = type(model).from_config(config)
    size = classifier.preprocessing.image_size
    copy.build((None, size, size, 3))
    copy.set_weights(model.get_weights())
    return copy


def _with_model(classifier, model):
    return Classifier(model, classifier.preprocessing, classifier.class_names)
