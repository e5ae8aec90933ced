"""The input pipeline: from the name of a data set to batches for a model."""
