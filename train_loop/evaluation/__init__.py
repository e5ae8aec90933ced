"""What models and evaluations are made into, for people."""
