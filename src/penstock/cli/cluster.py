"""`penstock cluster`: this machine's part in a cluster of several."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from penstock.cli.status_line import visible
from penstock.cli.tables import left, plain_table, right
from penstock.cli.whole_lines import tell_rows

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.cluster.fleet import RayNode

app = typer.Typer(no_args_is_help=True, help="Share a model's layers, or a batch, among several machines.")

Memory = Annotated[
    str | None,
    typer.Option(
        help="Ceiling on a process of Penstock here, like 2700MiB; Ray takes 0.2 GB besides. "
        "(default: what is free when one starts)"
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads of Penstock here. (default: every CPU)")]
Advertise = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="This machine's address, for the others. (default: as it reaches the network)"
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Who has it may run code on every machine. (default: cluster-token in the store)"
    ),
]
Certificates = Annotated[
    Path | None,
    typer.Option(
        "--tls", metavar="DIR", help="Encrypt the network, with `penstock cluster certificates`. (default: no)"
    ),
]


@app.command()
def start(
    memory: Memory = None,
    threads: Threads = None,
    advertise: Advertise = None,
    port: Annotated[int, typer.Option(help="Where others find it.")] = 6379,
    token_file: TokenFile = None,
    tls: Certificates = None,
) -> None:
    """Start a cluster, on the machine with the most memory; says what to do on the others."""
    from penstock.cluster import nodes

    settings = nodes.NodeSettings(
        memory=memory, threads=threads, address=advertise, token_file=token_file, certificates=tls
    )
    membership = nodes.start(settings, port)
    print(f"The cluster is at {membership.address}. On every other machine, with this one's token in FILE:\n")
    encrypted = "" if membership.certificates is None else " --tls DIR"
    print(f"    penstock cluster join {membership.address} --token-file FILE{encrypted}\n")
    print(f"The token is in {membership.token_file}. Who has it may run code on every machine of the cluster.")
    if membership.certificates is None:
        print("The network is not encrypted: use --tls where others may listen, as on Wi-Fi.")


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="What `penstock cluster start` said.")],
    memory: Memory = None,
    threads: Threads = None,
    advertise: Advertise = None,
    token_file: TokenFile = None,
    tls: Certificates = None,
) -> None:
    """Make this machine a part of a cluster."""
    from penstock.cluster import nodes

    settings = nodes.NodeSettings(
        memory=memory, threads=threads, address=advertise, token_file=token_file, certificates=tls
    )
    membership = nodes.join(address, settings)
    print(f"This machine is in the cluster at {membership.address}. `penstock cluster stop` takes it out.")


@app.command()
def status(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Which one; auto is this machine's.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """List the machines of a cluster."""
    from penstock.cluster import nodes

    where, machines = nodes.status(address)
    if as_json:
        print(json.dumps({"address": where, "machines": [asdict(machine) for machine in machines]}))
        return
    print(f"The cluster at {where}")
    tell_rows(Console(highlight=False), _table(machines))


@app.command()
def stop() -> None:
    """Take this machine out of its cluster, and end what runs here for it."""
    from penstock.cluster import nodes

    nodes.stop()
    print("This machine is in no cluster any more.")


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Those of all machines.")],
) -> None:
    """Make certificates for --tls; copy the folder to every machine."""
    from penstock.cluster.certificates import make_certificates

    make_certificates(folder, addresses)
    print(f"{folder} has ca.crt, node.crt and node.key. Copy it to every machine, and let nobody else have node.key.")


def _table(machines: list[RayNode]) -> Table:
    grid = plain_table(left("machine"), left("address"), right("ceiling"), right("threads"))
    for one in machines:
        ceiling = "what is free" if one.ceiling is None else f"{one.ceiling / 2**30:.2f} GiB"
        grid.add_row(escape(visible(one.name)), one.address, ceiling, str(one.threads or "all"))
    return grid
