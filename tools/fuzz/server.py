"""Sends odd requests to a server of a tiny model until the time is up: `server.py SECONDS [SEED] [--core FILE]`.

First each field and each header with each odd value, then several at once, drawn from the seed. Told is what goes
wrong: an answer of 500 or none, an error that is logged, a plain request that is answered otherwise afterwards; the
exit code is 1 then. `--core` is another build of penstock._core to do it with, as one with sanitizers.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from other_core import use_core

if TYPE_CHECKING:
    from helpers.http_requests import Case
    from penstock import LLM

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"loopback": False}, {"api_key": "key"})
ROUND = 2000
"""Random requests to a server, before the next one gets its turn."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--core", type=Path)
    arguments = parser.parse_args()
    if arguments.core:
        use_core(arguments.core)
    sys.path.insert(0, str(ROOT / "tests"))
    logging.getLogger().addHandler(logging.NullHandler())  # what is logged is told as a finding
    end, found = time.monotonic() + arguments.seconds, 0

    from helpers.http_siege import write_model
    from penstock import LLM

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        with LLM.open(str(Path(folder) / "model"), memory="1GiB", draft="none", context=64) as llm:
            for number in count():
                found += _round(llm, number, _until(end, _cases(number, arguments.seed)))
                if time.monotonic() >= end:
                    return 1 if found else 0
    return 0


def _cases(number: int, seed: int) -> Iterator[Case]:
    """Those of a round: in the first ones all that there are, then random ones."""
    from helpers import http_requests as made

    if number < len(SETTINGS):
        return chain(made.path_cases(), made.body_cases(), made.header_cases(), made.field_cases())
    random = Random(f"{seed} {number}")
    return (made.random_case(random) for _ in range(ROUND))


def _until(end: float, cases: Iterable[Case]) -> Iterator[Case]:
    for case in cases:
        if time.monotonic() >= end:
            return
        yield case


def _round(llm: LLM, number: int, cases: Iterator[Case]) -> int:
    """Send them to one server; how many were answered wrongly."""
    from helpers.http_siege import Siege
    from helpers.serving import serving

    found = 0
    with serving(llm, max_body=20000, body_seconds=1.0, **SETTINGS[number % len(SETTINGS)]) as server:
        siege = Siege(server.url, {"Authorization": "Bearer key"})
        for finding in siege.findings(cases):
            found += 1
            print(f"server.py: round {number}: {finding}", file=sys.stderr, flush=True)
    told = f"{siege.sent} requests, {found} findings, statuses {siege.statuses}"
    print(f"server.py: round {number}: {told}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
