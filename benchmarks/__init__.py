"""Benchmarks: each compares several implementations in one run."""

# Must configure the process before TensorFlow is imported.
from train_loop import process

process.import_tensorflow()
