"""The `.keras` file: a model that Keras opens, and goes on with."""

import numpy as np
import tensorflow as tf


def write_keras(shipment, path):
    """Writes a `.keras` file: pixels in, probabilities out.

    Batch norms stay as they are, so that training can go on; whoever opens it
    imports `resnet_layers`.
    """
    classifier = shipment.classifier
    size = classifier.preprocessing.image_size
    mean, stddev, _ = classifier.preprocessing.normalization
    images = tf.keras.Input([size, size, 3], dtype="uint8", name="images")
    inputs = tf.keras.layers.Normalization(
        mean=mean,
        variance=np.square(stddev),
        dtype="float32",
        name="normalization",
    )(images)
    logits = classifier.model(inputs)
    probabilities = tf.keras.layers.Softmax(
        dtype="float32", name="probabilities"
    )(logits)
    model = tf.keras.Model(images, probabilities, name="classifier")
    model.save(path)
