"""The roofline of a step: the products and bytes that it needs at least.

It is counted operation by operation, for an implementation that fuses all that
can be fused: batch norms, activations, paddings and casts cost no pass over
memory of their own. They are computed where a map (a tensor of activations) is
written or read anyway, and the statistics of a norm where it is written. What
is left to move:

In training, what gradients need is kept, and a norm needs all of a map before
it gives a single number:

    product (convolution)   reads its input and kernel, writes its output
    its gradient            reads its output's gradient, its output (for the
                            norm and activation after), its input and kernel
                            once for both gradients; writes these
    sum (join of a block)   reads what it adds, writes the sum
    its gradient            is that of what it adds: nothing moves
    pooling                 reads and writes; its gradient the same again
    mean over a map         is taken where the map is written
    map with several users  gradients are added: all but one are read again
    update                  reads the gradients; reads and writes the weights
                            and what the optimizer keeps

In inference, a norm is known beforehand, and what follows a product is done
before its result is written. A sum is written in place of a product that it
adds, and reads the others only.

Gradients that are not needed count nothing: those of images, of frozen layers
and of all layers below these.
"""

import dataclasses
import itertools
from typing import NamedTuple

from train_loop.evaluation.model_costs import PRODUCTS, graph_of, part_at

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
