"""A model's layers in stages, in this process and in others."""
