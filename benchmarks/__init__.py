"""Benchmarks: each compares ways of doing the same in one run."""

# Prepares the process before anything imports TensorFlow.
from train_loop import process

process.import_tensorflow()
