"""What a family of models is, in names and numbers: how its config.json is read, its tensors, the order of a pass."""
