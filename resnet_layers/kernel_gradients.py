"""Convolutions whose kernels get their gradients first, and the faster way."""

import tensorflow as tf

# In a kernel, for products to be considered.
MOST_PLACES = 9


def convolve(inputs, kernel, strides, padding, products=True):
    """Convolves, and computes the kernel's gradients before the inputs'.

    TensorFlow takes them in any order. Where kernels wait, so does all that
    their gradients need: a seventh of the memory that training takes.

    Args:
      inputs: float tensor [batch, rows, columns, channels].
      kernel: tensor [height, width, channels / groups, filters], of odd sizes
        and of the inputs' dtype.
      strides: (rows, columns) between outputs.
      padding: "SAME" or "VALID"; "SAME" with strides of 1 alone.
      products: whether the kernel's gradients may be matrix products, where
        `products_are_faster`.

    Returns:
      Tensor [batch, rows, columns, filters].
    """
    inputs, kernel = map(tf.convert_to_tensor, (inputs, kernel))
    steps, sizes = [1, *strides, 1], tf.shape(inputs)

    @tf.custom_gradient
    def convolve_once(inputs, kernel):
        def gradients(upstream):
            if products and products_are_faster(
                inputs.shape, kernel.shape, upstream.shape, strides
            ):
                of_kernel = _by_products(
                    inputs, upstream, kernel.shape, strides, padding
                )
            else:
                of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=inputs,
                    filter_sizes=tf.shape(kernel),
                    out_backprop=upstream,
                    strides=steps,
                    padding=padding,
                )
            with tf.control_dependencies([of_kernel]):
                of_inputs = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=sizes,
                    filter=kernel,
                    out_backprop=upstream,
                    strides=steps,
                    padding=padding,
                )
            return of_inputs, of_kernel

        return tf.nn.conv2d(inputs, kernel, steps, padding), gradients

    return convolve_once(inputs, kernel)


def products_are_faster(inputs, kernel, outputs, strides):
    """Tells whether matrix products are the faster way to a kernel's gradients.

    So they are on CPUs, if not on all and by as much (`python -m
    benchmarks.kernel_gradients`): those of 1x1 kernels are one product, and
    those of 3x3 kernels nine, which pay where the map is small beside its
    channels.

    Args:
      inputs: static shape of the convolution's inputs; so are `kernel` and
        `outputs`.
      strides: (rows, columns) between outputs.
    """
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if not devices <= {"CPU"} or not can_be_products(inputs, kernel, strides):
        return False
    height, width, channels, _ = kernel
    if height * width == 1:
        return True
    rows, columns = outputs[1:3]
    return 4 * rows * columns // (strides[0] * strides[1]) < channels


def can_be_products(inputs, kernel, strides):
    """Tells whether a kernel's gradients can be a few matrix products.

    Those of groups and of large kernels are not, nor those that need sides
    that nobody knows.

    Args:
      inputs: static shape of the convolution's inputs; so is `kernel`.
      strides: (rows, columns) between outputs.
    """
    height, width, channels, _ = kernel
    return (
        channels == inputs[3]
        and height * width <= MOST_PLACES
        and (_is_pointwise(kernel[:2], strides) or None not in inputs[1:3])
    )


def _is_pointwise(kernel_sides, strides):
    """Tells whether each output is made of the pixel in its place."""
    return {*kernel_sides, *strides} == {1}


def _by_products(inputs, upstream, kernel_shape, strides, padding):
    """Returns the gradients of a kernel, a matrix product for each place in it.

    Args:
      inputs: tensor [batch, rows, columns, channels].
      upstream: gradients of the outputs [batch, rows, columns, filters].
      kernel_shape: static shape of the kernel.
      strides: (rows, columns) between outputs.
      padding: "SAME" or "VALID".
    """
    height, width, channels, filters = kernel_shape
    upstream_matrix = tf.reshape(upstream, [-1, filters])
    products = [
        tf.linalg.matmul(
            tf.reshape(seen, [-1, channels]), upstream_matrix, transpose_a=True
        )
        for seen in _seen_by_places(
            inputs, upstream.shape[1:3], (height, width), strides, padding
        )
    ]
    return tf.reshape(tf.stack(products), kernel_shape)


def _seen_by_places(inputs, sides, kernel_sides, strides, padding):
    """Yields what each place in a kernel is multiplied by, row by row.

    Strided slices are slow in TensorFlow: here, the rows and columns between
    two strides lie on axes of their own.

    Args:
      inputs: tensor [batch, rows, columns, channels].
      sides: (rows, columns) of the outputs, each of the tensors' [batch, rows,
        columns, channels] too.
      kernel_sides: (height, width).
      strides: (rows, columns) between outputs.
      padding: "SAME" or "VALID".
    """
    if _is_pointwise(kernel_sides, strides):
        yield inputs
        return
    paddings, grid = [[0, 0]], [-1]
    for given, side, size, stride in zip(
        inputs.shape[1:3], sides, kernel_sides, strides, strict=True
    ):
        before = (size - 1) // 2 if padding == "SAME" else 0
        steps = max(side + (size - 1) // stride, -(-(before + given) // stride))
        paddings.append([before, steps * stride - given - before])
        grid += [steps, stride]
    channels = inputs.shape[3]
    if any(map(any, paddings)):
        inputs = tf.pad(inputs, [*paddings, [0, 0]])
    inputs = tf.reshape(inputs, [*grid[:-1], grid[-1] * channels])
    for row in range(kernel_sides[0]):
        top, phase = divmod(row, strides[0])
        for column in range(kernel_sides[1]):
            left, offset = divmod(column, strides[1])
            yield inputs[
                :,
                top : top + sides[0],
                phase,
                left : left + sides[1],
                offset * channels : (offset + 1) * channels,
            ]
