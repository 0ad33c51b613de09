"""What `penstock plan` tells of guesses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from penstock.cli.tables import left, plain_table, right
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, titled
from penstock.forecast.guess_plan import ASSUMED

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from penstock.forecast.guess_plan import Guesses, Guessing
    from penstock.forecast.outlook import Outlook, Prospect

DRAFTERS = {"coarse": "its own coarse weights", "draft": "the draft", "": "nothing that pays"}


def print_guesses(console: Console, outlook: Outlook) -> None:
    """Tables and lines, for every form in which something guesses."""
    told = [
        (form, prospect, prospect.guesses)
        for form, prospect in outlook.forms.items()
        if prospect and prospect.guesses and (prospect.guesses.draft or form == "packed")
    ]
    for form, prospect, guesses in told:
        name = f"{form}, estimated" if prospect.size.estimated else form
        for draft, guessing in ((None, guesses.own), (guesses.draft, guesses.drafted)):
            if guessing is not None and (draft or guessing.tier_bytes):
                tell(console, memory_table(name, draft, guessing), "")
        tell(console, speed_table(name, prospect, guesses), "")
        if guesses.draft:
            tell(console, verdict(guesses), "")
    if told:
        console.print(
            "[dim]How often guesses are right is assumed here, not measured: it depends on the model and the text, and "
            "is measured as a model runs, which asks for as many guesses as pay then. Guesses from the text itself, "
            "which cost next to nothing, come on top. No guess changes a token.[/]",
            end="\n\n",
        )


def memory_table(form: str, draft: str | None, guessing: Guessing) -> Group:
    """What guessing takes."""
    title = f"What guessing takes: {form}" + (f", with {escape(draft)}" if draft else "")
    table = plain_table(left(), right(), left(style="dim"), header=False)
    plan = guessing.plan
    if draft:
        kept = "4 bits a weight, all in memory" if guessing.draft_form == "4 bits" else "as it is, all in memory"
        table.add_row("the draft's weights", format_size(guessing.draft_bytes), kept)
        table.add_row("the draft's keys and values", format_size(guessing.draft_kv), "")
    if guessing.tier_bytes:
        table.add_row("coarse weights", format_size(guessing.tier_bytes), _kept(guessing))
        table.add_row("tables and rows of guessing", format_size(plan.draft - guessing.draft_bytes), "")
    room = f"room for {guessing.most_guesses} in a pass"
    table.add_row("guesses to be checked", format_size(guessing.guess_bytes), room)
    table.add_row("weights that stay in memory", format_size(plan.resident), f"of {format_size(plan.weights)}")
    return titled(title, table)


def _kept(guessing: Guessing) -> str:
    if guessing.tier_layers == guessing.layers:
        return "part of what stays in memory anyway: all layers guess"
    if guessing.tier_layers:
        return f"part of what stays in memory anyway: {guessing.tier_layers} of {guessing.layers} layers guess"
    return "too little of them stays in memory to guess with"


def speed_table(form: str, prospect: Prospect, guesses: Guesses) -> Table:
    """How long tokens take, by what is assumed."""
    title = f"Forecast with guesses: {form}; the chances of a first, second, third guess are assumed"
    dim = [right(heading, "dim") for heading in ("guesses a pass", "tokens a pass", "guessing", "a pass")]
    table = plain_table(left("chances"), left("by"), *dim, right("a token", "bold"), title=title)
    for index in range(len(ASSUMED)):
        for guessing in (guesses.own, guesses.drafted):
            if guessing is not None and (guessing.tier_bytes or guessing.draft_bytes):
                table.add_row(_chances(index), *_cells(guessing, index))
    plain = format_seconds(prospect.token.seconds)
    table.add_row("without guesses", "", "", "1.00", "", plain, plain)
    return table


def _cells(guessing: Guessing, index: int) -> tuple[str, ...]:
    forecast = guessing.forecasts[index]
    return (
        DRAFTERS[guessing.drafters[index]],
        f"{forecast.guesses}",
        f"{forecast.tokens:.2f}",
        format_seconds(forecast.draft_seconds),
        format_seconds(forecast.pass_seconds),
        format_seconds(forecast.seconds_per_token),
    )


def verdict(guesses: Guesses) -> str:
    """Whether the draft model pays."""
    draft = escape(guesses.draft or "")
    if guesses.drafted is None:
        return f"The draft {draft} does not fit under the ceiling."
    if all(guesses.pays):
        return f"The draft {draft} pays, under either assumption."
    if not any(guesses.pays):
        return f"The draft {draft} does not pay, under either assumption: its memory brings more as room for weights."
    return f"The draft {draft} pays only where it is right as often as {_chances(guesses.pays.index(True))}."


def _chances(index: int) -> str:
    return ", ".join(f"{chance:.2f}" for chance in ASSUMED[index])
