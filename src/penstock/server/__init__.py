"""`penstock serve`: a model behind OpenAI's HTTP protocol, with a chat page."""
