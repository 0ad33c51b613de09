"""Several machines as one, by Ray (the extra `cluster`), which is imported only where a cluster is asked for."""
