"""Fixtures of the export tests."""

import pytest
from classifiers import small_classifier
from references import reference_for


@pytest.fixture(scope="session")
def classifier():
    """Returns a small classifier, which no test changes."""
    return small_classifier()


@pytest.fixture(scope="session")
def reference(classifier):
    """Returns the `ReferenceImages` of the small classifier."""
    return reference_for(classifier)
