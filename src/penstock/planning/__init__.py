"""Sharing out a memory ceiling, and the seconds to expect."""
