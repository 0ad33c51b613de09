"""What the machine has, and what this process takes of it."""
