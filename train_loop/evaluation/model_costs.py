"""Parameters, multiply-adds, activation memory and speed of a model."""

import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Operations with a kernel as their second input.
PRODUCTS = ("Conv2D", "MatMul")

# Other operations whose results training keeps for the gradients.
ACTIVATIONS = (
    "AddV2",
    "AvgPool",
    "BiasAdd",
    "FusedBatchNormV3",
    "MaxPool",
    "Relu",
)


class Cost(NamedTuple):
    """Size of a part of a model, and its work for one image.

    `layers` are those with a kernel; `parameters` are the trainable ones;
    `multiply_adds` count convolutions and matrix products, as He et al. do;
    `activation_bytes` is the size of what training keeps for the gradients.
    """

    layers: int
    parameters: int
    multiply_adds: int
    activation_bytes: int


def model_costs(model, image_size):
    """Counts the `Cost` of the parts of a model, from the graph it builds.

    Args:
      model: a built `ResNet`.
      image_size: height and width of the images.

    Returns:
      {part: `Cost`}, in order: stem, the stages, head and "total".
    """
    names = [layer.name for layer in model.layers]
    parts = {_part(name): [0, 0, 0, 0] for name in names}
    for layer in model.layers:
        parts[_part(layer.name)][1] += sum(
            v.shape.num_elements() for v in layer.trainable_variables
        )
    _, operations = graph_of(model, image_size)
    for operation in operations:
        name = part_at(operation, names)
        if name is None:
            continue
        counted = parts[_part(name)]
        output = operation.outputs[0]
        if operation.type in PRODUCTS:
            kernel = operation.inputs[1].shape
            per_output = kernel.num_elements() // kernel[-1]
            counted[0] += 1
            counted[2] += output.shape.num_elements() * per_output
        if operation.type in (*PRODUCTS, *ACTIVATIONS):
            counted[3] += output.shape.num_elements() * output.dtype.size
    parts["total"] = [
        sum(column) for column in zip(*parts.values(), strict=True)
    ]
    return {part: Cost(*counted) for part, counted in parts.items()}


def cost_table(model, image_size):
    """Returns the rows of a table as strings, the header first."""
    rows = [["part", "layers", "parameters", "multiply-adds", "activations"]]
    for part, cost in model_costs(model, image_size).items():
        rows.append(
            [
                part,
                str(cost.layers),
                f"{cost.parameters:,}",
                f"{cost.multiply_adds / 1e9:.3f} x 10^9",
                f"{cost.activation_bytes / 2**20:.1f} MiB",
            ]
        )
    return rows


def images_per_second(classifiers, strategy, batch_size, rounds=5):
    """Measures how many images classifiers predict per second.

    Without reading any. They take turns, so that the ratios in a round do not
    depend on the load of the machine.

    Args:
      classifiers: several `Classifier`s.
      strategy: that they were made in the scope of.
      batch_size: images at once, over all replicas.
      rounds: measurements of each, after one to warm up.

    Returns:
      float64 [rounds, classifiers].
    """
    share = batch_size // strategy.num_replicas_in_sync

    def step_of(classifier):
        size = classifier.preprocessing.image_size
        images = tf.zeros([share, size, size, 3], tf.uint8)
        return tf.function(
            lambda: strategy.run(classifier.logits, args=(images,)),
            autograph=False,
        )

    steps = [step_of(classifier) for classifier in classifiers]
    seconds = np.empty([1 + rounds, len(steps)])
    for row in seconds:
        for number, step in enumerate(steps):
            began = time.perf_counter()
            for part in strategy.experimental_local_results(step()):
                part.numpy()
            row[number] = time.perf_counter() - began
    return batch_size / seconds[1:]


def graph_of(model, image_size):
    """Returns the graph that a model builds for one image, in inference.

    Returns:
      The tensor of the images, and all operations, in order.
    """
    function = tf.function(
        lambda images: model(images, training=False), autograph=False
    )
    channels = model.stem.convs[0].kernel.shape[2]
    spec = tf.TensorSpec([1, image_size, image_size, channels])
    concrete = function.get_concrete_function(spec)
    return concrete.inputs[0], concrete.graph.get_operations()


def part_at(operation, names):
    """Returns in which of the named layers an operation stands, or None."""
    # "resnet50/stage1_block1/conv1/convolution", and a number after any of the
    # names where a layer is called for the second time.
    _, _, scope = operation.name.partition("/")
    scope, _, _ = scope.partition("/")
    name = scope if scope in names else scope.rpartition("_")[0]
    return name if name in names else None


def _part(name):
    return name.partition("_")[0]
