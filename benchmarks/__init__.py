"""Benchmarks: each compares ways of doing the same in one run."""

# Prepares the process before anything imports TensorFlow.
import train_loop  # noqa: F401
