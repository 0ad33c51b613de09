"""GGUF files in full precision: their header, and what of it becomes config, tensors, tokenizer and chat template."""
