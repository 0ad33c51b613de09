"""A demonstration of two minutes: what `penstock demo` does."""
