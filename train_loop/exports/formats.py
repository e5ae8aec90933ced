"""Export formats: a table of what each one writes, and the writers.

`portable` makes the classifier that all writers accept: float32 and RGB.
`InferenceGraph` then folds everything into one function of uint8 pixels.
"""

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers import (
    Normalization,
    PaddedMaxPooling2D,
    WeightsError,
    fold_batch_norms,
    load_weights,
    save_safetensors,
)
from resnet_layers.images import LUMA
from train_loop import process
from train_loop.data.decode import center_crop
from train_loop.data.transforms import to_uint8
from train_loop.errors import UserError, check_choice
from train_loop.prediction.classifier import Classifier

# The newest opset that all current ONNX runtimes read.
ONNX_OPSET = 17


class File(NamedTuple):
    """A file of a format: its relative path, its runtime, its precision.

    `runtime` is a key of `runtimes.RUNTIMES`, or None. `is_exact` is true if
    the file computes in float32.
    """

    path: str
    runtime: str | None = None
    is_exact: bool = True

    def __str__(self):
        return self.path + " (files)" * (self.runtime == "serving")


class Format(NamedTuple):
    """An export format: its writer, its files and the packages it requires.

    `write` is a function of a `Bundle` and the path of one file. If the only
    file has no runtime, `read` loads it: a function of the exported classifier
    and a path that returns a `Classifier`.
    """

    write: Callable
    files: tuple
    packages: tuple = ()
    read: Callable | None = None


