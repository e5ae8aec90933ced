"""The SavedModel: bytes of picture files in, names of classes out."""

import tensorflow as tf

from train_loop.data.decode import center_crop
from train_loop.data.transforms import to_uint8


class Server(tf.Module):
    """The functions that become signatures.

    `files` is `serving_default`:

        image_bytes: string [batch], JPEG or PNG files
        -> classes: string [batch, top_k], the most probable one first
           probabilities: float32 [batch, top_k]

    `pixels` is for those who have cropped and resized already:

        images: uint8 [batch, image_size, image_size, 3], RGB
        -> probabilities: float32 [batch, num_classes], in the order of the
           classes

    Args:
      classifier: a `Classifier`.
      network: a `Network` of it.
      top_k: how many classes `files` names, at most.
    """

    def __init__(self, classifier, network, top_k):
        super().__init__()
        self.network = network
        self.pixels = network.pixels
        names = tf.constant(classifier.class_names)
        preprocessing = classifier.preprocessing
        size = preprocessing.image_size
        count = min(top_k, len(classifier.class_names))

        @tf.autograph.experimental.do_not_convert
        def prepare(encoded):
            return to_uint8(center_crop(encoded, preprocessing))

        # What ends in _bytes comes as {"b64": ...} over REST.
        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")],
            autograph=False,
        )
        def files(image_bytes):
            images = tf.map_fn(
                prepare,
                image_bytes,
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
            )
            answers = network.pixels(images)["probabilities"]
            probabilities, labels = tf.math.top_k(answers, count)
            return {
                "classes": tf.gather(names, labels),
                "probabilities": probabilities,
            }

        self.files = files


def write_saved_model(shipment, path):
    """Writes a folder, which TensorFlow Serving takes for a version."""
    server = Server(shipment.classifier, shipment.network, shipment.top_k)
    tf.saved_model.save(
        server,
        str(path),
        signatures={"serving_default": server.files, "pixels": server.pixels},
    )
