"""Settings -> the parts of a run; the only place that unpacks settings."""
