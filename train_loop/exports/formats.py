"""Copies of a classifier that other programs run: same predictions, less code.

What a graph contains becomes simpler from step to step: float32 and RGB, batch
norms inside the convolutions, and at last one function of pixels.
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
from train_loop import process
from train_loop.data.decode import center_crop
from train_loop.data.transforms import to_uint8
from train_loop.errors import UserError, check_choice
from train_loop.prediction.classifier import LUMA, Classifier


def portable(classifier):
    """Returns the classifier in float32 and RGB, which all formats take."""
    return in_rgb(in_float32(classifier))


def in_float32(classifier):
    """Returns the classifier in float32, whatever its precision was."""
    if classifier.model.compute_dtype == "float32":
        return classifier
    return _with_model(classifier, copy_model(classifier))


def in_rgb(classifier):
    """Returns the classifier with a model of RGB images.

    Raises:
      UserError: its images are gray, and no kernels for colors do the same.
    """
    mean, stddev, bgr = classifier.preprocessing.normalization
    is_grey = len(mean) == 1
    if not bgr and not is_grey:
        return classifier
    if is_grey and classifier.model.weight_standardization:
        raise UserError(
            f"{classifier.model.name} with --channels=1 cannot be exported: "
            "its kernels are standardized over the channels. Train with "
            "--channels=3, or another --model"
        )
    model = copy_model(classifier, channels=3)
    kernel = classifier.model.stem.convs[0].kernel
    kernel = tf.cast(kernel, tf.float32)
    normalization = Normalization(mean[::-1], stddev[::-1])
    if is_grey:
        # Gray is a sum over the colors, which a convolution is as well.
        kernel *= LUMA[:, np.newaxis]
        normalization = normalization.for_channels(3)
    model.stem.convs[0].kernel.assign(kernel[:, :, ::-1] if bgr else kernel)
    return Classifier(
        model,
        classifier.preprocessing._replace(normalization=normalization),
        classifier.class_names,
    )


def with_folded_norms(classifier):
    """Returns the classifier with batch norms inside its convolutions.

    The result is for inference only, see `fold_batch_norms`.
    """
    model = copy_model(classifier)
    fold_batch_norms(model)
    return _with_model(classifier, model)


def quantizable(classifier):
    """Returns the classifier with folded norms, for quantization to int8.

    Its calibration would take the padding of a maximum for an activation.
    """
    classifier = with_folded_norms(classifier)
    for layer in classifier.model.stem.pools:
        pads = isinstance(layer, PaddedMaxPooling2D)
        if pads and layer.padding == "infinity":
            layer.padding = "edges"
    return classifier


class InferenceGraph(tf.Module):
    """Maps uint8 pixels to probabilities, without anything of Keras in it.

    Args:
      classifier: a `Classifier` that is `portable`, made for inference by
        `with_folded_norms` or `quantizable`.
    """

    def __init__(self, classifier):
        super().__init__()
        mean, stddev, _ = classifier.preprocessing.normalization
        model, size = classifier.model, classifier.preprocessing.image_size
        # TensorFlow saves variables that are attributes.
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
            # Three numbers, which any runtime broadcasts: `normalize` uses a
            # whole row of pixels at a time, and needs a reshape for it.
            inputs = (tf.cast(images, tf.float32) - mean) * scale
            logits = model(inputs, training=False)
            return {"probabilities": tf.nn.softmax(logits)}

        self.pixels = pixels


def copy_model(classifier, channels=None):
    """Returns a copy of a classifier's model, in float32.

    Args:
      classifier: a `Classifier`.
      channels: of the copy's images; if they are others than the model's, the
        first kernel is the caller's to assign.
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


def _with_model(classifier, model):
    return Classifier(model, classifier.preprocessing, classifier.class_names)


class File(NamedTuple):
    """A file of a format: its path there, what runs it, how exact it is.

    `runtime` is one of `runtimes.RUNTIMES`, or None. `is_exact` says that the
    file computes in float32.
    """

    path: str
    runtime: str | None = None
    is_exact: bool = True

    def __str__(self):
        return self.path + " (files)" * (self.runtime == "serving")


