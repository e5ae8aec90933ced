"""Times both ways to the gradients of kernels, layer by layer.

As a convolution and as matrix products, in turn, for all convolutions of a net
but those of large kernels. What training takes is marked:

    python -m benchmarks.kernel_gradients
    python -m benchmarks.kernel_gradients --dtype=bfloat16 --image_size=64
"""

import collections
import statistics
import time
from unittest import mock

import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from resnet_layers import VARIANTS, convolutions, kernel_gradients
from train_loop.training.reports import table

FLAGS = flags.FLAGS

flags.DEFINE_string("model", "resnet50", "A row of VARIANTS.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of tensors.")
flags.DEFINE_integer("batch_size", 32, "Pictures per step.", lower_bound=1)
flags.DEFINE_integer("image_size", 224, "Height and width.", lower_bound=1)
flags.DEFINE_integer("rounds", 9, "Timed calls of each way.", lower_bound=1)

Call = collections.namedtuple("Call", "inputs kernel strides padding")


def main(argv):
    del argv
    model = VARIANTS[FLAGS.model]()
    size = FLAGS.image_size
    counts = collections.Counter(
        call
        for call in calls_of(model, (FLAGS.batch_size, size, size, 3))
        if call.kernel[0] * call.kernel[1] <= kernel_gradients.MOST_PLACES
    )
    rows = [("inputs", "kernel", "strides", "layers", "ms", "products", "")]
    totals = collections.Counter()
    for call, count in tqdm(counts.items(), unit="layer"):
        convolution, products, are_taken = measure(call, FLAGS.dtype)
        rows.append(
            (
                " x ".join(map(str, call.inputs)),
                " x ".join(map(str, call.kernel)),
                " x ".join(map(str, call.strides)),
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
    print(table(rows))
    for name, seconds in totals.items():
        print(f"all {name}: {seconds * 1e3:.1f} ms")


def calls_of(model, shape):
    """Returns the `Call` of each convolution of a model, in order."""
    calls = []

    def remember(inputs, kernel, strides, padding, products):
        calls.append(
            Call(tuple(inputs.shape), tuple(kernel.shape), strides, padding)
        )
        return kernel_gradients.convolve(
            inputs, kernel, strides, padding, products
        )

    model.build(shape)
    with (
        mock.patch.object(convolutions, "convolve", remember),
        tf.GradientTape(),
    ):
        tf.function(model).get_concrete_function(
            tf.TensorSpec(shape), training=True
        )
    return calls


def measure(call, dtype):
    """Returns seconds as a convolution, as products, and which one is taken."""
    inputs, kernel = (
        tf.cast(tf.random.normal(shape), dtype)
        for shape in (call.inputs, call.kernel)
    )
    outputs = kernel_gradients.convolve(inputs, kernel, *call[2:])
    upstream = tf.cast(tf.random.normal(outputs.shape), dtype)
    ways = [
        gradients_of(kernel, upstream, call, products)
        for products in (False, True)
    ]
    seconds = [[], []]
    for _ in range(FLAGS.rounds):
        for way, spent in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way(inputs).numpy()
            spent.append(time.perf_counter() - began)
    are_taken = kernel_gradients.products_are_faster(
        inputs.shape, kernel.shape, outputs.shape, call.strides
    )
    return *map(statistics.median, seconds), are_taken


def gradients_of(kernel, upstream, call, products):
    """Returns a function of a convolution's inputs, warmed up."""

    @tf.function(autograph=False)
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = kernel_gradients.convolve(
                inputs, kernel, call.strides, call.padding
            )
        return tape.gradient(outputs, kernel, upstream)

    with mock.patch.object(
        kernel_gradients, "products_are_faster", return_value=products
    ):
        for _ in range(2):
            gradients(tf.cast(tf.random.normal(call.inputs), kernel.dtype))
    return gradients


if __name__ == "__main__":
    app.run(main)
