"""Presets of Keras Hub: saved by the library, and written in its format."""

import json

import h5py
import numpy as np
from weight_models import randomize

# From `ResNetImageClassifier.save_to_preset` of Keras Hub 0.32, without keys
# that do not matter for weights.
CONFIG = {
    "class_name": "ResNetBackbone",
    "config": {
        "name": "res_net_backbone",
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": [3, 4, 6, 3],
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "bottleneck_block",
        "use_pre_activation": False,
        "image_shape": [None, None, 3],
    },
    "registered_name": "keras_hub>ResNetBackbone",
}
TASK = {
    "class_name": "ResNetImageClassifier",
    "config": {"num_classes": 7, "pooling": "avg", "activation": None},
}
# From ImageNet's mean and standard deviation.
CONVERTER = {
    "image_size": [160, 160],
    "scale": [
        0.017124753831663668,
        0.01750700280112045,
        0.017429193899782133,
    ],
    "offset": [-2.1179039301310043, -2.0357142857142856, -1.8044444444444445],
    "interpolation": "bicubic",
    "antialias": True,
    "crop_to_aspect_ratio": True,
    "pad_to_aspect_ratio": False,
}

BATCH_NORM = ["gamma", "beta", "moving_mean", "moving_variance"]


def write_config(folder, **changes):
    config = {**CONFIG, "config": {**CONFIG["config"], **changes}}
    (folder / "config.json").write_text(json.dumps(config))


def write_preprocessor(folder, converter):
    content = {
        "class_name": "ResNetImageClassifierPreprocessor",
        "config": {
            "image_converter": converter
            and {"class_name": "ResNetImageConverter", "config": converter}
        },
    }
    (folder / "preprocessor.json").write_text(json.dumps(content))


def write_weights(path, layers):
    """Writes {layer: {variable: array}} in the layout of Keras 3.

    A layer's group has the name of its class, and its own name as attribute.
    """
    with h5py.File(path, "w") as file:
        for number, (name, variables) in enumerate(layers.items()):
            group = file.create_group(f"layers/layer_{number}/vars")
            group.attrs["name"] = name
            for index, value in enumerate(variables.values()):
                group[str(index)] = value


def write_preset(folder):
    """Writes a preset with a classifier and two stages of a bottleneck block.

    Returns:
      {layer: {variable: array}}.
    """
    shapes = {"conv1_conv": (7, 7, 3, 64), "conv1_bn": (64,)}
    channels = 64
    for stage, filters in enumerate((64, 128)):
        block = f"stack{stage}_block0"
        for number, shape in enumerate(
            (
                (1, 1, channels, 4 * filters),
                (1, 1, channels, filters),
                (3, 3, filters, filters),
                (1, 1, filters, 4 * filters),
            )
        ):
            shapes[f"{block}_{number}_conv"] = shape
            shapes[f"{block}_{number}_bn"] = shape[-1:]
        channels = 4 * filters
    layers = {
        name: randomize(
            dict.fromkeys(BATCH_NORM, shape)
            if name.endswith("_bn")
            else {"kernel": shape},
            seed,
        )
        for seed, (name, shape) in enumerate(shapes.items())
    }
    head = {"predictions": randomize({"kernel": (512, 7), "bias": (7,)})}
    # In another order, so that reading by order fails.
    write_weights(
        folder / "model.weights.h5",
        {name: layers[name] for name in sorted(layers, reverse=True)},
    )
    write_weights(folder / "task.weights.h5", {"pooler": {}, **head})
    write_config(
        folder,
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
    )
    (folder / "task.json").write_text(json.dumps(TASK))
    write_preprocessor(folder, CONVERTER)
    return {**layers, **head}


def save_preset(keras_hub, folder, block_type, preactivation=False):
    """Saves a small model of Keras Hub and returns it.

    It has two stages, with two blocks and one.
    """
    deep = block_type.endswith("_vd")
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[32, 32, 64] if deep else [64],
        input_conv_kernel_sizes=[3, 3, 3] if deep else [7],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[2, 1],
        stackwise_num_strides=[1, 2],
        block_type=block_type,
        use_pre_activation=preactivation,
        image_shape=(64, 64, 3),
    )
    model = keras_hub.models.ResNetImageClassifier(backbone, num_classes=7)
    shapes = {
        f"{layer.name}/{weight.name}": tuple(weight.shape)
        for layer in (*backbone.layers, model.output_dense)
        for weight in layer.weights
    }
    values = randomize(shapes)
    for layer in (*backbone.layers, model.output_dense):
        layer.set_weights(
            [np.array(values[f"{layer.name}/{w.name}"]) for w in layer.weights]
        )
    model.save_to_preset(str(folder))
    return model
