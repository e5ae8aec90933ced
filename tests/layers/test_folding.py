"""Folded batch norms: same logits, and no norm in the graph."""

import numpy as np
import pytest
import tensorflow as tf
from small_models import normal

from resnet_layers import BasicBlock, ResNet, fold_batch_norms


class Scaled(BasicBlock):
    """A block that scales between a convolution and its norm."""

    def residual(self, x, training=None):
        x = self.activation(self.bn1(2.0 * self.conv1(x), training=training))
        return self.bn2(self.conv2(x), training=training)


def make_model(**options):
    """Returns a small model whose norms have an effect."""
    model = ResNet(
        stage_sizes=(1, 1), num_classes=3, width=8, stem="small", **options
    )
    model.build((None, 8, 8, 3))
    random = np.random.default_rng(5)
    for variable in model.weights:
        if variable.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            variable.assign(random.uniform(0.3, 1.7, variable.shape))
    return model


def norms_in_graph(model):
    call = tf.function(lambda images: model(images, training=False))
    graph = call.get_concrete_function(normal(2, 8, 8, 3)).graph
    types = [operation.type for operation in graph.get_operations()]
    return types.count("FusedBatchNormV3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.03)]
)
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_folded_model_has_the_same_logits_and_no_norms(block, dtype, tolerance):
    model = make_model(block=block, dtype=dtype)
    images = normal(4, 8, 8, 3)
    expected = model(images, training=False).numpy()
    assert norms_in_graph(model)
    fold_batch_norms(model)
    logits = model(images, training=False).numpy()
    assert not norms_in_graph(model)
    assert np.abs(logits - expected).max() <= tolerance * np.ptp(expected)
    # A copy has the norms again, which only add an offset.
    copy = model.with_classes(3)
    copy.head.set_weights(model.head.get_weights())
    fold_batch_norms(model)
    for again in (copy, model):
        logits = again(images, training=False).numpy()
        assert np.abs(logits - expected).max() <= tolerance * np.ptp(expected)
    assert np.std(expected, axis=0).mean() > tolerance * np.ptp(expected)


def test_norms_of_custom_blocks_stay():
    model = make_model(block=Scaled)
    images = normal(4, 8, 8, 3)
    expected = model(images, training=False)
    fold_batch_norms(model)
    np.testing.assert_allclose(
        model(images, training=False), expected, rtol=1e-4, atol=1e-5
    )
    # Two in each block, and one in the projection.
    assert norms_in_graph(model) == 2 * 2 + 1


@pytest.mark.parametrize("missing", ["scale", "center"])
def test_norms_without_gamma_or_beta_stay(missing):
    model = make_model(norm={"kind": "batch", missing: False})
    images = normal(4, 8, 8, 3)
    expected = model(images, training=False)
    fold_batch_norms(model)
    np.testing.assert_array_equal(model(images, training=False), expected)
