"""The Hugging Face Hub: what it knows of a model, and downloading one while it is packed."""
