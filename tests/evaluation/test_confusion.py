"""Confusions and mistakes, counted by scikit-learn and by hand."""

import tracemalloc

import numpy as np
from drawn_predictions import draw_predictions
from sklearn import metrics

from train_loop.evaluation.predictions import (
    binned_matrix,
    confused_pairs,
    confusion_matrix,
    mistakes,
    mostly_taken_for,
)


def test_matrix_is_scikit_learns():
    predictions = draw_predictions(200, 7)
    np.testing.assert_array_equal(
        confusion_matrix(predictions),
        metrics.confusion_matrix(
            predictions.labels, predictions.predicted, labels=range(7)
        ),
    )


def test_mistakes_are_sorted_by_confidence():
    predictions = draw_predictions(100, 5)
    wrong = mistakes(predictions)
    assert set(wrong) == set(np.flatnonzero(~predictions.correct))
    assert (np.diff(predictions.confidences[wrong]) <= 0).all()


def test_pairs_are_sorted_by_their_images():
    predictions = draw_predictions(300, 6)
    pairs = confused_pairs(predictions, 4)
    matrix = confusion_matrix(predictions)
    off_diagonal = matrix[~np.eye(6, dtype=bool)]
    counts = [len(pair.images) for pair in pairs]
    assert counts == sorted(off_diagonal, reverse=True)[:4]
    for pair in pairs:
        assert (predictions.labels[pair.images] == pair.label).all()
        assert (predictions.predicted[pair.images] == pair.prediction).all()
        assert (np.diff(predictions.confidences[pair.images]) <= 0).all()
        assert pair.share == len(pair.images) / matrix[pair.label].sum()


def test_right_predictions_make_no_pairs():
    assert confused_pairs(draw_predictions(50, 4, skill=99), 3) == []


def test_parts_and_bins_are_those_of_the_whole_matrix():
    predictions = draw_predictions(300, 7)
    whole = confusion_matrix(predictions)
    some = [5, 0, 3]
    np.testing.assert_array_equal(
        confusion_matrix(predictions, some), whole[np.ix_(some, some)]
    )
    begins = [0, 3, 6]
    np.testing.assert_array_equal(
        binned_matrix(predictions, 3),
        np.add.reduceat(np.add.reduceat(whole, begins, 0), begins, 1),
    )


def test_classes_are_mostly_taken_for_the_largest_of_their_row():
    predictions = draw_predictions(60, 9)
    wrong = confusion_matrix(predictions)
    np.fill_diagonal(wrong, 0)
    taken, images = mostly_taken_for(predictions)
    np.testing.assert_array_equal(images, wrong.max(1))
    np.testing.assert_array_equal(
        taken[images > 0], wrong.argmax(1)[images > 0]
    )


def test_many_classes_take_no_matrix_of_all():
    """Those of ImageNet-21k: 3.8 GB each."""
    predictions = draw_predictions(20, 21_841)
    assert not predictions.correct.all()
    tracemalloc.start()
    assert confused_pairs(predictions, 8)
    assert mostly_taken_for(predictions)[1].sum() > 0
    assert confusion_matrix(predictions, range(24)).shape == (24, 24)
    assert binned_matrix(predictions, 88).sum() == 20
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