class Format(NamedTuple):
    """How a format is written, its files, and the packages that it requires.

    `write` is a function of a `Bundle` and the path of one of the files. If
    the only file has no runtime, `read` returns the classifier in it: a
    function of a classifier of the same kind and a path.
    """

    write: Callable
    files: tuple
    packages: tuple = ()
    read: Callable | None = None


def parse_formats(text):
    """Returns the names in a text with commas between them.

    Raises:
      UserError: a name is unknown, or its packages are not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        check_choice("--format", name, EXPORT_FORMATS)
        for package in EXPORT_FORMATS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--format={name} needs {package}, of the extra export: "
                    "pip install 'resnet-layers[export]'"
                )
    return list(dict.fromkeys(names))


def export_saved_model(bundle, path):
    """Writes a folder, which TensorFlow Serving takes for a version."""
    module = ServingModule(bundle.classifier, bundle.graph, bundle.top_k)
    tf.saved_model.save(
        module,
        str(path),
        signatures={"serving_default": module.files, "pixels": module.pixels},
    )


class ServingModule(tf.Module):
    """The functions that become signatures of the SavedModel.

    `files` is `serving_default`:

        image_bytes: string [batch], JPEG or PNG files
        -> classes: string [batch, top_k], the most probable one first
           probabilities: float32 [batch, top_k]

    `pixels` is for images that are cropped and resized already:

        images: uint8 [batch, image_size, image_size, 3], RGB
        -> probabilities: float32 [batch, num_classes], in the order of the
           classes

    Args:
      classifier: a `Classifier`.
      graph: an `InferenceGraph` of it.
      top_k: how many classes `files` returns, at most.
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
            probabilities, labels = tf.math.top_k(
                graph.pixels(images)["probabilities"], count
            )
            return {
                "classes": tf.gather(names, labels),
                "probabilities": probabilities,
            }

        self.files = files


def export_keras(bundle, path):
    """Writes a `.keras` file: uint8 pixels in, probabilities out.

    Batch norms stay as they are, so that training can continue. To open the
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

    The name of the file says in which of the `LITERT_PRECISIONS`.
    """
    graph = bundle.quantizable_graph
    with tempfile.TemporaryDirectory() as saved:
        # Of concrete functions, the converter makes files that predict NaN.
        tf.saved_model.save(graph, saved, signatures={"pixels": graph.pixels})
        converter = tf.lite.TFLiteConverter.from_saved_model(
            saved, signature_keys=["pixels"]
        )
        LITERT_PRECISIONS[path.name](converter, bundle.calibration)
        with warnings.catch_warnings(), process.silenced():
            # Of an interpreter that TensorFlow itself calls.
            warnings.simplefilter("ignore")
            path.write_bytes(converter.convert())


def _to_float16(converter, _):
    """Stores the weights in float16."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _to_int8(converter, calibration):
    """Makes everything between input and output int8.

    The ranges of the activations are those of the calibration's images.
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        {"images": image[tf.newaxis]} for image in calibration
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


# Name of the file -> function of a converter and images for calibration.
LITERT_PRECISIONS = {
    "model.tflite": lambda converter, calibration: None,
    "model_float16.tflite": _to_float16,
    "model_int8.tflite": _to_int8,
}
# What all of today's ONNX runtimes read.
ONNX_OPSET = 17


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
      UserError: torch has no network of this kind.
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
    """Returns a classifier with the weights in a file.

    Args:
      classifier: one with the model and the preprocessing of the file.
      path: of the file.
    """
    model = copy_model(classifier)
    model.set_weights([weight * 0 for weight in model.get_weights()])
    load_weights(model, path)
    return Classifier(model, classifier.preprocessing, classifier.class_names)


EXPORT_FORMATS = {
    "saved_model": Format(
        export_saved_model,
        # By its signature of pixels, and by that of files. TensorFlow Serving
        # looks for the versions of a model below its folder.
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
