"""`penstock plan`: what fits, what streams, and how long a token will take."""

from __future__ import annotations

import json
import shlex
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.markup import escape

from penstock.cli import options as opt
from penstock.cli.tables import left, plain_table, right
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, titled
from penstock.errors import UsageError
from penstock.system.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from penstock.forecast.outlook import Form, Outlook, PlanSettings, Prospect, Subject
    from penstock.forecast.seconds import Forecast

CAVEAT = (
    "[dim]All speeds were measured just now, and briefly; that of a shared disk changes. Disk and CPU work at the "
    "same time, so the slower one decides. Without guesses a pass brings one token.[/]"
)


def plan(
    model: Annotated[
        str,
        typer.Argument(help="A model on this machine; a shape by name, like llama-3.1-8b; or a repository on the Hub."),
    ],
    memory: opt.Memory = None,
    context: Annotated[
        int | None, typer.Option(help="Positions to plan keys and values for. (default: 2048, or as many as fit)")
    ] = None,
    prompt_tokens: Annotated[
        list[int] | None, typer.Option(help="Prompt to forecast the first token for; may be given several times.")
    ] = None,
    threads: opt.Threads = None,
    kv_dtype: opt.KvDtype = "bf16",
    draft: Annotated[
        str | None,
        typer.Option(
            help="A smaller MODEL with the same tokenizer, or a shape by name: tell whether its guesses pay. `none`: "
            "tell nothing about guesses.",
            metavar="MODEL|none",
        ),
    ] = None,
    hit_rate: Annotated[
        float | None,
        typer.Option(
            help="Of a mixture of experts: how often an expert that is needed is in memory already, from 0 to 1, as "
            "`penstock bench` measures it. (default: as if each were needed as often)"
        ),
    ] = None,
    adapter: opt.Adapters = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Tell how the model would do on the machines of a cluster (`penstock cluster`), each of which is "
            "measured: its ADDRESS, or `auto` for the one that this machine is in.",
            metavar="ADDRESS|auto",
        ),
    ] = None,
    cluster_of: Annotated[
        str | None,
        typer.Option(
            help="Tell how the model would do on several machines like this one, by their memory: 4x4GiB, or "
            "2x4GiB,1x16GiB; the first is the one that is typed on.",
            metavar="MACHINES",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="What is between the machines of --cluster and --cluster-of. (default: 1Gbit)", metavar="SPEED"
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            help="What the disks of --cluster-of read in a second, like 524MB; those of --cluster are measured. "
            "(default: as this one, which is measured)",
            metavar="SPEED",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Tell what fits in memory, what streams, and how long a token will take; before any weight is downloaded."""
    from penstock.cli.plan_guesses import print_guesses
    from penstock.forecast.outlook import PROMPTS, PlanSettings, look

    alone = cluster is None and cluster_of is None
    _check_cluster_options(cluster, cluster_of, network, disk, memory, prompt_tokens or draft)
    settings = PlanSettings(
        memory=memory,
        context=context,
        prompts=tuple(prompt_tokens or PROMPTS) if alone else (),
        threads=threads,
        kv_dtype=kv_dtype,
        draft=draft if alone else "none",
        adapters=tuple(adapter or ()),
        hit_rate=hit_rate,
    )
    tell_cluster = None if alone else _cluster_plan(cluster, cluster_of, network, disk)
    with Console(stderr=True).status("measuring the disk and the CPU"):
        outlook = look(model, settings)
    if tell_cluster is not None:
        tell_cluster(outlook, settings, as_json)
        return
    if as_json:
        print(json.dumps(outlook.as_object()))
        return
    console = Console(highlight=False)
    tell(console, memory_table(outlook), "", speed_table(outlook), "", forecast_table(outlook), "")
    if outlook.subject.packs:
        tell(console, form_table(outlook), "")
    print_guesses(console, outlook)
    tell(
        console,
        _advice(outlook.subject),
        "",
        f"[dim]The sizes rest on {escape(outlook.subject.basis)}.[/]",
        f"[dim]The disk's speed is that of {escape(outlook.disk_basis)}.[/]",
    )
    console.print(CAVEAT)


def _check_cluster_options(
    cluster: str | None, cluster_of: str | None, network: object, disk: object, memory: object, others: object
) -> None:
    """`others`: what says something about one machine."""
    if cluster is not None and cluster_of is not None:
        raise UsageError("--cluster is of machines that there are, --cluster-of of others.", "Give one of them.")
    if cluster is None and cluster_of is None and (network or disk):
        raise UsageError("--network and --disk are of machines that are not named.", "Give --cluster-of too.")
    if cluster is not None and disk:
        raise UsageError("The disks of a cluster are measured.", "Leave --disk out, or give --cluster-of.")
    if (cluster is not None and others) or (cluster_of is not None and (memory or others)):
        raise UsageError(
            "--memory, --prompt-tokens and --draft are of one machine.",
            "Leave them out, or leave --cluster-of and --cluster out; --memory goes with --cluster.",
        )


def _cluster_plan(
    cluster: str | None, cluster_of: str | None, network: str | None, disk: str | None
) -> Callable[[Outlook, PlanSettings, bool], None]:
    """What tells how a model does on several machines."""
    from penstock.cli import plan_cluster
    from penstock.forecast.cluster import NETWORK, ClusterSettings, parse_network

    between = parse_network(network or NETWORK)
    if cluster is None:
        assumed = ClusterSettings.parse(cluster_of or "", between, disk)
        return lambda outlook, settings, as_json: plan_cluster.print_assumed(outlook, assumed, settings, as_json)

    def measured(outlook: Outlook, settings: PlanSettings, as_json: bool) -> None:
        with Console(stderr=True).status("measuring the machines of the cluster"):
            others = plan_cluster.measure_cluster(cluster, outlook.subject)
        plan_cluster.print_measured(outlook, others, between, settings, as_json)

    return measured


def memory_table(outlook: Outlook) -> Group:
    """How the ceiling is shared out, with the model as it is."""
    shares, tokenizer = outlook.own.plan, outlook.subject.tokenizer
    weights, past = shares.weights, outlook.kv_past_windows
    used = shares.process + shares.ring + shares.scratch + shares.allowance + shares.kv + shares.activations
    used += shares.adapters
    adapters = [("adapters", shares.adapters, "")] if shares.adapters else []
    table = plain_table(left(), right("MiB"), left(style="dim"))
    for name, nbytes, note in (
        ("interpreter and libraries", shares.process - tokenizer, ""),
        ("tokenizer and small tensors", tokenizer, ""),
        *adapters,
        ("read-ahead buffers", shares.ring, ""),
        ("working memory of the kernels", shares.scratch, ""),
        (f"keys and values of {outlook.context:,} positions", shares.kv, f"room for {outlook.most_context:,} at most"),
        *([("  of them, what windows have passed", past, "kept all the same")] if past else []),
        ("activations", shares.activations, ""),
        ("allowance for everything else", shares.allowance, ""),
        ("weights that stay in memory", shares.resident, _percent(weights - shares.streamed - shares.idle, weights)),
        ("unused", shares.ceiling - used - shares.resident, ""),
    ):
        table.add_row(name, f"{nbytes / MIB:,.0f}", note)
    table.add_section()
    table.add_row("the ceiling", f"{shares.ceiling / MIB:,.0f}", "", style="bold")
    streamed = _percent(shares.streamed, weights)
    table.add_row("weights read in every pass", f"{shares.streamed / MIB:,.0f}", streamed, style="bold")
    if shares.experts:
        note = f"of those needed, {shares.hit_rate:.0%} are in memory (--hit-rate)"
        table.add_row("experts that it does not need", f"{shares.idle / MIB:,.0f}", note)
    return titled(f"Memory of {escape(outlook.subject.name)}", table)


def speed_table(outlook: Outlook) -> Table:
    """What was measured."""
    disk, compute, kernels = outlook.disk, outlook.compute, outlook.subject.kernels
    table = plain_table(left(), right(), left(style="dim"), title="This machine", header=False)
    measured = f"{format_size(disk.nbytes)} in {format_seconds(disk.seconds)}"
    cpu = f"{kernels.threads} threads, {kernels.isa}"
    table.add_row("disk", f"{format_size(disk.bytes_per_second)}/s", measured)
    table.add_row("CPU, one row", f"{format_size(compute.row_bytes_per_second)}/s", f"of weights in memory; {cpu}")
    table.add_row("CPU, many rows", f"{compute.flops_per_second / 1e9:.0f} GFLOP/s", cpu)
    if outlook.subject.packs:
        decoding = "of BF16, decoded on the way"
        table.add_row("CPU, one row, packed", f"{format_size(compute.packed_row_bytes_per_second)}/s", decoding)
        table.add_row("CPU, many rows, packed", f"{compute.packed_flops_per_second / 1e9:.0f} GFLOP/s", "")
    return table


def forecast_table(outlook: Outlook) -> Table:
    """How long tokens take, with the model as it is."""
    subject = outlook.subject
    title = f"Forecast: {_form_name(subject, subject.form)}" if subject.packs else "Forecast"
    dim = [right(heading, "dim") for heading in ("disk", "compute", "GB read", "passes")]
    table = plain_table(left(), right("time", "bold"), *dim, title=title)
    table.add_row("a further token", *_cells(outlook.own.token))
    for tokens, forecast in outlook.own.prompts.items():
        table.add_row(_first_after(tokens), *(_cells(forecast) if forecast else ("does not fit",)))
    return table


def form_table(outlook: Outlook) -> Table:
    """The model raw and packed, side by side."""
    subject, forms = outlook.subject, outlook.forms
    names = ["weights of a pass", "that stay in memory", "read in every pass", "a further token"]
    names += map(_first_after, outlook.own.prompts)
    headings = [right(_form_name(subject, form), "bold" if form == subject.form else "") for form in forms]
    table = plain_table(left(), *headings, title="Raw and packed")
    for row in zip_longest(names, *(_form_cells(forms[form]) for form in forms), fillvalue=""):
        table.add_row(*row)
    return table


def _first_after(tokens: int) -> str:
    return f"the first, after {tokens:,} tokens"


def _form_name(subject: Subject, form: Form) -> str:
    if form == subject.form:
        return f"{form}, as it is" if subject.place == "here" else form
    return f"{form}, estimated" if form == "packed" else form


def _form_cells(prospect: Prospect | None) -> list[str]:
    if prospect is None:
        return ["does not fit"]
    sizes = (prospect.size.nbytes, prospect.plan.resident, prospect.plan.streamed)
    forecasts = (prospect.token, *prospect.prompts.values())
    seconds = [format_seconds(forecast.seconds) if forecast else "does not fit" for forecast in forecasts]
    return [*map(format_size, sizes), *seconds]


def _advice(subject: Subject) -> str:
    """The command that leads to the other form, where there is one."""
    model = escape(shlex.quote(subject.name))
    if not subject.packs:
        return "Packing gains nothing here: only matrices of 65,536 or more BF16 weights are packed."
    if subject.form == "packed":
        return f"`penstock unpack {model} OUT` gives the original files back, byte for byte."
    if subject.place == "here":
        return f"`penstock pack {model} OUT` packs it, losslessly."
    repo = model if subject.place == "hub" else "REPO"
    return f"`penstock pull {repo}` packs it losslessly while it downloads, `penstock pack SRC OUT` when it is here."


def _cells(forecast: Forecast) -> tuple[str, ...]:
    return (
        format_seconds(forecast.seconds),
        format_seconds(forecast.disk_seconds),
        format_seconds(forecast.compute_seconds),
        f"{forecast.bytes_read / 1e9:.2f}",
        f"{forecast.passes}",
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f} % of {format_size(whole)}"
