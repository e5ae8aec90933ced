"""How fast something is, and how fast it could be."""
