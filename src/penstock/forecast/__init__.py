"""What a model would take on this machine, and how long its tokens would: what `penstock plan` tells."""
