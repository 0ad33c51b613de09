"""Keeping the ceiling from pass to pass: what sequences hold, share and give back."""
