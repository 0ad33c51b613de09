#!/usr/bin/env python3
"""Sends odd requests to a server of a tiny model: .venv/bin/python tools/fuzz/server.py --seconds 3600

First each field and each header with each odd value, then several at once, at random. Prints what goes wrong (an answer
of 500 or none, an error that is logged, a plain request that is answered otherwise afterwards), and exits with 1 then.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

import http_requests as made
from http_siege import Siege, write_model
from serving import serving

from penstock import LLM

SETTINGS: tuple[dict[str, Any], ...] = ({}, {"loopback": False}, {"api_key": "key"})
ROUND = 2000
"""Random requests to a server, before the next one gets its turn."""


def until(end: float, cases: Iterable[made.Case]) -> Iterator[made.Case]:
    for case in cases:
        if time.monotonic() > end:
            return
        yield case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the random requests")
    options = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # what is logged is told as a finding
    end, found, sent = time.monotonic() + options.seconds, 0, 0
    systematic = [made.path_cases, made.body_cases, made.header_cases, made.field_cases]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        with LLM.open(str(Path(folder) / "model"), memory="1GiB", draft="none", context=64) as llm:
            for number in count():
                random = Random(f"{options.seed} {number}")
                some = (made.random_case(random) for _ in range(ROUND))
                first = number < len(SETTINGS)
                cases = chain.from_iterable(kind() for kind in systematic) if first else some
                with serving(llm, max_body=20000, body_seconds=1.0, **SETTINGS[number % len(SETTINGS)]) as server:
                    siege = Siege(server.url, {"Authorization": "Bearer key"})
                    for finding in siege.findings(until(end, cases)):
                        found += 1
                        print(f"round {number}: {finding}", flush=True)
                sent += siege.sent
                print(f"round {number}: {sent} requests, {found} findings; statuses {siege.statuses}", flush=True)
                if time.monotonic() > end:
                    return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