def parse_formats(text):
    """Returns the format names in a comma-separated list, without duplicates.

    Raises:
      UserError: a name is unknown, or its packages are not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        check_choice("--format", name, EXPORT_FORMATS)
        for package in EXPORT_FORMATS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--format={name}: requires {package}. Install it: "
                    "pip install 'resnet-layers[export]'."
                )
    return list(dict.fromkeys(names))


def portable(classifier):
    """Returns the classifier in float32 and RGB, which all formats accept."""
    return in_rgb(in_float32(classifier))


def in_float32(classifier):
    """Returns the classifier in float32."""
    if classifier.model.compute_dtype == "float32":
        return classifier
    return _with_model(classifier, _copy_model(classifier))


def in_rgb(classifier):
    """Returns the classifier with a model that takes RGB images.

    Raises:
      UserError: the model takes grayscale images and standardizes its kernels.
    """
    mean, stddev, bgr = classifier.preprocessing.normalization
    is_gray = len(mean) == 1
    if not bgr and not is_gray:
        return classifier
    if is_gray and classifier.model.weight_standardization:
        raise UserError(
            f"--channels=1: cannot be combined with {classifier.model.name} in "
            "an export, because its kernels are standardized over the "
            "channels. Train with --channels=3, or with another --model."
        )
    model = _copy_model(classifier, channels=3)
    kernel = tf.cast(classifier.model.stem.convs[0].kernel, tf.float32)
    normalization = Normalization(mean[::-1], stddev[::-1])
    if is_gray:
        # Gray is a weighted sum of the colors, so the kernel can absorb it.
        kernel *= LUMA[:, np.newaxis]
        normalization = normalization.for_channels(3)
    model.stem.convs[0].kernel.assign(kernel[:, :, ::-1] if bgr else kernel)
    return _with_model(classifier, model, normalization=normalization)


def with_folded_norms(classifier):
    """Returns the classifier with its batch norms folded into convolutions.

    The result is for inference only, see `fold_batch_norms`.
    """
    model = _copy_model(classifier)
    fold_batch_norms(model)
    return _with_model(classifier, model)


def quantizable(classifier):
    """Returns the classifier with folded norms, ready for int8 quantization."""
    classifier = with_folded_norms(classifier)
    for layer in classifier.model.stem.pools:
        is_padded = isinstance(layer, PaddedMaxPooling2D)
        if is_padded and layer.padding == "infinity":
            # The calibration would treat infinity as an activation.
            layer.padding = "edges"
    return classifier


class InferenceGraph(tf.Module):
    """Maps uint8 pixels to probabilities, without any Keras object.

    Args:
      classifier: a `Classifier` from `with_folded_norms` or `quantizable`,
        which was `portable` before.
    """

    def __init__(self, classifier):
        super().__init__()
        mean, stddev, _ = classifier.preprocessing.normalization
        model, size = classifier.model, classifier.preprocessing.image_size
        # TensorFlow saves the variables that are attributes.
        self.saved = [variable.value for variable in model.variables]
        # Arrays become constants of the graph; tensors from outside do not.
        mean, scale = np.float32(mean), np.float32(1.0) / np.float32(stddev)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")
            ],
            autograph=False,
        )
        def pixels(images):
            # Not `normalize`, which works on a whole row of pixels and so adds
            # a reshape: all runtimes broadcast three numbers.
            inputs = (tf.cast(images, tf.float32) - mean) * scale
            logits = model(inputs, training=False)
            return {"probabilities": tf.nn.softmax(logits)}

        self.pixels = pixels


class ServingModule(tf.Module):
    """The functions that become signatures of the SavedModel.

    `files` becomes `serving_default`:

        image_bytes: string [batch], JPEG or PNG files
        -> classes: string [batch, top_k], the most probable first
           probabilities: float32 [batch, top_k]

    `pixels` expects images that are already cropped and resized:

        images: uint8 [batch, image_size, image_size, 3], RGB
        -> probabilities: float32 [batch, num_classes], in the order of the
           classes

    Args:
      classifier: a `Classifier`.
      graph: its `InferenceGraph`.
      top_k: maximum number of classes that `files` returns.
    """

    def __init__(self, classifier, graph, top_k):
        super().__init__()
        self.graph = graph
        self.pixels = graph.pixels
        names = tf.constant(classifier.class_names)
        preprocessing = classifier.preprocessing
        size = preprocessing.image_size
        count = min(top_k, len(classifier.class_names))

        @tf.autograph.experimental.do_not_convert
        def prepare(encoded):
            return to_uint8(center_crop(encoded, preprocessing))

        # REST requests encode an input as {"b64": ...} if its name ends in
        # _bytes.
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
            probabilities, labels = tf.math.top_k(
                graph.pixels(images)["probabilities"], count
            )
            return {
                "classes": tf.gather(names, labels),
                "probabilities": probabilities,
            }

        self.files = files


def export_saved_model(bundle, path):
    """Writes a SavedModel folder, one model version of TensorFlow Serving."""
    module = ServingModule(bundle.classifier, bundle.graph, bundle.top_k)
    tf.saved_model.save(
        module,
        str(path),
        signatures={"serving_default": module.files, "pixels": module.pixels},
    )


def export_keras(bundle, path):
    """Writes a `.keras` file: uint8 pixels in, probabilities out.

    Batch norms are not folded, so that training can continue. To open the
    file, import `resnet_layers`.
    """
    classifier = bundle.classifier
    size = classifier.preprocessing.image_size
    mean, stddev, _ = classifier.preprocessing.normalization
    images = tf.keras.Input([size, size, 3], dtype="uint8", name="images")
    inputs = tf.keras.layers.Normalization(
        mean=mean,
        variance=np.square(stddev),
        dtype="float32",
        name="normalization",
    )(images)
    probabilities = tf.keras.layers.Softmax(
        dtype="float32", name="probabilities"
    )(classifier.model(inputs))
    tf.keras.Model(images, probabilities, name="classifier").save(path)


def export_litert(bundle, path):
    """Writes a LiteRT file: uint8 pixels in, float32 probabilities out.

    The file name determines the precision, see `LITERT_PRECISIONS`.
    """
    graph = bundle.quantizable_graph
    with tempfile.TemporaryDirectory() as saved:
        # From concrete functions, the converter makes files that predict NaN.
        tf.saved_model.save(graph, saved, signatures={"pixels": graph.pixels})
        converter = tf.lite.TFLiteConverter.from_saved_model(
            saved, signature_keys=["pixels"]
        )
        LITERT_PRECISIONS[path.name](converter, bundle.calibration)
        with warnings.catch_warnings(), process.silenced():
            # TensorFlow itself calls a deprecated interpreter.
            warnings.simplefilter("ignore")
            path.write_bytes(converter.convert())


def export_onnx(bundle, path):
    """Writes an ONNX file: uint8 pixels in, probabilities out."""
    import onnx
    import tf2onnx

    function = bundle.graph.pixels
    model, _ = tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=ONNX_OPSET
    )
    onnx.helper.set_model_props(
        model, {"class_names": json.dumps(bundle.classifier.class_names)}
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def export_safetensors(bundle, path):
    """Writes a safetensors file, and beside it the `config.json` of timm.

    Raises:
      UserError: PyTorch has no equivalent model.
    """
    classifier = bundle.classifier
    try:
        save_safetensors(classifier.model, path)
    except WeightsError as error:
        raise UserError(str(error)) from error
    preprocessing = classifier.preprocessing
    mean, stddev, _ = preprocessing.normalization
    size = preprocessing.image_size
    config = {
        "architecture": classifier.model.name,
        "num_classes": len(classifier.class_names),
        "label_names": classifier.class_names,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "crop_pct": preprocessing.crop_fraction,
            "interpolation": preprocessing.interpolation,
            "mean": [number / 255 for number in mean],
            "std": [number / 255 for number in stddev],
        },
    }
    text = json.dumps(config, indent=2) + "\n"
    path.with_name("config.json").write_text(text)


def read_safetensors(classifier, path):
    """Returns the classifier with the weights of a safetensors file.

    Args:
      classifier: the `Classifier` that was exported.
      path: path of the file.
    """
    model = _copy_model(classifier)
    # A weight that the file lacks must not go unnoticed.
    model.set_weights([weight * 0 for weight in model.get_weights()])
    load_weights(model, path)
    return _with_model(classifier, model)


def _copy_model(classifier, channels=None):
    """Returns a copy of a classifier's model in float32.

    If `channels` differs from the model's, the first kernel is not copied.
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


