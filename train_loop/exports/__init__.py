"""Classifiers made into files that other programs run."""
