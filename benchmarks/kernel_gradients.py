"""Times the kernel gradients of convolutions by two methods, for each layer.

    python -m benchmarks.kernel_gradients [--model resnet50]
        [--dtype float32] [--batch_size 32] [--image_size 224] [--rounds 9]

The methods are a convolution and matrix products, which alternate. Large
kernels and grouped convolutions are skipped, because they never use products.
Marks show which layers use products in training on this machine.
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
    """Returns the parsed command line."""
    parser = parser_of("python -m benchmarks.kernel_gradients", __doc__)
    add = parser.add_argument
    add("--model", default="resnet50", help="Name of a variant.")
    add("--dtype", default="float32", help="float32 or bfloat16.")
    add("--batch_size", type=int, default=32, help="Batch size.")
    add("--image_size", type=int, default=224, help="Height and width.")
    add("--rounds", type=int, default=9, help="Timed calls of each method.")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = read_options(arguments)
    shape = (options.batch_size, options.image_size, options.image_size, 3)
    counts = collections.Counter(calls_of(VARIANTS[options.model](), shape))
    rows = [("inputs", "kernel", "strides", "layers", "ms", "products", "")]
    totals = collections.Counter()
    for call, count in tqdm(counts.items(), unit="layer"):
        convolution, products, is_used = measure(
            call, options.dtype, options.rounds
        )
        rows.append(
            (
                *(" x ".join(map(str, numbers)) for numbers in call[:3]),
                str(count),
                f"{convolution * 1e3:.2f}",
                f"{products * 1e3:.2f}",
                "used" if is_used else "",
            )
        )
        totals["as convolutions"] += count * convolution
        totals["as products"] += count * products
        totals["as used"] += count * (products if is_used else convolution)
        totals["as fastest"] += count * min(products, convolution)
    print(text_table(rows))
    for name, seconds in totals.items():
        print(f"all {name}: {seconds * 1e3:.1f} ms")


def calls_of(model, shape):
    """Returns the `Call` of each convolution that can use matrix products.

    Args:
      model: a `ResNet` that is not built yet.
      shape: shape of its inputs.
    """
    calls, convolve = [], convolutions.convolve

    def record(inputs, kernel, strides, padding, products):
        calls.append(
            Call(tuple(inputs.shape), tuple(kernel.shape), strides, padding)
        )
        return convolve(inputs, kernel, strides, padding, products)

    model.build(shape)
    with (
        mock.patch.object(convolutions, "convolve", record),
        tf.GradientTape(),
    ):
        tf.function(model).get_concrete_function(
            tf.TensorSpec(shape), training=True
        )
    return [call for call in calls if convolutions.can_be_products(*call[:3])]


def measure(call, dtype, rounds):
    """Returns seconds as convolution and as products, and if these are used."""
    inputs, kernel = (
        tf.cast(tf.random.normal(shape), dtype)
        for shape in (call.inputs, call.kernel)
    )
    outputs = convolutions.convolve(inputs, kernel, *call[2:])
    upstream = tf.cast(tf.random.normal(outputs.shape), dtype)
    methods = [
        gradients_of(inputs, kernel, upstream, call, products)
        for products in (False, True)
    ]
    seconds = [[], []]
    for _ in range(rounds):
        for method, laps in zip(methods, seconds, strict=True):
            began = time.perf_counter()
            method(inputs).numpy()
            laps.append(time.perf_counter() - began)
    is_used = convolutions.products_are_faster(
        inputs.shape, kernel.shape, outputs.shape, call.strides
    )
    return *map(statistics.median, seconds), is_used


def gradients_of(inputs, kernel, upstream, call, products):
    """Returns a warmed-up function that maps inputs to kernel gradients."""

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
