"""The minimum work of a step, compared with a count by hand."""

import pytest

from resnet_layers import ResNet
from train_loop.benchmark.machine import Limits
from train_loop.benchmark.model_costs import (
    MinimumWork,
    feature_maps,
    inference_work,
    roofline_of,
    training_work,
)

BATCH = 2
# Bytes of the images, of a map with 4 channels, of its mean, of the logits.
IMAGES, MAP, MEAN, LOGITS = (
    BATCH * 8 * 8 * 3,
    BATCH * 8 * 8 * 4 * 4,
    BATCH * 4 * 4,
    BATCH * 5 * 4,
)
# Bytes of the kernels of the stem, a convolution and the classifier.
STEM, CONV, HEAD = 4 * 9 * 3 * 4, 4 * 9 * 4 * 4, 4 * 4 * 5
# Floating-point operations of these three.
FLOPS_STEM, FLOPS_CONV, FLOPS_HEAD = (
    2 * BATCH * 8 * 8 * 9 * 3 * 4,
    2 * BATCH * 8 * 8 * 9 * 4 * 4,
    2 * BATCH * 4 * 5,
)


@pytest.fixture
def small_model():
    """Returns a model with a stem, one basic block and a classifier."""
    model = ResNet("basic", (1,), 5, width=4, stem="small")
    model.build((None, 8, 8, 3))
    return model


def total(works):
    columns = zip(*works, strict=True)
    return MinimumWork(*map(sum, columns))


def test_minimum_work_of_training_equals_a_count_by_hand(small_model):
    maps = feature_maps(small_model, 8, BATCH)
    kinds = [tensor.kind for tensor in maps]
    assert kinds == ["images", *["product"] * 3, "sum", "mean", "product"]
    counted = total(training_work(maps, trained_bytes=10, optimizer_bytes=100))
    forward = (
        (IMAGES + STEM + MAP)
        + 2 * (MAP + CONV + MAP)
        + (2 * MAP + MAP)
        + MEAN
        + (MEAN + HEAD + LOGITS)
    )
    backward = (
        # Gradient and output of each product, its inputs, its kernel and the
        # kernel's gradient.
        (2 * MAP + IMAGES + STEM)
        + 2 * (2 * MAP + MAP + 2 * CONV + MAP)
        + (LOGITS + MEAN + 2 * HEAD + MEAN)
        # The block and its shortcut share the stem's output.
        + MAP
    )
    assert counted.bytes == forward + backward + 3 * 10 + 2 * 100
    # There is no gradient of the images.
    assert counted.flops == 2 * FLOPS_STEM + 3 * (2 * FLOPS_CONV + FLOPS_HEAD)


def test_minimum_work_of_inference_equals_a_count_by_hand(small_model):
    counted = total(inference_work(feature_maps(small_model, 8, BATCH)))
    assert counted.flops == FLOPS_STEM + 2 * FLOPS_CONV + FLOPS_HEAD
    # The sum replaces the output of the second convolution.
    assert counted.bytes == (
        (IMAGES + STEM + MAP)
        + 2 * (MAP + CONV + MAP)
        + MAP
        + MEAN
        + (MEAN + HEAD + LOGITS)
    )


def test_frozen_layers_have_no_gradient(small_model):
    small_model.freeze("backbone")
    maps = feature_maps(small_model, 8, BATCH)
    counted = total(training_work(maps, 0, 0))
    forward = FLOPS_STEM + 2 * FLOPS_CONV + FLOPS_HEAD
    assert counted.flops == forward + FLOPS_HEAD


@pytest.mark.slow
def test_sums_are_found_in_all_kinds_of_blocks():
    """With attention, pre-activation, and other activations and norms."""
    for options in (
        {"attention": "se", "activation": "silu"},
        {"preactivation": True, "shortcut": "pooled_projection"},
        {"norm": "group", "width": 32, "shortcut": "zero_padding"},
    ):
        model = ResNet("basic", (1, 2), 5, **{"width": 8, **options})
        model.build((None, 32, 32, 3))
        maps = feature_maps(model, 32, BATCH)
        assert [tensor.kind for tensor in maps].count("sum") == 3, options
        assert all(tensor.users for tensor in maps[:-1]), options


def test_operation_takes_the_longer_of_its_two_times():
    limits = Limits(flops=10.0, bytes=100.0)
    found = roofline_of([MinimumWork(100, 100), MinimumWork(0, 400)], limits)
    assert found.products_seconds == 10
    assert found.memory_seconds == 5
    assert found.least_seconds == 10 + 4
