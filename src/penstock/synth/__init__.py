"""Checkpoints with random weights, of any shape."""
