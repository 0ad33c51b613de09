"""Adapters: small products that are added to those of a model's matrices, as PEFT's files have them."""
