"""Changes to a classifier that leave its answers as they are.

Each makes a copy, which needs less of whoever runs it.
"""

import tensorflow as tf

from resnet_layers import (
    BasicBlock,
    BatchNormalization,
    BottleneckBlock,
    Normalization,
    PaddedConv2D,
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

    What a batch norm right behind a convolution multiplies by goes into the
    kernel, and what it adds becomes a bias: the norms of all nets but those
    that pre-activation puts in front of a convolution. The result is for
    inference only.
    """
    model = copy_of(classifier)
    for conv, norm in convolutions_with_norms(model):
        factor = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
        # The convolution has no bias: it would not outlive the norm.
        norm.beta.assign(norm.beta - norm.moving_mean * factor)
        conv.kernel.assign(conv.kernel * factor)
        # The layer stays where it is in the model, and adds what is left.
        norm.call = _adder(norm.beta)
    return _with_model(classifier, model)


def convolutions_with_norms(model):
    """Yields (convolution, the batch norm right behind it) of a `ResNet`."""
    stem = model.stem
    pools = {layer.name: layer for layer in stem.pools}
    pairs = [*zip(stem.convs, stem.bns, strict=False)]
    pairs.append((pools.get("pool_conv"), pools.get("pool_bn")))
    for block in model.blocks:
        # In a block of somebody's own, they may be anywhere.
        if isinstance(block, BasicBlock | BottleneckBlock):
            pairs.append((block.projection_conv, block.projection_bn))
            pairs += [
                (
                    getattr(block, f"conv{n}", None),
                    getattr(block, f"bn{n}", None),
                )
                for n in (1, 2, 3)
            ]
    for conv, norm in pairs:
        # What a standardised kernel is multiplied by is lost, and other norms
        # have no statistics of their own.
        if type(conv) is PaddedConv2D and isinstance(norm, BatchNormalization):
            yield conv, norm


def copy_of(classifier):
    """Returns a copy of a classifier's model, in float32."""
    model = classifier.model
    config = {**model.get_config(), "dtype": "float32"}
    copy = type(model).from_config(config)
    size = classifier.preprocessing.image_size
    copy.build((None, size, size, 3))
    copy.set_weights(model.get_weights())
    return copy


def _adder(bias):
    return lambda inputs, **phase: tf.nn.bias_add(inputs, bias)


def _with_model(classifier, model):
    return Classifier(model, classifier.preprocessing, classifier.class_names)
