"""The function inside every graph that is shipped: pixels to probabilities."""

import numpy as np
import tensorflow as tf

from train_loop.export.rewriting import with_folded_norms


class Network(tf.Module):
    """Maps uint8 pixels to probabilities; nothing of Keras is left in it.

    Args:
      classifier: a `Classifier` that is `portable`.
      rewrite: function that returns the classifier for inference only.
    """

    def __init__(self, classifier, rewrite=with_folded_norms):
        super().__init__()
        classifier = rewrite(classifier)
        mean, stddev, _ = classifier.preprocessing.normalization
        model, size = classifier.model, classifier.preprocessing.image_size
        # TensorFlow saves what hangs in an attribute.
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
            # Three numbers, which any runtime broadcasts: `normalize` takes a
            # row at a time, and wants a reshape for it.
            inputs = (tf.cast(images, tf.float32) - mean) * scale
            logits = model(inputs, training=False)
            return {"probabilities": tf.nn.softmax(logits)}

        self.pixels = pixels
