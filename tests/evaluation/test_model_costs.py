"""Sizes and work of models, compared with the paper and a count by hand."""

import pytest
import tensorflow as tf

from resnet_layers import VARIANTS, ResNet
from train_loop.benchmark.model_costs import cost_table, model_costs

pytestmark = pytest.mark.slow


@pytest.fixture
def zeros(monkeypatch):
    """Skips random kernels, which take half of the time of a deep model."""
    monkeypatch.setattr(
        tf.keras.initializers.VarianceScaling,
        "__call__",
        lambda self, shape, dtype=None, **options: tf.zeros(shape, dtype),
    )


# He et al. (2015), table 1, which rounds up or down.
@pytest.mark.parametrize(
    ("name", "multiply_adds", "layers"),
    [
        ("resnet34", 3.6e9, 34),
        ("resnet50_v1", 3.8e9, 50),
    ],
)
def test_multiply_adds_are_those_of_the_paper(
    name, multiply_adds, layers, zeros
):
    model = VARIANTS[name]()
    model.build((None, 224, 224, 3))
    total = model_costs(model, 224)["total"]
    assert total.multiply_adds == pytest.approx(multiply_adds, abs=0.07e9)
    # The paper does not count the projections.
    projections = sum(b.projects for b in model.blocks)
    assert total.layers == layers + projections
    counted = sum(v.shape.num_elements() for v in model.trainable_variables)
    assert total.parameters == counted


@pytest.mark.parametrize(
    ("precision", "size"), [("float32", 4), ("mixed_bfloat16", 2)]
)
def test_sizes_equal_a_count_by_hand(precision, size):
    model = ResNet("basic", (1,), 5, width=4, stem="small", dtype=precision)
    model.build((None, 8, 8, 3))
    parts = model_costs(model, 8)
    assert list(parts) == ["stem", "stage1", "head", "total"]
    pixels = 8 * 8
    assert parts["stem"].multiply_adds == pixels * 9 * 3 * 4
    assert parts["stage1"].multiply_adds == 2 * pixels * 9 * 4 * 4
    assert parts["head"].multiply_adds == 4 * 5
    # Convolution, norm and ReLU.
    assert parts["stem"].activation_bytes == 3 * pixels * 4 * size
    # Two convolutions, two norms, two ReLUs and the sum.
    assert parts["stage1"].activation_bytes == 7 * pixels * 4 * size
    # The head stays float32: product and bias.
    assert parts["head"].activation_bytes == 2 * 5 * 4


def test_groups_reduce_multiply_adds():
    multiply_adds = {}
    for groups in (1, 4):
        model = ResNet(
            "bottleneck",
            (1,),
            5,
            width=64,
            groups=groups,
            base_width=64 // groups,
        )
        model.build((None, 32, 32, 3))
        multiply_adds[groups] = model_costs(model, 32)["stage1"].multiply_adds
    saved = 8 * 8 * 9 * 64 * 64 * 3 // 4
    assert multiply_adds[1] - multiply_adds[4] == saved


def test_table_has_a_row_for_every_part():
    model = ResNet("basic", (1,), 5, width=4, stem="small")
    model.build((None, 8, 8, 3))
    header, *rows, total = cost_table(model, 8)
    assert [row[0] for row in rows] == ["stem", "stage1", "head"]
    assert {len(row) for row in (header, *rows, total)} == {5}
    # 108 + 2 * 144 in the kernels, 3 * 8 in the norms, 4 * 5 + 5 in the head.
    assert total == ["total", "4", "445", "0.000 x 10^9", "0.0 MiB"]
