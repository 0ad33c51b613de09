"""Keys that are run with some values only."""

from __future__ import annotations

from penstock.errors import UnsupportedError
from penstock.strict_json import Fields, shown


def check_only_value(fields: Fields, key: str, supported: tuple[object, ...]) -> None:
    """Raise UnsupportedError unless a key has one of these values; an absent one has the first."""
    if fields.get(key, supported[0]) not in supported:
        problem = f"{fields.source}: {fields.prefix}{key} is {shown(fields.get(key))}"
        raise UnsupportedError(problem, f"Penstock runs only models with {key} {shown(supported[0])}.")
