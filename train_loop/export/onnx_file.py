"""The ONNX file: for ONNX Runtime and all that reads its format."""

import json

# What all runtimes of today read.
OPSET = 17


def write_onnx(shipment, path):
    """Writes an ONNX file: uint8 pixels in, probabilities out."""
    import onnx
    import tf2onnx

    function = shipment.network.pixels
    model, _ = tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=OPSET
    )
    onnx.helper.set_model_props(
        model, {"class_names": json.dumps(shipment.classifier.class_names)}
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
