"""From the name of a data set to the batches that a model gets."""
