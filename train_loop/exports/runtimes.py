"""Third-party runtimes: a process that runs files without this project.

    python runtimes.py FOLDER RUNTIME=PATH ...

It reads `images.npy` and `files.json` in the folder, and writes the
predictions of each file there.
"""

import base64
import json
import os
import pathlib
import sys
import time

import numpy as np

# Batch sizes to time.
BATCH_SIZES = (1, 32)
# Replaces the probability of a class that is not among the top k.
NOT_LISTED = -1.0
# Timing stops after this many seconds, or calls of each batch size.
SECONDS, CALLS = 2.0, 20


def load_saved_model(path):
    """Calls the signature `pixels`."""
    signature = _signature(path, "pixels", "images")
    return lambda images: signature(images)["probabilities"]


def load_serving(path):
    """Calls the default signature, as TensorFlow Serving's REST server does.

    The function takes the "instances" of a request, each
    {"image_bytes": {"b64": ...}}.
    """
    signature = _signature(path, "serving_default", "image_bytes")
    contents = pathlib.Path(path).with_name("classifier.json")
    names = json.loads(contents.read_text())["class_names"]
    numbers = {name.encode(): number for number, name in enumerate(names)}

    def call(instances):
        outputs = signature(
            [base64.b64decode(each["image_bytes"]["b64"]) for each in instances]
        )
        labels = np.vectorize(numbers.get)(outputs["classes"])
        probabilities = np.full((len(instances), len(names)), NOT_LISTED)
        np.put_along_axis(probabilities, labels, outputs["probabilities"], 1)
        return probabilities

    return call


def load_keras(path):
    """Calls the Keras model; its layers come from `resnet_layers`."""
    import tensorflow as tf

    import resnet_layers  # noqa: F401

    model = tf.keras.models.load_model(path)
    call = tf.function(
        lambda images: model(images, training=False), autograph=False
    )
    return lambda images: call(tf.constant(images)).numpy()


def load_litert(path):
    """Calls the only signature of the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=os.cpu_count())
    call = interpreter.get_signature_runner()
    return lambda images: call(images=images)["probabilities"]


def load_onnx(path):
    """Calls the model of the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]


# Name -> function of a path. It returns a function of images (or of a
# request's instances) that returns probabilities [batch, num_classes].
RUNTIMES = {
    "saved_model": load_saved_model,
    "serving": load_serving,
    "keras": load_keras,
    "litert": load_litert,
    "onnx": load_onnx,
}


def milliseconds(call, images):
    """Measures milliseconds per image for each of `BATCH_SIZES`.

    The batch sizes alternate, so that other load affects all of them alike.

    Returns:
      [10th percentile, 90th percentile] for each batch size.
    """
    batches = [
        np.asarray(images)[np.arange(size) % len(images)]
        for size in BATCH_SIZES
    ]
    for batch in batches:
        # Warms up: one-time work for this batch size is not timed.
        call(batch)
    calls, begin = [], time.perf_counter()
    while not calls or (
        len(calls) < CALLS and time.perf_counter() - begin < SECONDS
    ):
        calls.append([])
        for batch in batches:
            start = time.perf_counter()
            call(batch)
            calls[-1].append(time.perf_counter() - start)
    taken = np.array(calls) * 1000 / BATCH_SIZES
    return np.percentile(taken, [10, 90], axis=0).T.tolist()


def _signature(path, name, argument):
    """Returns a function that maps an array or a list to {name: array}."""
    import tensorflow as tf

    # Keeps the variables alive.
    loaded = tf.saved_model.load(path)

    def call(values):
        signature = loaded.signatures[name]
        outputs = signature(**{argument: tf.constant(values)})
        return {key: value.numpy() for key, value in outputs.items()}

    return call


def main(folder, *files):
    """Predicts the images in a folder with each file, and times each file.

    Args:
      folder: contains `images.npy` and `files.json`.
      *files: RUNTIME=PATH. The predictions of the first go to `0.npz`.
    """
    folder = pathlib.Path(folder)
    images = np.load(folder / "images.npy")
    instances = json.loads((folder / "files.json").read_text())["instances"]
    size = max(BATCH_SIZES)
    for number, file in enumerate(files):
        runtime, _, path = file.partition("=")
        inputs = instances if runtime == "serving" else images
        call = RUNTIMES[runtime](path)
        batches = range(0, len(inputs), size)
        np.savez(
            folder / f"{number}.npz",
            probabilities=np.concatenate(
                [call(inputs[begin : begin + size]) for begin in batches]
            ),
            milliseconds=milliseconds(call, inputs),
        )


if __name__ == "__main__":
    # Imports find no modules of this folder, as with `python -P`, which Python
    # 3.10 lacks.
    del sys.path[0]
    main(*sys.argv[1:])
