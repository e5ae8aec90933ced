"""What a model costs: parameters, multiply-adds, memory, and the least time."""

import dataclasses
import itertools
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


POOLING_OPS = ("MaxPool", "AvgPool")


class MinimumWork(NamedTuple):
    """The work that an operation needs at least.

    Of `flops`, a multiply-add counts as two.
    """

    flops: int = 0
    bytes: int = 0


class Roofline(NamedTuple):
    """The least time of a step, and what it is made of.

    `flops` and `bytes` are those of all its operations together;
    `products_seconds` is what the products take if nothing else counts, and
    `memory_seconds` the same of the bytes. An operation takes at least the
    longer one of its two, and one is done after the other: that is
    `least_seconds`.
    """

    flops: int
    bytes: int
    products_seconds: float
    memory_seconds: float
    least_seconds: float


def roofline_of(work, limits):
    """Returns the `Roofline` of operations on a machine.

    Args:
      work: the `MinimumWork` of each.
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
    """Returns the speed of a step beside its limits, as a value for JSON.

    Args:
      work: the `MinimumWork` of each operation.
      limits: `Limits` of the machine.
      seconds: of a step, as it was measured.
    """
    least = roofline_of(work, limits)
    return {
        "limits": {
            "flops_per_second": limits.flops,
            "bytes_per_second": limits.bytes,
        },
        "flops_per_second": least.flops / seconds,
        "share_of_flops": least.products_seconds / seconds,
        "share_of_bandwidth": least.memory_seconds / seconds,
        "roofline": {
            **least._asdict(),
            "share": least.least_seconds / seconds,
        },
    }


@dataclasses.dataclass(eq=False)
class FeatureMap:
    """A tensor that is written to memory, and what computes it.

    Args:
      kind: "images", "product", "sum", "pool" or "mean".
      inputs: `FeatureMap`s that it is computed from.
      bytes: of a whole batch.
      kernel_bytes: of a product.
      flops: of a product.
      learns: whether the kernel is trained.
      has_norm: whether the tensor is needed for its gradient.

    Attributes:
      users: how many `FeatureMap`s are computed from it.
      has_gradient: whether something before it is trained.
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
      batch_size: how many.
    """
    layers = {layer.name: layer for layer in model.layers}
    images, operations = graph_of(model, image_size)
    # They come as bytes.
    first = FeatureMap("images", [], batch_size * images.shape.num_elements())
    # Of every tensor, by name: the maps that it is computed from, on the way.
    origins, maps = {images.name: [first]}, [first]
    for operation in operations:
        if operation.outputs and operation.outputs[0] is images:
            continue
        sources = [origins.get(tensor.name, []) for tensor in operation.inputs]
        made = _feature_map_of(operation, sources, batch_size, layers)
        if made is not None:
            maps.append(made)
        for number, output in enumerate(operation.outputs):
            if made is not None:
                origins[output.name] = [made]
            elif operation.type == "IdentityN":
                origins[output.name] = sources[number]
            else:
                origins[output.name] = _all(sources)
    return maps


def _feature_map_of(operation, sources, batch_size, layers):
    """Returns the `FeatureMap` that an operation writes, None if it need not.

    Args:
      operation: of a graph for one image.
      sources: the maps that each of its inputs is computed from.
      batch_size: how many images there are.
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
            # Variables are float32, whatever is computed in.
            kernel_bytes=4 * kernel.num_elements(),
            flops=2 * products,
            learns=bool(layer is not None and layer.trainable_variables),
            has_norm=operation.type != "MatMul",
        )
    if operation.type in POOLING_OPS:
        return FeatureMap("pool", inputs, size)
    if operation.type == "Mean":
        return FeatureMap("mean", inputs, size)
    # Two tensors of one size that come from elsewhere. What scales a map,
    # channel by channel, is smaller; the factors of a swish are of one map;
    # and what a norm subtracts is a mean of it.
    alike = {
        tuple(source for source in maps if source.kind != "mean")
        for tensor, maps in zip(operation.inputs, sources, strict=True)
        if tensor.shape == output.shape
    } - {()}
    return FeatureMap("sum", inputs, size) if len(alike) > 1 else None


def _all(sources):
    """Returns all the maps of several lists, each once."""
    return list(dict.fromkeys(itertools.chain(*sources)))


def inference_work(maps):
    """Returns the `MinimumWork` of each map that is computed in inference."""
    return [_inference(tensor) for tensor in maps if tensor.kind != "images"]


def training_work(maps, trained_bytes, optimizer_bytes):
    """Returns the `MinimumWork` of all that is done in a training step.

    Args:
      maps: see `feature_maps`.
      trained_bytes: of the weights that are trained.
      optimizer_bytes: of what the optimizer keeps beside them.
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
        # It is written where the product would have been, which counts that.
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
