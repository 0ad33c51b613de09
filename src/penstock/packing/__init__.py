"""Packing checkpoints, and getting the originals back: docs/format.md, written."""
