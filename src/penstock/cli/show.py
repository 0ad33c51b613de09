"""Text as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.completion import Piece


def show(stream: Iterator[Piece], quiet: bool = False) -> tuple[list[Piece], bool]:
    """Print pieces as they come, unless `quiet`; all of them, and whether Ctrl-C ended them."""
    pieces = []
    try:
        for piece in stream:
            pieces.append(piece)
            if not quiet:
                print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        return pieces, True
    finally:
        if not quiet:
            print()
    return pieces, False
