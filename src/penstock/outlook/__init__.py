"""What running a model would take on this machine, without running it."""
