"""What an answer has to be: JSON of a schema, text of a regular expression or of a grammar."""
