"""Classifiers that are rewritten for export predict as before."""

import numpy as np
import pytest
from classifiers import BGR, GREY, random_pixels, small_classifier

from resnet_layers import BatchNormalization
from resnet_layers.normalization import foldable_batch_norms
from train_loop.errors import UserError
from train_loop.exports.formats import (
    in_float32,
    in_rgb,
    portable,
    with_folded_norms,
)

GROUPED = {"block": "bottleneck", "groups": 4, "base_width": 32}


def check_logits_agree(classifier, other, fraction):
    images = random_pixels(4)
    expected = classifier.logits(images).numpy().astype("float32")
    difference = np.abs(other.logits(images).numpy() - expected).max()
    assert difference <= fraction * np.ptp(expected)
    # The logits depend on the images.
    assert np.std(expected, axis=0).mean() > fraction * np.ptp(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        GROUPED,
        {"stem": "deep", "shortcut": "pooled_projection"},
        {"attention": "se", "norm": {"kind": "batch", "epsilon": 1e-2}},
        {"output_stride": 1, "stage_sizes": (2, 2)},
        {"shortcut": "zero_padding"},
        {"antialias": "blur", "stem": {"kind": "deep", "pool": "convolution"}},
    ],
)
def test_all_norms_after_convolutions_are_folded(options):
    classifier = small_classifier(**options)
    folded = with_folded_norms(classifier)
    check_logits_agree(classifier, folded, fraction=1e-5)
    norms = [
        layer
        for layer in folded.model._flatten_layers()
        if isinstance(layer, BatchNormalization)
    ]
    foldable = [norm for _, norm in foldable_batch_norms(folded.model)]
    assert norms
    assert {*map(id, norms)} == {*map(id, foldable)}
    # The kernels contain the norms; the statistics have no effect.
    for norm in norms:
        norm.moving_variance.assign(norm.moving_variance * 9.0)
        norm.gamma.assign(norm.gamma * 7.0)
    check_logits_agree(classifier, folded, fraction=1e-5)


@pytest.mark.parametrize("options", [{}, GROUPED])
def test_norms_before_convolutions_are_not_folded(options):
    classifier = small_classifier(preactivation=True, **options)
    folded = with_folded_norms(classifier)
    check_logits_agree(classifier, folded, fraction=1e-5)
    model = folded.model
    foldable = [norm for _, norm in foldable_batch_norms(model)]
    before = [model.post_bn, *(block.pre_bn for block in model.blocks)]
    assert not {*map(id, foldable)} & {*map(id, before)}
    assert len(foldable) == (2 if options else 1) * len(model.blocks)


def test_original_classifier_is_not_changed():
    classifier = small_classifier(BGR)
    before = classifier.model.get_weights()
    for rewrite in (with_folded_norms, in_rgb, portable):
        assert rewrite(classifier).model is not classifier.model
    for old, new in zip(before, classifier.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_channel_order_moves_into_the_first_kernel():
    classifier = small_classifier(BGR)
    assert classifier.preprocessing.normalization.bgr
    rgb = in_rgb(classifier)
    assert not rgb.preprocessing.normalization.bgr
    check_logits_agree(classifier, rgb, fraction=1e-5)
    assert in_rgb(rgb) is rgb


def test_grayscale_moves_into_the_first_kernel():
    classifier = small_classifier(GREY)
    colored = in_rgb(classifier)
    assert colored.model.stem.convs[0].kernel.shape[2] == 3
    assert len(colored.preprocessing.normalization.mean) == 3
    check_logits_agree(classifier, colored, fraction=1e-5)
    check_logits_agree(classifier, with_folded_norms(classifier), fraction=1e-5)
    standardized = small_classifier(GREY, weight_standardization=True)
    with pytest.raises(UserError, match="^--channels=1: cannot be combined"):
        in_rgb(standardized)


def test_mixed_precision_becomes_float32():
    classifier = small_classifier(dtype="mixed_bfloat16", stochastic_depth=0.2)
    rebuilt = in_float32(classifier)
    for layer in rebuilt.model._flatten_layers():
        assert layer.compute_dtype == "float32"
    check_logits_agree(classifier, rebuilt, fraction=0.02)
    assert in_float32(rebuilt) is rebuilt
