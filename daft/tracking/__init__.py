"""Weights & Biases, a mirror of the records."""
