"""The packed format (docs/format.md): layout, tensors, reading, writing."""
