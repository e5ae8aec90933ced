"""Predictions for images in memory and in files."""
