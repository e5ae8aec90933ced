"""The least work of a step, against a count by hand."""

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
# Bytes of the images, of every map (4 channels), of its mean and of the logits.
IMAGES, MAP, MEAN, LOGITS = (
    BATCH * 8 * 8 * 3,
    BATCH * 8 * 8 * 4 * 4,
    BATCH * 4 * 4,
    BATCH * 5 * 4,
)
# And of the kernels: of the stem, of a convolution, of the classifier.
STEM, CONV, HEAD = 4 * 9 * 3 * 4, 4 * 9 * 4 * 4, 4 * 4 * 5
# Floating-point operations of the three.
FLOPS_STEM, FLOPS_CONV, FLOPS_HEAD = (
    2 * BATCH * 8 * 8 * 9 * 3 * 4,
    2 * BATCH * 8 * 8 * 9 * 4 * 4,
    2 * BATCH * 4 * 5,
)


@pytest.fixture
def small_model():
    """Returns a stem, one block of two convolutions, and a classifier."""
    model = ResNet("basic", (1,), 5, width=4, stem="small")
    model.build((None, 8, 8, 3))
    return model


def total(works):
    columns = zip(*works, strict=True)
    return MinimumWork(*map(sum, columns))


def test_least_work_of_training_is_that_counted_by_hand(small_model):
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
        # Gradient and output of each; inputs; kernels, and their gradients.
        (2 * MAP + IMAGES + STEM)
        + 2 * (2 * MAP + MAP + 2 * CONV + MAP)
        + (LOGITS + MEAN + 2 * HEAD + MEAN)
        # The stem's output goes into the block and around it.
        + MAP
    )
    assert counted.bytes == forward + backward + 3 * 10 + 2 * 100
    # Nobody needs the gradient of the images.
    assert counted.flops == 2 * FLOPS_STEM + 3 * (2 * FLOPS_CONV + FLOPS_HEAD)


def test_least_work_of_inference_is_that_counted_by_hand(small_model):
    counted = total(inference_work(feature_maps(small_model, 8, BATCH)))
    assert counted.flops == FLOPS_STEM + 2 * FLOPS_CONV + FLOPS_HEAD
    # The sum is written where the second convolution would have been.
    assert counted.bytes == (
        (IMAGES + STEM + MAP)
        + 2 * (MAP + CONV + MAP)
        + MAP
        + MEAN
        + (MEAN + HEAD + LOGITS)
    )


def test_what_is_frozen_has_no_gradient(small_model):
    small_model.freeze("backbone")
    maps = feature_maps(small_model, 8, BATCH)
    counted = total(training_work(maps, 0, 0))
    forward = FLOPS_STEM + 2 * FLOPS_CONV + FLOPS_HEAD
    assert counted.flops == forward + FLOPS_HEAD


@pytest.mark.slow
def test_sums_are_found_in_blocks_of_any_kind():
    """Behind attention, in front of norms, and with other activations."""
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


def test_operation_takes_the_longer_one_of_its_two_times():
    limits = Limits(flops=10.0, bytes=100.0)
    found = roofline_of([MinimumWork(100, 100), MinimumWork(0, 400)], limits)
    assert found.products_seconds == 10
    assert found.memory_seconds == 5
    assert found.least_seconds == 10 + 4
