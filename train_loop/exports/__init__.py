"""Export of classifiers to files that other programs run."""
