"""Predictions for images of any kind."""
