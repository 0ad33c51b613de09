"""Whether all tables of kernels, of all CPUs, gave the same digests: `python tools/compare_digests.py FILE:TABLES...`

Each file holds what cpp/tests/digest.cpp printed on one CPU, lines of kernel, table and digest; TABLES, with commas
between them, are those that must be among them. Prints which there were, and ends with 1 where digests differ or lack.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

PLAIN = "plain"
"""Stands for a table where a function has none."""


def read(argument: str) -> dict[tuple[str, str], str]:
    """Digests by kernel and table; ValueError where one of the tables lacks, or a kernel of one."""
    path, _, tables = argument.rpartition(":")
    lines = [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()]
    digests = {(kernel, table): digest for kernel, table, digest in lines}
    kernels = {kernel for kernel, table in digests if table != PLAIN}
    for table in {*tables.split(","), *(table for _, table in digests)} - {PLAIN}:
        if lacking := sorted(kernel for kernel in kernels if (kernel, table) not in digests):
            raise ValueError(f"{path}: {table} lacks {', '.join(lacking)}")
    if not kernels:
        raise ValueError(f"{path}: no digests")
    return digests


def differences(results: dict[str, dict[tuple[str, str], str]]) -> list[str]:
    """A line for each function that a CPU lacks, and for each whose digests are not one: who gave which."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cpu, digests in results.items():
        for (function, table), digest in digests.items():
            found[function][digest].append(f"{table} on {cpu}")
    functions = {cpu: {function for function, _ in digests} for cpu, digests in results.items()}
    lines = [f"{cpu} lacks {function}" for function in found for cpu in results if function not in functions[cpu]]
    for function, by_digest in found.items():
        if len(by_digest) > 1:
            given = (f"{digest} by {', '.join(tables)}" for digest, tables in by_digest.items())
            lines.append(f"{function}: {'; '.join(given)}")
    return lines


def main() -> int:
    try:
        results = {Path(argument.rpartition(":")[0]).stem: read(argument) for argument in sys.argv[1:]}
    except ValueError as error:
        print(error)
        return 1
    if not results:
        print("no files are named")
        return 2
    for cpu, digests in results.items():
        tables = dict.fromkeys(table for _, table in digests if table != PLAIN)
        print(f"{cpu}: {len({kernel for kernel, _ in digests})} functions, by {', '.join(tables)}")
    different = differences(results)
    print("\n".join(different) if different else "all digests agree")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
