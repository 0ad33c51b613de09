"""The two minutes that convince: what `penstock demo` does."""
