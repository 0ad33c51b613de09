"""What a checkpoint is, on disk: its files, parsed and checked, raw or packed."""
