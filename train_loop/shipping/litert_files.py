"""The LiteRT files: for phones and small computers, in three precisions."""

import tempfile
import warnings

import tensorflow as tf

from train_loop import environment

SIGNATURE = "pixels"


def write_litert(shipment, folder):
    """Writes `model.tflite`, `model_float16.tflite` and `model_int8.tflite`.

    All take uint8 pixels and return float32 probabilities. In float16 are the
    weights only; in int8 everything between input and output, by the ranges of
    the shipment's pictures for calibration.
    """
    network = shipment.network

    def pictures():
        for picture in shipment.calibration:
            yield {"images": picture[tf.newaxis]}

    def as_float32(converter):
        del converter

    def as_float16(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    def as_int8(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = pictures
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]

    with tempfile.TemporaryDirectory() as saved:
        # Of concrete functions, the converter makes files that answer NaN.
        tf.saved_model.save(
            network, saved, signatures={SIGNATURE: network.pixels}
        )
        for name, prepare in (
            ("model.tflite", as_float32),
            ("model_float16.tflite", as_float16),
            ("model_int8.tflite", as_int8),
        ):
            converter = tf.lite.TFLiteConverter.from_saved_model(
                saved, signature_keys=[SIGNATURE]
            )
            prepare(converter)
            with warnings.catch_warnings(), environment.silenced():
                # Of an interpreter that TensorFlow itself calls.
                warnings.simplefilter("ignore")
                (folder / name).write_bytes(converter.convert())
