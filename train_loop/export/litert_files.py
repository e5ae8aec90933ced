"""The LiteRT files: for phones and small computers, in three precisions."""

import tempfile
import warnings

import tensorflow as tf

from train_loop import environment

SIGNATURE = "pixels"


def as_float32(converter, calibration):
    """Leaves weights and activations as they are."""
    del converter, calibration


def as_float16(converter, calibration):
    """Stores the weights in float16."""
    del calibration
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def as_int8(converter, calibration):
    """Makes everything between input and output int8.

    The ranges of the activations are those of the calibration's images.
    """

    def images():
        for image in calibration:
            yield {"images": image[tf.newaxis]}

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = images
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


# Name of the file -> function of a converter and images for calibration.
PRECISIONS = {
    "model.tflite": as_float32,
    "model_float16.tflite": as_float16,
    "model_int8.tflite": as_int8,
}


def write_litert(shipment, path):
    """Writes one file of `PRECISIONS`: uint8 pixels in, probabilities out.

    The probabilities are float32.
    """
    network = shipment.quantizable_network
    with tempfile.TemporaryDirectory() as saved:
        # Of concrete functions, the converter makes files that answer NaN.
        tf.saved_model.save(
            network, saved, signatures={SIGNATURE: network.pixels}
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(
            saved, signature_keys=[SIGNATURE]
        )
        PRECISIONS[path.name](converter, shipment.calibration)
        with warnings.catch_warnings(), environment.silenced():
            # Of an interpreter that TensorFlow itself calls.
            warnings.simplefilter("ignore")
            path.write_bytes(converter.convert())
