"""Parameters, multiply-adds and memory of a model, and its roofline."""

import dataclasses
import itertools
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Operations whose second input is a kernel.
PRODUCTS = ("Conv2D", "MatMul")
POOLING_OPS = ("MaxPool", "AvgPool")
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

    `layers` counts layers with a kernel, `parameters` trainable parameters,
    and `multiply_adds` those of convolutions and matrix products, as in He et
    al. `activation_bytes` is the memory of the activations that training keeps
    for the gradients.
    """

    layers: int
    parameters: int
    multiply_adds: int
    activation_bytes: int


def model_costs(model, image_size):
    """Counts the `Cost` of each part of a model, from its inference graph.

    Args:
      model: a built `ResNet`.
      image_size: height and width of the images.

    Returns:
      {part: `Cost`}, in the order stem, stages, head, "total".
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
    """Returns a table of `model_costs` as rows of text, the header first."""
    rows = [
        ["part", "layers", "parameters", "multiply-adds", "activation memory"]
    ]
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
    """Measures how many images per second classifiers predict.

    The images are not read from files. The classifiers alternate, so that
    other load on the machine hardly affects the ratios within a round.

    Args:
      classifiers: several `Classifier`s.
      strategy: the strategy in whose scope they were created.
      batch_size: global batch size.
      rounds: number of measurements of each, after a warm-up.

    Returns:
      float64 [rounds, classifiers].
    """
    per_replica = batch_size // strategy.num_replicas_in_sync

    def step_of(classifier):
        size = classifier.preprocessing.image_size
        images = tf.zeros([per_replica, size, size, 3], tf.uint8)
        return tf.function(
            lambda: strategy.run(classifier.logits, args=(images,)),
            autograph=False,
        )

    steps = [step_of(classifier) for classifier in classifiers]
    seconds = np.empty([1 + rounds, len(steps)])
    for of_round in seconds:
        for number, step in enumerate(steps):
            began = time.perf_counter()
            for logits in strategy.experimental_local_results(step()):
                logits.numpy()
            of_round[number] = time.perf_counter() - began
    return batch_size / seconds[1:]


def graph_of(model, image_size):
    """Returns the inference graph of a model for one image.

    Returns:
      The input tensor and all operations, in order.
    """
    function = tf.function(
        lambda images: model(images, training=False), autograph=False
    )
    channels = model.stem.convs[0].kernel.shape[2]
    spec = tf.TensorSpec([1, image_size, image_size, channels])
    concrete = function.get_concrete_function(spec)
    return concrete.inputs[0], concrete.graph.get_operations()


def part_at(operation, names):
    """Returns the name of the layer that an operation belongs to, or None."""
    # For example "resnet50/stage1_block1/conv1/convolution". Further calls of a
    # layer add a number to its name.
    _, _, scope = operation.name.partition("/")
    scope, _, _ = scope.partition("/")
    name = scope if scope in names else scope.rpartition("_")[0]
    return name if name in names else None


def _part(name):
    return name.partition("_")[0]


class MinimumWork(NamedTuple):
    """The minimum work of an operation; a multiply-add is two `flops`."""

    flops: int = 0
    bytes: int = 0


class Roofline(NamedTuple):
    """The minimum time of a step.

    `flops` and `bytes` are the totals of all operations. `products_seconds` is
    the time of the flops alone, `memory_seconds` the time of the bytes alone.
    `least_seconds` adds up the longer of the two for each operation, because
    operations run one after the other.
    """

    flops: int
    bytes: int
    products_seconds: float
    memory_seconds: float
    least_seconds: float


def roofline_of(work, limits):
    """Returns the `Roofline` of operations on a machine.

    Args:
      work: the `MinimumWork` of each operation.
      limits: `Limits` of the machine.
    """
    flops = sum(each.flops for each in work)
    moved = sum(each.bytes for each in work)
    return Roofline(
        flops,
        moved,
        flops / limits.flops,
        moved / limits.bytes,
        sum(
            max(each.flops / limits.flops, each.bytes / limits.bytes)
            for each in work
        ),
    )


def compared_with_roofline(work, limits, seconds):
    """Returns the measured speed of a step and its limits, for JSON.

    Args:
      work: the `MinimumWork` of each operation.
      limits: `Limits` of the machine.
      seconds: measured seconds of a step.
    """
    roofline = roofline_of(work, limits)
    return {
        "limits": {
            "flops_per_second": limits.flops,
            "bytes_per_second": limits.bytes,
        },
        "flops_per_second": roofline.flops / seconds,
        "share_of_flops": roofline.products_seconds / seconds,
        "share_of_bandwidth": roofline.memory_seconds / seconds,
        "roofline": {
            **roofline._asdict(),
            "share": roofline.least_seconds / seconds,
        },
    }


@dataclasses.dataclass(eq=False)
class FeatureMap:
    """A tensor that is written to memory, and the operation behind it.

    Args:
      kind: "images", "product", "sum", "pool" or "mean".
      inputs: the `FeatureMap`s that it is computed from.
      bytes: its size for a whole batch.
      kernel_bytes: size of a product's kernel.
      flops: operations of a product.
      learns: whether the kernel is trained.
      has_norm: whether its gradient requires the tensor.

    Attributes:
      users: number of `FeatureMap`s that are computed from it.
      has_gradient: whether it or an earlier operation is trained.
    """

    kind: str
    inputs: list
    bytes: int
    kernel_bytes: int = 0
    flops: int = 0
    learns: bool = False
    has_norm: bool = False

    def __post_init__(self):
        self.users = 0
        for other in self.inputs:
            other.users += 1
        self.has_gradient = self.learns or any(
            other.has_gradient for other in self.inputs
        )


