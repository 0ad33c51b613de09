"""Reading past the page cache, and files that are whole or not there."""
