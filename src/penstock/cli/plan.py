"""`penstock plan`: what fits, what streams, and how long a token will take."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from penstock.cli import options as opt
from penstock.cli.plan_guesses import print_guesses
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, titled
from penstock.forecast.outlook import PROMPTS, Form, Outlook, PlanSettings, Prospect, look
from penstock.system.sizes import MIB

if TYPE_CHECKING:
    from penstock.forecast.seconds import Forecast

CAVEAT = (
    "[dim]All speeds were measured just now and briefly: a disk that others share drifts. Disk and CPU work at the "
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Tell what fits in memory, what streams, and how long a token will take; before any weight is downloaded."""
    prompts = tuple(prompt_tokens or PROMPTS)
    settings = PlanSettings(
        memory=memory, context=context, prompts=prompts, threads=threads, kv_dtype=kv_dtype, draft=draft
    )
    with Console(stderr=True).status("measuring the disk and the CPU"):
        outlook = look(model, settings)
    if as_json:
        print(json.dumps(outlook.as_object()))
        return
    console = Console(highlight=False)
    tell(console, memory_table(outlook), "", speed_table(outlook), "", forecast_table(outlook), "")
    if outlook.packs:
        tell(console, form_table(outlook), "")
    print_guesses(console, outlook)
    tell(console, _advice(outlook), "", *_bases(outlook))
    console.print(CAVEAT)


def memory_table(outlook: Outlook) -> Group:
    """How the ceiling is shared out, with the model as it is."""
    shares = outlook.own.plan
    weights = shares.weights
    used = shares.process + shares.ring + shares.scratch + shares.allowance + shares.kv + shares.activations
    rows = [
        ("interpreter and libraries", shares.process - outlook.tokenizer, ""),
        ("tokenizer and small tensors", outlook.tokenizer, ""),
        ("the reader's ring", shares.ring, ""),
        ("the kernels' scratch", shares.scratch, ""),
        (f"keys and values of {outlook.context:,} positions", shares.kv, f"room for {outlook.most_context:,} at most"),
        ("activations", shares.activations, ""),
        ("what is not counted one by one", shares.allowance, ""),
        ("weights that stay in memory", shares.resident, _percent(weights - shares.streamed, weights)),
        ("unused", shares.ceiling - used - shares.resident, ""),
    ]
    table = Table(box=None)
    table.add_column("")
    table.add_column("MiB", justify="right")
    table.add_column("", style="dim")
    for name, nbytes, note in rows:
        table.add_row(name, f"{nbytes / MIB:,.0f}", note)
    table.add_section()
    table.add_row("the ceiling", f"{shares.ceiling / MIB:,.0f}", "", style="bold")
    table.add_row(
        "weights read in every pass", f"{shares.streamed / MIB:,.0f}", _percent(shares.streamed, weights), style="bold"
    )
    return titled(f"Memory of {escape(outlook.model)}", table)


def speed_table(outlook: Outlook) -> Table:
    """What was measured."""
    disk, compute = outlook.disk, outlook.compute
    table = Table(title="This machine", title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    measured = f"{format_size(disk.nbytes)} in {format_seconds(disk.seconds)}"
    cpu = f"{outlook.threads} threads, {outlook.isa}"
    table.add_row("disk", f"{format_size(disk.bytes_per_second)}/s", measured)
    table.add_row("CPU, one row", f"{format_size(compute.row_bytes_per_second)}/s", f"of weights in memory; {cpu}")
    table.add_row("CPU, many rows", f"{compute.flops_per_second / 1e9:.0f} GFLOP/s", cpu)
    if outlook.packs:
        decoding = "of BF16, decoded on the way"
        table.add_row("CPU, one row, packed", f"{format_size(compute.packed_row_bytes_per_second)}/s", decoding)
        table.add_row("CPU, many rows, packed", f"{compute.packed_flops_per_second / 1e9:.0f} GFLOP/s", "")
    return table


def forecast_table(outlook: Outlook) -> Table:
    """How long tokens take, with the model as it is."""
    title = f"Forecast: {_form_name(outlook, outlook.form)}" if outlook.packs else "Forecast"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for heading in ("time", "disk", "compute", "GB read", "passes"):
        table.add_column(heading, justify="right", style="bold" if heading == "time" else "dim")
    table.add_row("a further token", *_cells(outlook.own.token))
    for tokens, forecast in outlook.own.prompts.items():
        name = f"the first, after {tokens:,} tokens"
        table.add_row(name, *(_cells(forecast) if forecast else ("does not fit",)))
    return table


def form_table(outlook: Outlook) -> Table:
    """The model raw and packed, side by side."""
    table = Table(title="Raw and packed", title_justify="left", title_style="bold", box=None)
    names = ["weights of a pass", "that stay in memory", "read in every pass", "a further token"]
    names += [f"the first, after {tokens:,} tokens" for tokens in outlook.own.prompts]
    columns = [names]
    table.add_column("")
    forms: dict[Form, Prospect | None] = {"raw": outlook.raw, "packed": outlook.packed}
    for form, prospect in forms.items():
        table.add_column(_form_name(outlook, form), justify="right", style="bold" if form == outlook.form else "")
        columns.append(_form_cells(prospect) if prospect else ["does not fit"] + [""] * (len(names) - 1))
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _form_name(outlook: Outlook, form: Form) -> str:
    if form == outlook.form:
        return f"{form}, as it is" if outlook.place == "here" else form
    return f"{form}, estimated" if form == "packed" else form


def _form_cells(prospect: Prospect) -> list[str]:
    size, plan = prospect.size, prospect.plan
    sizes = [format_size(nbytes) for nbytes in (size.nbytes, plan.resident, plan.streamed)]
    forecasts = (prospect.token, *prospect.prompts.values())
    return sizes + [format_seconds(forecast.seconds) if forecast else "does not fit" for forecast in forecasts]


def _advice(outlook: Outlook) -> str:
    """The command that leads to the other form, where there is one."""
    model = escape(shlex.quote(outlook.model))
    if not outlook.packs:
        return "Packing gains nothing here: only matrices of 65,536 or more BF16 weights are packed."
    if outlook.form == "packed":
        return f"`penstock unpack {model} OUT` gives the original files back, byte for byte."
    if outlook.place == "here":
        return f"`penstock pack {model} OUT` packs it, losslessly."
    repo = model if outlook.place == "hub" else "REPO"
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


def _bases(outlook: Outlook) -> tuple[str, str]:
    return (
        f"[dim]The sizes rest on {escape(outlook.basis)}.[/]",
        f"[dim]The disk's speed is that of {escape(outlook.disk_basis)}.[/]",
    )