def feature_maps(model, image_size, batch_size):
    """Returns the `FeatureMap`s of a model, in the order of its graph.

    Args:
      model: a built `ResNet`.
      image_size: height and width of the images.
      batch_size: number of images.
    """
    layers = {layer.name: layer for layer in model.layers}
    images, operations = graph_of(model, image_size)
    # Pixels are uint8.
    first = FeatureMap("images", [], batch_size * images.shape.num_elements())
    # {name of a tensor: the maps that it is computed from}.
    origins, maps = {images.name: [first]}, [first]
    for operation in operations:
        if operation.outputs and operation.outputs[0] is images:
            continue
        sources = [origins.get(tensor.name, []) for tensor in operation.inputs]
        new = _feature_map_of(operation, sources, batch_size, layers)
        if new is not None:
            maps.append(new)
        for number, output in enumerate(operation.outputs):
            if new is not None:
                origins[output.name] = [new]
            elif operation.type == "IdentityN":
                origins[output.name] = sources[number]
            else:
                origins[output.name] = _all(sources)
    return maps


def _feature_map_of(operation, sources, batch_size, layers):
    """Returns the `FeatureMap` of an operation, or None if it can be fused.

    Args:
      operation: an operation of a graph for one image.
      sources: for each of its inputs, the maps that it is computed from.
      batch_size: number of images.
      layers: {name: layer}.
    """
    inputs = _all(sources)
    if not inputs:
        return None
    output = operation.outputs[0]
    count = output.shape.num_elements()
    size = batch_size * count * output.dtype.size if count else 0
    if operation.type in PRODUCTS:
        kernel = operation.inputs[1].shape
        layer = layers.get(part_at(operation, layers))
        products = kernel.num_elements() // kernel[-1] * count * batch_size
        return FeatureMap(
            "product",
            inputs,
            size,
            # Variables are float32 in every precision.
            kernel_bytes=4 * kernel.num_elements(),
            flops=2 * products,
            learns=bool(layer is not None and layer.trainable_variables),
            has_norm=operation.type != "MatMul",
        )
    if operation.type in POOLING_OPS:
        return FeatureMap("pool", inputs, size)
    if operation.type == "Mean":
        return FeatureMap("mean", inputs, size)
    # A sum combines two tensors of the output's shape from different maps. The
    # scale of a channel is smaller, the factors of a swish come from one map,
    # and a norm subtracts a mean.
    summands = {
        tuple(source for source in maps if source.kind != "mean")
        for tensor, maps in zip(operation.inputs, sources, strict=True)
        if tensor.shape == output.shape
    } - {()}
    return FeatureMap("sum", inputs, size) if len(summands) > 1 else None


def _all(sources):
    """Returns the maps of several lists without duplicates."""
    return list(dict.fromkeys(itertools.chain(*sources)))


def inference_work(maps):
    """Returns the `MinimumWork` of all operations of inference."""
    return [_inference(tensor) for tensor in maps if tensor.kind != "images"]


def training_work(maps, trained_bytes, optimizer_bytes):
    """Returns the `MinimumWork` of all operations of a training step.

    Args:
      maps: see `feature_maps`.
      trained_bytes: size of the trained weights.
      optimizer_bytes: size of the optimizer's variables.
    """
    works = [_forward(tensor) for tensor in maps if tensor.kind != "images"]
    for tensor in maps:
        if tensor.has_gradient:
            works += [_backward(tensor), _summed_gradients(tensor)]
    return [*works, MinimumWork(0, 3 * trained_bytes + 2 * optimizer_bytes)]


def _forward(tensor):
    if tensor.kind == "mean":
        return MinimumWork(0, tensor.bytes)
    read = sum(other.bytes for other in tensor.inputs)
    return MinimumWork(tensor.flops, read + tensor.kernel_bytes + tensor.bytes)


def _inference(tensor):
    if tensor.kind != "sum":
        return _forward(tensor)
    read = sum(other.bytes for other in tensor.inputs)
    if any(o.kind == "product" and o.users == 1 for o in tensor.inputs):
        # Fused into the product, whose own output it replaces.
        return MinimumWork(0, read - tensor.bytes)
    return MinimumWork(0, read + tensor.bytes)


def _backward(tensor):
    passed = [other for other in tensor.inputs if other.has_gradient]
    written = sum(other.bytes for other in passed)
    read = sum(other.bytes for other in tensor.inputs)
    if tensor.kind == "product":
        gradients = tensor.learns + bool(passed)
        own = tensor.bytes * (1 + tensor.has_norm)
        kernels = tensor.kernel_bytes * gradients
        return MinimumWork(
            tensor.flops * gradients, own + read + kernels + written
        )
    if tensor.kind == "pool":
        return MinimumWork(0, tensor.bytes + read + written)
    return MinimumWork()


def _summed_gradients(tensor):
    others = max(tensor.users - 1, 0)
    return MinimumWork(0, others * tensor.bytes)
