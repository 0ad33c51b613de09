"""`penstock demo`."""


def demo() -> None:
    """See it work: a small model streamed from disk, damage found, and what an 8B would take on this machine."""
    from penstock.cli.demonstration import demonstrate

    demonstrate()