def _with_model(classifier, model, **preprocessing):
    return Classifier(
        model,
        classifier.preprocessing._replace(**preprocessing),
        classifier.class_names,
    )


def _to_float16(converter, _):
    """Stores the weights in float16."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _to_int8(converter, calibration):
    """Quantizes everything between input and output to int8.

    The calibration images determine the ranges of the activations.
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        {"images": image[tf.newaxis]} for image in calibration
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


# File name -> function of a converter and the calibration images.
LITERT_PRECISIONS = {
    "model.tflite": lambda converter, calibration: None,
    "model_float16.tflite": _to_float16,
    "model_int8.tflite": _to_int8,
}

EXPORT_FORMATS = {
    "saved_model": Format(
        export_saved_model,
        # One folder, verified through each of its signatures. Its name is the
        # version: TensorFlow Serving expects it below the model's folder.
        (File("1", "saved_model"), File("1", "serving")),
    ),
    "keras": Format(export_keras, (File("model.keras", "keras"),)),
    "litert": Format(
        export_litert,
        (
            File("model.tflite", "litert"),
            File("model_float16.tflite", "litert", is_exact=False),
            File("model_int8.tflite", "litert", is_exact=False),
        ),
        ("ai_edge_litert",),
    ),
    "onnx": Format(
        export_onnx,
        (File("model.onnx", "onnx"),),
        ("onnx", "onnxruntime", "tf2onnx"),
    ),
    "safetensors": Format(
        export_safetensors,
        (File("model.safetensors"),),
        ("safetensors",),
        read_safetensors,
    ),
}
