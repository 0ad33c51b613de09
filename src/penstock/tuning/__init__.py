"""Fitting to a model what makes its coarse tier guess better."""
