"""Predictions -> metrics, charts, reports and comparisons."""
