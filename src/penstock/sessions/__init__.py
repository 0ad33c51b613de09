"""Conversations that outlive the process."""
