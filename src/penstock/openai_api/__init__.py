"""OpenAI's protocol, as the server and `penstock batch` speak it: requests in, answers and chunks out."""
