"""Text in and out: tokens, chats, and streams of both."""
