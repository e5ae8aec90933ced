"""Mixes of batches, against their papers' distributions."""

import collections
import functools
import itertools

import numpy as np
import pytest
from seeds import rectangles, run

from train_loop.data.mixing import (
    MIXES,
    cutmix,
    find_partners,
    mix_one_of,
    mixup,
)

RNG = np.random.default_rng(0)


def batch(size=6, height=12, width=16):
    """Returns random images, and targets that tell the examples apart."""
    images = RNG.normal(size=(size, height, width, 3)).astype(np.float32)
    return images, np.eye(size, dtype=np.float32)


def before(size):
    """Returns the partners of a batch whose images all differ."""
    return np.roll(np.arange(size), 1)


def shares(targets):
    """Returns what the examples kept; fails if it is not one number."""
    size = targets.shape[-1]
    share = targets[..., 0, 0]
    np.testing.assert_allclose(targets.sum(axis=-1), 1.0, atol=1e-6)
    expected = np.eye(size) * share[..., None, None]
    expected += np.roll(np.eye(size), 1, axis=0) * (1 - share[..., None, None])
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    return share


def run_batches(function, num_seeds, *arguments, **sizes):
    images, targets = batch(**sizes)
    order = before(len(images))
    mixed = run(
        lambda seed: function(images, targets, order, seed, *arguments),
        num_seeds=num_seeds,
    )
    return images, mixed[0].numpy(), shares(mixed[1].numpy())


def is_mixup(images, mixed, share):
    expected = share * images + (1 - share) * np.roll(images, 1, axis=0)
    return np.allclose(mixed, expected, atol=1e-5)


def is_cutmix(images, mixed, share):
    partners = np.roll(images, 1, axis=0)
    masks = (mixed != images).any(axis=-1)
    expected = np.where(masks[..., None], partners, images)
    same_everywhere = (masks == masks[0]).all()
    kept = 1 - masks[0].mean()
    return (
        same_everywhere
        and np.array_equal(mixed, expected)
        and np.isclose(kept, share, atol=1e-6)
    )


@pytest.mark.parametrize("repeats", range(1, 6))
def test_partners_are_never_repeats_where_there_are_others(repeats):
    for start, size in itertools.product(range(repeats), range(1, 18)):
        positions = start + np.arange(size)
        partners = find_partners(positions, repeats).numpy()
        images = positions // repeats
        if len({*images}) > 1:
            assert (images[partners] != images).all()
        if size >= 2 * repeats:
            assert sorted(partners) == [*range(size)]
        if repeats == 1:
            np.testing.assert_array_equal(partners, before(size))


@pytest.mark.parametrize("name", MIXES)
def test_mixes_take_the_partner(name):
    images, targets = batch(size=4)
    _, mixed = MIXES[name](images, targets, [2, 3, 1, 1], [0, 5])
    share = float(mixed[0, 0])
    expected = share * targets + (1 - share) * targets[[2, 3, 1, 1]]
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_mixup_blends_with_the_example_before():
    images, results, kept = run_batches(mixup, 50, 1.0)
    for mixed, share in zip(results, kept, strict=True):
        assert is_mixup(images, mixed, share)


def test_cutmix_pastes_a_rectangle_of_the_example_before():
    images, results, kept = run_batches(cutmix, 200, 1.0)
    for mixed, share in zip(results, kept, strict=True):
        assert is_cutmix(images, mixed, share)
    masks = (results[:, 0] != images[0]).any(axis=-1)
    rectangles(masks)
    # Every pixel, in one image or another.
    assert masks.any(axis=0).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_share_has_a_beta_distribution(alpha):
    _, _, kept = run_batches(mixup, 2000, alpha, size=2, height=1)
    assert kept.mean() == pytest.approx(0.5, abs=0.04)
    variance = 1 / (4 * (2 * alpha + 1))
    assert kept.var() == pytest.approx(variance, rel=0.1)


def test_cutmixs_rectangle_has_the_papers_distribution():
    image_size = (50, 70)
    images = np.zeros([2, *image_size, 1], np.float32)
    images[1] = 1.0
    targets = np.eye(2, dtype=np.float32)
    mixed, _ = run(
        lambda seed: cutmix(images, targets, before(2), seed, alpha=1.0),
        num_seeds=1500,
    )
    masks = mixed[:, 0, :, :, 0].numpy() > 0
    spans = rectangles(masks)

    cut = RNG.uniform(size=20000)
    for (_, sizes), image_side in zip(spans, image_size, strict=True):
        centre = RNG.integers(0, image_side, 20000)
        half = np.int64(np.sqrt(cut) * image_side / 2)
        low = np.maximum(centre - half, 0)
        expected = np.minimum(centre + half, image_side) - low
        quantiles = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(
            np.quantile(sizes, quantiles),
            np.quantile(expected, quantiles),
            atol=0.06 * image_side,
        )
    # Where nothing was cut off, the rectangle has the image's proportions.
    is_whole = np.ones(len(masks), bool)
    for (starts, sizes), image_side in zip(spans, image_size, strict=True):
        is_whole &= (starts > 0) & (starts + sizes < image_side)
    [(_, heights), (_, widths)] = spans
    difference = heights / 50 - widths / 70
    assert np.abs(difference[is_whole]).max() < 2 / 50
    assert is_whole.sum() > 100


@pytest.mark.parametrize("name", MIXES)
def test_mixes_follow_their_seed(name):
    function = MIXES[name]
    images, targets = batch()
    mixed, new_targets = run(
        lambda seed: function(images, targets, before(6), seed, 1.0),
        num_seeds=6,
    )
    for index in range(6):
        again, targets_again = function(
            images, targets, before(6), [0, index], 1.0
        )
        np.testing.assert_array_equal(mixed[index], again)
        np.testing.assert_array_equal(new_targets[index], targets_again)
    assert len({float(kept) for kept in shares(new_targets.numpy())}) == 6


def test_small_alphas_take_one_example_or_the_other():
    images, results, kept = run_batches(mixup, 200, 0.01)
    assert np.isfinite(results).all()
    assert ((kept < 0.01) | (kept > 0.99)).mean() > 0.85
    assert kept.mean() == pytest.approx(0.5, abs=0.15)


def run_mix_one_of(num_seeds, *mixes):
    return run_batches(
        lambda *arguments: mix_one_of(mixes, *arguments), num_seeds
    )


def test_one_of_the_mixes_is_drawn_for_a_batch():
    images, results, kept = run_mix_one_of(
        200, cutmix, functools.partial(mixup, alpha=0.2)
    )
    drawn = collections.Counter()
    shares_of_mixup = []
    for mixed, share in zip(results, kept, strict=True):
        is_blended = is_mixup(images, mixed, share)
        # Where everything or nothing is kept, it could have been both.
        assert is_blended or is_cutmix(images, mixed, share)
        drawn[is_blended] += 1
        shares_of_mixup += [share] * is_blended
    # 100 of 200 are expected, with a standard deviation of 7.
    assert 70 < drawn[True] < 130
    # The alphas go to whom they belong.
    assert np.var(shares_of_mixup) > 0.13


def test_one_of_one_mix_is_that_one():
    images, results, kept = run_mix_one_of(20, cutmix)
    for mixed, share in zip(results, kept, strict=True):
        assert is_cutmix(images, mixed, share)
