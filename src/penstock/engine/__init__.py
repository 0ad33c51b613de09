"""Sequences in, passes, draws, tokens out."""
