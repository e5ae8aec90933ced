"""Benchmarks: how fast a model runs, and how fast the machine allows."""
