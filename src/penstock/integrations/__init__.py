"""Penstock inside other programs, which are not needed otherwise."""
