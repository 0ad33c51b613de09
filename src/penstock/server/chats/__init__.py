"""Conversations of the chat page: kept in files, answered by the server's worker, rendered as safe HTML."""
