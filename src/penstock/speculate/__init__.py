"""Exact speculation: guesses at the next tokens, checked many at a time by one pass over the weights."""
