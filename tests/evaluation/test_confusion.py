"""Confusions and mistakes, counted by scikit-learn and by hand."""

import numpy as np
from drawn_predictions import draw_predictions
from sklearn import metrics

from train_loop.evaluation.confusion import (
    confused_pairs,
    confusion_matrix,
    mistakes,
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
