"""Times both ways to the gradients of kernels, layer by layer.

    python -m benchmarks.kernel_gradients [--model resnet50]
        [--dtype float32] [--batch_size 32] [--image_size 224] [--rounds 9]

As a convolution and as matrix products, in turn, for all convolutions of a net
but those of large kernels and those in groups, which are never products. What
training takes on this machine is marked.
"""

import collections
import statistics
import time
from unittest import mock

import tensorflow as tf
from tqdm import tqdm

from resnet_layers import VARIANTS, convolutions
from train_loop.console import parser_of, text_table

Call = collections.namedtuple("Call", "inputs kernel strides padding")


def read_options(arguments):
    """Returns what the command line says."""
    parser = parser_of("python -m benchmarks.kernel_gradients", __doc__)
    add = parser.add_argument
    add("--model", default="resnet50", help="A row of VARIANTS.")
    add("--dtype", default="float32", help="Of all tensors, or bfloat16.")
    add("--batch_size", type=int, default=32, help="Images per step.")
    add("--image_size", type=int, default=224, help="Height and width.")
    add("--rounds", type=int, default=9, help="Timed calls of each way.")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = read_options(arguments)
    shape = (options.batch_size, options.image_size, options.image_size, 3)
    counts = collections.Counter(calls_of(VARIANTS[options.model](), shape))
    rows = [("inputs", "kernel", "strides", "layers", "ms", "products", "")]
    totals = collections.Counter()
    for call, count in tqdm(counts.items(), unit="layer"):
        convolution, products, are_taken = measure(
            call, options.dtype, options.rounds
        )
        rows.append(
            (
                *(" x ".join(map(str, numbers)) for numbers in call[:3]),
                str(count),
                f"{convolution * 1e3:.2f}",
                f"{products * 1e3:.2f}",
                "taken" if are_taken else "",
            )
        )
        totals["as convolutions"] += count * convolution
        totals["as products"] += count * products
        totals["as taken"] += count * (products if are_taken else convolution)
        totals["as is best"] += count * min(products, convolution)
    print(text_table(rows))
    for name, seconds in totals.items():
        print(f"all {name}: {seconds * 1e3:.1f} ms")


def calls_of(model, shape):
    """Returns the `Call` of each convolution that could be products, in order.

    Args:
      model: a `ResNet` that is not built.
      shape: of its inputs.
    """
    calls, convolve = [], convolutions.convolve

    def remember(inputs, kernel, strides, padding, products):
        calls.append(
            Call(tuple(inputs.shape), tuple(kernel.shape), strides, padding)
        )
        return convolve(inputs, kernel, strides, padding, products)

    model.build(shape)
    with (
        mock.patch.object(convolutions, "convolve", remember),
        tf.GradientTape(),
    ):
        tf.function(model).get_concrete_function(
            tf.TensorSpec(shape), training=True
        )
    return [call for call in calls if convolutions.can_be_products(*call[:3])]


def measure(call, dtype, rounds):
    """Returns seconds as a convolution, as products, and which one is taken."""
    inputs, kernel = (
        tf.cast(tf.random.normal(shape), dtype)
        for shape in (call.inputs, call.kernel)
    )
    outputs = convolutions.convolve(inputs, kernel, *call[2:])
    upstream = tf.cast(tf.random.normal(outputs.shape), dtype)
    ways = [
        gradients_of(inputs, kernel, upstream, call, products)
        for products in (False, True)
    ]
    seconds = [[], []]
    for _ in range(rounds):
        for way, spent in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way(inputs).numpy()
            spent.append(time.perf_counter() - began)
    are_taken = convolutions.products_are_faster(
        inputs.shape, kernel.shape, outputs.shape, call.strides
    )
    return *map(statistics.median, seconds), are_taken


def gradients_of(inputs, kernel, upstream, call, products):
    """Returns a function of a convolution's inputs, warmed up."""

    @tf.function(autograph=False)
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = convolutions.convolve(
                inputs, kernel, call.strides, call.padding
            )
        return tape.gradient(outputs, kernel, upstream)

    with mock.patch.object(
        convolutions, "products_are_faster", return_value=products
    ):
        for _ in range(2):
            gradients(inputs)
    return gradients


if __name__ == "__main__":
    main()
