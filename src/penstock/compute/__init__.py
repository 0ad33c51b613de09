"""The compiled core as Python sees it: kernels, and how packed weights are coded."""
