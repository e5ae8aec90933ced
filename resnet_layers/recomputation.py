"""Layers that are run once more for their gradients, and keep nothing for them.

Between its call and its gradients a layer keeps what lies between its
operations. One that is recomputed keeps its inputs alone.

Source: Chen et al., 2016, https://arxiv.org/abs/1604.06174.
"""

import tensorflow as tf


def recomputed(layer, inputs, training):
    """Calls a layer, and calls it again when its gradients are wanted.

    The second call sees the state that the first one saw: it draws the same
    random numbers, and does not move batch-norm statistics a second time, as
    it would under `tf.recompute_grad` and `keras.remat`.

    Args:
      layer: a built Keras layer or model of one input and one output.
      inputs: a tensor.
      training: true or false. None would be another phase the second time.

    Returns:
      What `layer(inputs, training=training)` returns.
    """
    state = layer.non_trainable_variables
    before = [tf.identity(variable.value) for variable in state]
    weights = [tf.identity(v.value) for v in layer.trainable_variables]
    after = []

    def call(inputs, weights):
        outputs, after[:] = layer.stateless_call(
            weights, before, inputs, training=training
        )
        return outputs

    @tf.custom_gradient
    def call_twice(inputs, *weights):
        def gradients(upstream):
            # TensorFlow would find two equal calls, and make one of them.
            late = _zero_after(upstream)
            again = [weight + tf.cast(late, weight.dtype) for weight in weights]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([inputs, *again])
                outputs = call(inputs, again)
            return tape.gradient(outputs, [inputs, *again], upstream)

        return call(inputs, weights), gradients

    outputs = call_twice(inputs, *weights)
    for variable, old, new in zip(state, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    return outputs


def _zero_after(tensor):
    """Returns a zero that nobody can know before the tensor is there."""
    first = tf.reshape(tensor, [-1])[0]
    return tf.where(tf.equal(first, first), 0.0, float("nan"))
