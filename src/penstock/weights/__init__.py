"""The weights of a pass: pieces that stay in memory, and pieces that stream."""
